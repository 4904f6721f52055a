"""What learns: network, optimizer, step, sentinel and loader of a recipe, batch by batch."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from fastadv.data import DeviceLoader
from fastadv.ops import doubles
from fastadv.recipes import assembly
from fastadv.recipes.held_out import HeldOut
from fastadv.recipes.run_state import Position, Stateful
from fastadv.recipes.settings import Recipe
from fastadv.recipes.sources import Split
from fastadv.training import Check, ema
from fastadv.training.arguments import warmup_factor
from fastadv.training.sentinel import Sentinel, Step
from fastadv.training.verdict import in_short

_CHECKPOINT_SECONDS = 60.0


class Learner:
    """All parts of a run that change while it goes on; `position` is moved along."""

    def __init__(
        self,
        recipe: Recipe,
        samples: Split,
        position: Position,
        *,
        checkpoint_every: int | None,
        model: nn.Module | None = None,
    ) -> None:
        device = samples.images.device
        self.recipe = recipe
        self.position = position
        self.checkpoint_every = checkpoint_every
        self.loader: DeviceLoader = DeviceLoader(
            samples.images,
            samples.labels,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            crop=recipe.crop,
            flip=recipe.flip,
            channels_last=recipe.channels_last,
        )
        self.held_out: HeldOut = HeldOut.of(
            samples.held_images, samples.held_labels, threat=recipe.threat, seed=recipe.seed
        )
        self.model: nn.Module = assembly.build_model(recipe, samples.images, device, given=model)
        self.optimizer: torch.optim.Optimizer = assembly.build_optimizer(recipe, self.model)
        self.average = self._new_average()
        self.step: Step = assembly.build_step(recipe, self.model, batches=len(self.loader))
        self.sentinel: Sentinel = assembly.build_sentinel(
            recipe, self.held_out.x, self.held_out.y, batches=len(self.loader)
        )
        self.sentinel.keep(self.model, self.optimizer)
        self.loss_sum: torch.Tensor = torch.zeros((), dtype=doubles.widest(device), device=device)
        self._resumed_at = time.perf_counter()
        self._saved_at = time.monotonic()

    @property
    def network(self) -> nn.Module:
        """What is evaluated and handed over: the average if there is one."""
        return self.model if self.average is None else self.average.module

    @property
    def parts(self) -> dict[str, Stateful | None]:
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
            "step": self.step,
            "sentinel": self.sentinel,
            "loader": self.loader,
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on as the learner whose parts are in a checkpoint."""
        self.sentinel.load_state_dict(saved["sentinel"])
        if self.sentinel.rollbacks:
            self.step = self.sentinel.rescue_step(self.step)
        for name, part in self.parts.items():
            if part is not None and name != "sentinel":
                part.load_state_dict(saved[name])
        self.loss_sum.fill_(self.position.loss_sum)

    def epoch(self) -> Iterator[tuple[Sequence[Check], str]]:
        """Train on what is left of the epoch; after each batch (new checks, the step of a rescue
        that begins or "")."""
        self.loader.set_epoch(self.position.epoch)
        self._resumed_at = time.perf_counter()
        for x, y in self.loader:
            self._learn(x, y)
            seen = len(self.sentinel.history)
            step = self.sentinel.watch(self.step, self.model, self.optimizer)
            rescue = "" if step is self.step else repr(step)
            if rescue:
                self._plan_rescue(step)
            yield self.sentinel.history[seen:], rescue

    def finish(self) -> tuple[Sequence[Check], str]:
        """The sentinel's gate after the last epoch; as `epoch` after a batch."""
        seen = len(self.sentinel.history)
        step = self.sentinel.finish(self.step, self.model, self.optimizer, judged=self.network)
        rescue = "" if step is self.step else repr(step)
        if rescue:
            self._plan_rescue(step)
        return self.sentinel.history[seen:], rescue

    def _learn(self, x: torch.Tensor, y: torch.Tensor) -> None:
        for loss in self.step(self.model, x, y):
            rate = self._rate(self.position.updates % self._updates_a_batch + 1)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.loss_sum += loss.detach()
            self.position.updates, self.position.rate = self.position.updates + 1, rate
            if self.average is not None:
                self.average.update_parameters(self.model)
        self.position.batches += 1

    @property
    def _updates_a_batch(self) -> int:
        return self.recipe.replays if self.position.rescued_at is None else 1

    def _rate(self, update: int) -> float:
        """The learning rate of the update-th update of the next batch."""
        position, batches = self.position, len(self.loader)
        done = position.batches + update / self._updates_a_batch
        if position.rescued_at is None:
            return self.recipe.rate_at(done / batches)
        left = (position.epochs * batches - done) / (
            position.epochs * batches - position.rescued_at
        )
        warm = (done - position.rescued_at) / self.step.eps_warmup
        return self.recipe.rescue_learning_rate * min(1.0, warm, 2 * left)

    def _plan_rescue(self, step: Step) -> None:
        """Enough epochs to come, a new learning rate schedule, no average of what was undone."""
        self.step = step
        position, batches = self.position, len(self.loader)
        warmup = 2 * step.eps_warmup / batches  # half of the rescue at full eps
        more = max(self.recipe.rescue_epochs, math.ceil(warmup))
        begun = -(-position.batches // batches)
        position.epochs = max(position.epochs, begun + more)
        position.rescued_at = position.batches
        self.average = self._new_average()

    def _new_average(self) -> AveragedModel | None:
        return ema(self.model, decay=self.recipe.ema) if self.recipe.ema else None

    def close_epoch(self) -> dict[str, Any]:
        """Evaluate, and move on to the next epoch; what the log says of this one."""
        self.enter_position()
        position, attack = self.position, self.held_out.attack
        first = position.epoch * len(self.loader)
        checks = [c for c in self.sentinel.history if c.batch > first]
        clean, robust = self._accuracies()
        self._resumed_at = time.perf_counter()
        position.epoch += 1
        position.seconds += position.epoch_seconds
        factor = warmup_factor(max(0, self.step.batches - 1), self.step.eps_warmup)
        row = dict(
            epoch=position.epoch,
            seconds=position.epoch_seconds,
            batches=position.batches,
            learning_rate=position.rate,
            eps=self.recipe.eps * factor,
            step=repr(self.step),
            loss=position.loss_sum / position.updates,
            clean=clean,
            robust=robust,
            n=len(self.held_out.y),
            attack=repr(attack),
            steps=attack.steps,
            attack_eps=self.recipe.eps,
            sentinel=[check.verdict for check in checks],
            said=[in_short(check) for check in checks],
            rescue=position.rescued_at is not None,
        )
        position.updates, position.epoch_seconds = 0, 0.0
        self.loss_sum.zero_()
        return row

    def _accuracies(self) -> tuple[float, float]:
        """Clean and robust accuracy of the network; the sentinel's, if it has just looked."""
        seen = self.sentinel.history[-1:]
        if self.average is None and seen and seen[0].batch == self.position.batches:
            if seen[0].verdict in ("good", "suspect"):  # the weights are still those
                return seen[0].clean, seen[0].pgd
        return self.held_out.accuracies(self.network)

    def enter_position(self) -> None:
        """Bring the loss and the time of the epoch in progress up to date; synchronises."""
        now = time.perf_counter()
        self.position.loss_sum = float(self.loss_sum)
        self.position.epoch_seconds += now - self._resumed_at
        self._resumed_at, self._saved_at = now, time.monotonic()

    def is_checkpoint_due(self) -> bool:
        if self.checkpoint_every is not None:
            return self.position.batches % self.checkpoint_every == 0
        return time.monotonic() - self._saved_at >= _CHECKPOINT_SECONDS
