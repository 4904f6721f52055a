"""The core of every method that crafts a batch and then takes one optimizer step on it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch

from fastadv.attacks.call import inputs
from fastadv.elements import Value, common_bounds
from fastadv.execution import Precision
from fastadv.isolation import Model
from fastadv.objective import Objective
from fastadv.region import Region
from fastadv.starts import start_point
from fastadv.threat_model import ThreatModel
from fastadv.training import arguments, craft, regions
from fastadv.training.bank import PerturbationBank
from fastadv.training.draws import DeviceDraws, draw_of
from fastadv.training.input_watch import InputWatch
from fastadv.training.train_mode import warn_of_eval_mode
from fastadv.training.weight_loss import (
    Crafted,
    Modifier,
    Reduced,
    TrainingLoss,
    WeightLoss,
    cross_entropy,
    modified,
)
from fastadv.training.with_extra import with_extra


@dataclass(eq=False, repr=False)
class CraftedStep:
    """Craft adversarial examples of a batch, then hand the loss on them to the user's own loop.

    threat: eps is one float, or one for each element, with a batch axis of 1: (1, F), (1, C, 1, 1);
    bounds alike. Steps follow these radii; a step_size is in units of them in L2 alone. modifiers:
    `AWP`, `GradAlign`, `CleanMixing`, the first innermost. label_smoothing: of the training loss,
    in [0, 1). eps_warmup: batches over which eps, and with it step and noise, grows linearly from
    eps / eps_warmup (0: none). bn: what layers that keep statistics do while crafting: "batch" uses
    batch statistics and leaves the running ones alone, "eval" uses the running ones, "train" moves
    them. precision: "bf16", "fp16" or "fp32" for craft and loss, None for that of a surrounding
    autocast. bank: warm starts by sample. seed: of all noise, which is a pure function of (seed,
    batches so far, sample id).

    batches, craft_loss, train_loss: how many batches were seen, and the mean losses of the last one
    before its last craft and in training; they stay on the device.

    A model that loses the gradient of entries at a bound, as one that clamps its input may, is
    noticed in the first batch and warned of once: from then on input gradients, and with them
    craft_loss, are those of a copy with such entries moved inside. The loss is that of x_adv.
    """

    threat: ThreatModel
    _: KW_ONLY
    modifiers: Sequence[Modifier] = ()
    label_smoothing: float = 0.0
    eps_warmup: int = 0
    bn: craft.BNPolicy = "batch"
    precision: Precision | None = None
    bank: PerturbationBank | None = None
    seed: int = 0
    batches: int = field(init=False, default=0)
    craft_loss: torch.Tensor | None = field(init=False, default=None)
    train_loss: torch.Tensor | None = field(init=False, default=None)
    _loss_setting: TrainingLoss = field(init=False, default="ce")
    _is_checked: bool = field(init=False, default=False)
    _draws: DeviceDraws | None = field(init=False, default=None)
    _watch: InputWatch = field(init=False)
    _regions: regions.Regions = field(init=False, default_factory=regions.Regions)

    def __post_init__(self) -> None:
        arguments.check_settings(self)
        arguments.check_modifiers(self.modifiers)
        arguments.check_bank(self.bank, self.threat)
        self._watch = InputWatch(common_bounds(self.threat))

    def __repr__(self) -> str:
        return arguments.pasteable(self)

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the one loss of this batch; arguments as in `loss`."""
        yield self.loss(model, x, y, sample_ids=sample_ids, x_init=x_init, extra=extra, mask=mask)

    def loss(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The scalar to call backward on: the line that replaces `F.cross_entropy(model(x), y)`.

        model: the user's, in train mode, also wrapped by DistributedDataParallel (the craft uses
        the inner module, so that each backward reduces gradients once). x: (B, ...) inside the
        threat model's bounds; y: (B,) labels, or what the objective takes. sample_ids: (B,)
        integers that key the noise and the bank; positions in the global batch if None. x_init:
        start iterates instead of random ones. extra: tensors (B, ...) that the model is given
        beside x, as model(x, *extra). mask: bool, what broadcasts to x: outside of it x_adv is x,
        random starts included, and norms are those of what is inside; L-infinity and L2. The first
        call checks the values of x and y, which synchronises; later ones never do. Gradients,
        flags, random state and, but for bn="train", buffers are left as they were. If x requires a
        gradient, as the output of an embedding does, it gets the gradient at x_adv.
        """
        batch = self.craft(
            model, x, y, sample_ids=sample_ids, x_init=x_init, extra=extra, mask=mask
        )
        descended = modified(self._weight_loss(), self.modifiers)
        with craft.in_precision(self.precision, x.device):
            loss = descended(Reduced.of(model, self.objective, tuple(extra)), batch)
        self.advance(loss)
        return loss

    def advance(self, loss: torch.Tensor | None = None) -> None:
        """Go on to the next batch, in a loop that calls `craft` and has a loss of its own.

        Noise and warm-up move on, as `loss` itself moves them. loss: what the weights descended,
        for `train_loss`, which a `Sentinel` reads.

        Example: `batch = step.craft(model, x, y)`, `loss = own(model(batch.x_adv), y)`, then
        `step.advance(loss)`.
        """
        self._watch.close()
        if loss is not None:
            self.train_loss = loss.detach()
        self.batches += 1

    def craft(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
    ) -> Crafted:
        """The adversarial batch alone, as the next `loss` would train on it, again and again: with
        `advance` a loop of one's own goes on to the next. Modifiers are part of `loss` alone.
        """
        inner, objective, given = craft.inner_module(model), self.objective, x
        warn_of_eval_mode(self, inner)
        if not self._is_checked:
            checked = arguments.check_batch(self.threat, inner, x, y, objective)
            self._watch.rounds |= checked is not x
        arguments.check_not_empty(x)
        x, y = self._watch.inside(x.detach()), arguments.asked(y, objective)
        beside = inputs.check_extra(extra, x)
        factor = arguments.warmup_factor(self.batches, self.eps_warmup)
        region = self._regions.of(self.threat, x, mask, getattr(self, "step_size", None))
        region, eps = regions.grown(region, factor), regions.in_lengths(self.threat, factor)
        x = regions.inside(x, region, rounds=self._watch.rounds)
        ids = arguments.sample_ids(sample_ids, x, needed=self.bank is not None)
        asked = inner
        if not self._is_checked:
            asked = arguments.checking(inner, inner, x, y, objective)
            if self.bank is not None:
                self.bank.check_ids(ids)
        asked = with_extra(asked, beside)
        with (
            torch.no_grad(),
            craft.crafting(
                inner,
                bn=self.bn,
                precision=self.precision,
                device=x.device,
                seed=self.seed + self.batches,
            ),
        ):
            x_adv = self._start_iterates(x, ids, eps, x_init, region)
            losses = craft.ascend(
                asked,
                x_adv,
                x,
                y,
                self._ascent(eps),
                reference=self._reference(asked, x),
                objective=objective,
                differentiate=self._watch.gradient,
                region=region,
            )
            self.craft_loss = losses.mean()
        self._is_checked = True
        if not self.modifiers:  # which may differentiate the input as well
            self._watch.close()
        if self.bank is not None:
            self.bank.put(ids, x_adv, x, eps=eps)
        watched = self._watch.gradient
        radius = eps if region is None or region.eps is None else region.eps
        batch = Crafted(
            x, x_adv, y, radius, ids, self.draw, self.seed, self.threat, watched, objective, region
        )
        return batch.reaching(given) if given.requires_grad else batch

    @property
    def objective(self) -> Objective | None:
        """What is ascended and descended, None for the method's own loss."""
        return self._loss_setting if isinstance(self._loss_setting, Objective) else None

    @property
    def effective_eps(self) -> Value:
        """The radius of the next batch, or the radii of elements, after warm-up."""
        return regions.warmed(self.threat, arguments.warmup_factor(self.batches, self.eps_warmup))

    @property
    def draw(self) -> int | torch.Tensor:
        """The number of the next batch, as the random streams take it; inside `graphed` (B,)."""
        return draw_of(self)

    def _scaled(self, step_size: float | None, *, default: float) -> float:
        """step_size, or `default` in units of eps, after warm-up."""
        factor = arguments.warmup_factor(self.batches, self.eps_warmup)
        return regions.step_length(self.threat, step_size, default=default, factor=factor)

    def _start_iterates(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        eps: float,
        x_init: torch.Tensor | None,
        region: Region | None,
    ) -> torch.Tensor:
        if x_init is not None:
            arguments.check_start(x_init, x)
            start = x_init.clone(memory_format=torch.preserve_format)
        elif self.bank is not None:
            start = self.bank.get(ids, x, eps=eps, bounds=common_bounds(self.threat))
        else:
            return self._random_start(x, ids, eps, region)
        return start if region is None else region.masked(start, x)

    def _random_start(
        self, x: torch.Tensor, ids: torch.Tensor, eps: float, region: Region | None
    ) -> torch.Tensor:
        raise NotImplementedError

    def _ascent(self, eps: float) -> craft.Ascent:
        """The steps of one craft."""
        raise NotImplementedError

    def _reference(self, model: Model, x: torch.Tensor) -> torch.Tensor | None:
        """(B, C) probabilities that the loss of the ascent compares with."""
        return None

    def _weight_loss(self) -> WeightLoss:
        return functools.partial(cross_entropy, label_smoothing=self.label_smoothing)

    def _uniform_start(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        eps: float,
        region: Region | None,
        *,
        clamp: bool,
    ) -> torch.Tensor:
        return start_point(
            self.threat,
            x,
            seed=self.seed,
            sample_ids=ids,
            draw=self.draw,
            clamp_start=clamp,
            eps=eps,
            region=region,
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain values, safe to load with weights_only."""
        return {
            "method": type(self).__name__,
            "batches": self.batches,
            "bank": None if self.bank is None else self.bank.state_dict(),
            **self._watch.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the step that gave `state`; raises ValueError if it does not fit."""
        arguments.check_state(state, ("method", "batches", "bank"), optional=("inset", "rounds"))
        arguments.check_method(state, self)
        if (state["bank"] is None) != (self.bank is None):
            raise ValueError("state has a perturbation bank and this step none, or the reverse")
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        self.batches = int(state["batches"])
        self._watch = InputWatch.restored(common_bounds(self.threat), state)
