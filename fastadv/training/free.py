"""Free adversarial training: one backward gives the gradients of weights and perturbation."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NoReturn, cast

import torch

from fastadv.attacks.call import inputs
from fastadv.elements import Value, common_bounds
from fastadv.execution import Precision
from fastadv.isolation import Model, restored_generators
from fastadv.objective import Objective
from fastadv.ops import layout
from fastadv.region import Region
from fastadv.threat_model import ThreatModel
from fastadv.training import arguments, craft
from fastadv.training.draws import DeviceDraws, draw_of
from fastadv.training.input_watch import InputWatch, probe
from fastadv.training.regions import Regions, grown, in_lengths, inside, step_length, warmed
from fastadv.training.train_mode import warn_of_eval_mode
from fastadv.training.weight_loss import (
    Crafted,
    Modifier,
    Reduced,
    TrainingLoss,
    WeightLoss,
    cross_entropy,
    modified,
    objective_mean,
)
from fastadv.training.with_extra import Extra, with_extra


class _NameOfLoss(str):
    """The setting `loss`, which answers those who take it for the method of the other steps."""

    def __call__(self, *arguments: object, **more: object) -> NoReturn:
        raise TypeError(
            "FreeAT has no loss(): it takes several optimizer steps a batch, as in `for loss in "
            "step(model, x, y): optimizer.zero_grad(); loss.backward(); optimizer.step()`"
        )


@dataclass(eq=False, repr=False)
class FreeAT:
    """Yields CE(f(x + delta), y) `replays` times; each backward also moves delta, kept for good.

    After the user's backward and optimizer step, one fused launch takes delta + step_size *
    sign(grad) to the eps-ball and the bounds and writes the next model input. delta, (B, ...),
    starts at zero and is carried over replays, batches and epochs, position by position; a batch
    shorter than the longest uses its first rows. Ask for the loss of the next replay only after
    `loss.backward()`. threat: any norm. step_size: in input units, eps if None. Costs 3 units a
    replay: train m times fewer epochs, and step learning-rate schedules once a replay. In fp16 the
    input gradient underflows unless a GradScaler scales the loss: use bf16. loss: an objective in
    place of CE. Other arguments as in `CraftedStep`; `batches` and eps_warmup count replays, seed
    is that of modifiers.

    Where the model loses the gradient of entries at a bound, as one that clamps its input may, the
    gradient of delta comes from a pass of its own with frozen weights and such entries moved
    inside: 2 units a replay more, and what modifiers cost once more. It is looked for in the first
    batch, at the cost of a backward, and warned of once.

    Example: `for loss in fastadv.training.FreeAT(threat, replays=8)(model, x, y): ...`.
    Source: Shafahi et al. 2019, arXiv:1904.12843. Like the authors of Fast-AT, and unlike the
    original script, delta moves after the backward, and is cut so that x + delta is in the bounds,
    of its own x: the first input of the next batch may lie outside.
    """

    threat: ThreatModel
    _: KW_ONLY
    replays: int = 8
    step_size: float | None = None
    loss: TrainingLoss = "ce"
    modifiers: Sequence[Modifier] = ()
    label_smoothing: float = 0.0
    eps_warmup: int = 0
    precision: Precision | None = None
    seed: int = 0
    batches: int = field(init=False, default=0)
    delta: torch.Tensor | None = field(init=False, default=None)
    train_loss: torch.Tensor | None = field(init=False, default=None)
    _is_checked: bool = field(init=False, default=False)
    _draws: DeviceDraws | None = field(init=False, default=None)
    _watch: InputWatch = field(init=False)
    _regions: Regions = field(init=False, default_factory=Regions)

    def __post_init__(self) -> None:
        arguments.check_loss(self.loss)
        if isinstance(self.loss, str):
            self.loss = cast(TrainingLoss, _NameOfLoss(self.loss))
        arguments.check_settings(self)
        arguments.check_modifiers(self.modifiers)
        self._watch = InputWatch(common_bounds(self.threat))

    def __repr__(self) -> str:
        return arguments.pasteable(self)

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield one loss a replay; call backward on each, then step the optimizer.

        mask: as in `CraftedStep.loss`; outside of it delta waits.
        """
        inner = craft.inner_module(model)
        warn_of_eval_mode(self, inner)
        beside = inputs.check_extra(extra, x)
        asked = with_extra(inner, beside)
        looked = not self._is_checked and self._check(inner, x, y, beside)
        arguments.check_not_empty(x)
        if self.replays > 1:
            arguments.check_are_leaves((x, *extra), "FreeAT makes several steps on one x")
        given, x = x, self._watch.inside(x.detach())
        y = arguments.asked(y, self.objective)
        ids = arguments.sample_ids(None, x, needed=False)
        descended = modified(self._weight_loss(), self.modifiers)
        region = self._regions.of(self.threat, x, mask, self.step_size)
        x = inside(x, region, rounds=self._watch.rounds)
        carried = self._carried(x)
        x_adv = (x + carried).to(x.dtype)
        x_adv = x_adv if region is None else region.masked(x_adv, x)
        moved = 0
        try:
            for _ in range(self.replays):
                looked = looked or self._look(asked, x_adv)
                leaf = x_adv.detach().requires_grad_()
                factor = arguments.warmup_factor(self.batches, self.eps_warmup)
                now = grown(region, factor)
                batch = Crafted(
                    x,
                    leaf,
                    y,
                    self.effective_eps if now is None or now.eps is None else now.eps,
                    ids,
                    draw_of(self),
                    self.seed,
                    self.threat,
                    self._watch.gradient,
                    self.objective,
                    now,
                )
                apart = self._gradient_inside(inner, descended, batch, beside)
                with torch.enable_grad(), craft.in_precision(self.precision, x.device):
                    batch = batch.reaching(given) if given.requires_grad else batch
                    loss = descended(Reduced.of(model, self.objective, tuple(extra)), batch)
                self.train_loss = loss.detach()
                yield loss
                grad = _gradient_of(leaf)
                if self._watch.is_open:  # where the look told nothing: for the next replays
                    self._watch.look(grad, x_adv, asked)
                self._move(x_adv, grad if apart is None else apart, x, now, factor)
                moved += 1
        finally:
            delta = x_adv - x
            carried.copy_(delta if region is None else region.masked(delta, carried))
            if moved:
                self._watch.close()

    def _check(self, model: Model, x: torch.Tensor, y: torch.Tensor, extra: Extra) -> bool:
        """Of the first batch, which pays for it with one forward in eval mode, and with a backward
        where it is a look as well: whether it is."""
        checked = arguments.check_batch(self.threat, model, x, y, self.objective)
        self._watch.rounds |= checked is not x
        x = checked
        asked = with_extra(arguments.checking(model, model, x, y, self.objective), extra)
        looked = self._look(asked, x)
        if not looked:
            with torch.no_grad(), self._checking(model, x):
                asked(x)
        self._is_checked = True
        return looked

    def _look(self, model: Model, x_adv: torch.Tensor) -> bool:
        """A pass of its own where that may tell whether the model clamps, and whether it was made.

        Before a loss is yielded: with the user's backward comes the optimizer's step, too late to
        take its gradient again.
        """
        if not self._watch.may_tell(x_adv, model):
            return False
        with torch.no_grad(), self._checking(model, x_adv):
            self._watch.look(probe(model)(x_adv), x_adv, model)
        return True

    def _checking(self, model: Model, x: torch.Tensor) -> contextlib.AbstractContextManager[None]:
        return craft.crafting(
            model, bn="eval", precision=self.precision, device=x.device, seed=self.seed
        )

    def _gradient_inside(
        self, model: Model, descended: WeightLoss, batch: Crafted, extra: Extra
    ) -> torch.Tensor | None:
        """Where the model clamps, the gradient of the loss by a pass of its own, with entries at
        the bounds moved inside; None elsewhere. Nothing but a graph of modifiers sees weights."""
        if not self._watch.inset:
            return None
        leaf = self._watch.at(batch.x_adv).requires_grad_()
        # a power of two is exact; in float16 the gradient of a mean would be rounded to zero
        scale = craft.FP16_SCALE * 2 ** len(leaf).bit_length()
        # modifiers may need gradients of weights
        weights = contextlib.nullcontext() if self.modifiers else craft.frozen(model)
        with (
            restored_generators(leaf.device, self.seed + self.batches),
            weights,
            craft.statistics_policy(model, "batch"),
            craft.in_precision(self.precision, leaf.device),
            torch.enable_grad(),
        ):
            reduced = Reduced(model, model, self.objective, extra)
            loss = descended(reduced, batch._replace(x_adv=leaf))
            (grad,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, scale))
        return grad

    def _weight_loss(self) -> WeightLoss:
        if self.objective is not None:
            return objective_mean
        return functools.partial(cross_entropy, label_smoothing=self.label_smoothing)

    @property
    def objective(self) -> Objective | None:
        """What is ascended and descended, None for cross-entropy."""
        return self.loss if isinstance(self.loss, Objective) else None

    @property
    def effective_eps(self) -> Value:
        """The radius of the next replay, or the radii of elements, after warm-up."""
        return warmed(self.threat, arguments.warmup_factor(self.batches, self.eps_warmup))

    def _carried(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of delta for this batch, a view."""
        if self.delta is None:
            self.delta = layout.dense_like(x, 0, layout.compute_dtype(x))
        delta = self.delta = self.delta.to(x.device)  # it may come from a checkpoint
        if delta.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"x must hold samples like those before it, {tuple(delta.shape[1:])}; got "
                f"{tuple(x.shape[1:])}. Make a new FreeAT for another resolution"
            )
        if len(delta) < len(x):
            self.delta = layout.dense_like(x, len(x), delta.dtype).zero_()
            self.delta[: len(delta)] = delta
        return self.delta[: len(x)]

    def _move(
        self,
        x_adv: torch.Tensor,
        grad: torch.Tensor,
        x: torch.Tensor,
        region: Region | None,
        factor: float,
    ) -> None:
        step = step_length(self.threat, self.step_size, default=1.0, factor=factor)
        eps = in_lengths(self.threat, factor)
        box = None if region is None else region.box(x, eps, like=x_adv)
        self.threat.step_(x_adv, grad, x, step_size=step, eps=eps, box=box)
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        """The perturbation and the counter, between two batches; per rank under torchrun."""
        return {
            "method": "FreeAT",
            "batches": self.batches,
            "delta": self.delta,
            **self._watch.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the step that gave `state`; raises ValueError if it does not fit."""
        arguments.check_state(state, ("method", "batches", "delta"), optional=("inset", "rounds"))
        arguments.check_method(state, self)
        delta = state["delta"]
        self.delta = None if delta is None else delta.detach().clone()
        self.batches = int(state["batches"])
        self._watch = InputWatch.restored(common_bounds(self.threat), state)


def _gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    """What the user's backward left there."""
    if leaf.grad is None:
        raise RuntimeError(
            "call loss.backward() before asking for the loss of the next replay: the same "
            "backward gives the gradient of the perturbation. If you did, the model's output "
            "does not depend on its input (a detached copy?)"
        )
    return leaf.grad
