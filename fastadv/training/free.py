"""Free adversarial training: one backward gives the gradients of weights and perturbation."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch

from fastadv.isolation import Model
from fastadv.ops import layout
from fastadv.threat_model import ThreatModel
from fastadv.training import arguments, crafting
from fastadv.training.draws import DeviceDraws, draw_of
from fastadv.training.objectives import Crafted, Modifier, Reduced, cross_entropy, modified


@dataclass(eq=False, repr=False)
class FreeAT:
    """Yields CE(f(x + delta), y) `replays` times; each backward also moves delta, kept for good.

    After the user's backward and optimizer step, one fused launch takes delta + step_size *
    sign(grad) to the eps-ball and the bounds and writes the next model input. delta, (B, ...),
    starts at zero and is carried over replays, batches and epochs, position by position; a batch
    shorter than the longest uses its first rows. Ask for the loss of the next replay only after
    `loss.backward()`. threat: any norm. step_size: in input units, eps if None. Costs 3 units a
    replay: train m times fewer epochs, and step learning-rate schedules once a replay. In fp16 the
    input gradient underflows unless a GradScaler scales the loss: use bf16. Other arguments as in
    `CraftedStep`; `batches` and eps_warmup count replays, seed is that of modifiers.

    Example: `for loss in fastadv.training.FreeAT(threat, replays=8)(model, x, y): ...`.
    Source: Shafahi et al. 2019, arXiv:1904.12843. Like the authors of Fast-AT, and unlike the
    original script, delta moves after the backward, and is cut so that x + delta is in the bounds,
    of its own x: the first input of the next batch may lie outside.
    """

    threat: ThreatModel
    _: KW_ONLY
    replays: int = 8
    step_size: float | None = None
    modifiers: Sequence[Modifier] = ()
    label_smoothing: float = 0.0
    eps_warmup: int = 0
    precision: str | None = None
    seed: int = 0
    batches: int = field(init=False, default=0)
    delta: torch.Tensor | None = field(init=False, default=None)
    train_loss: torch.Tensor | None = field(init=False, default=None)
    _is_checked: bool = field(init=False, default=False)
    _draws: DeviceDraws | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        arguments.check_settings(self)
        arguments.check_modifiers(self.modifiers)

    def __repr__(self) -> str:
        return arguments.pasteable(self)

    def __call__(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield one loss a replay; call backward on each, then step the optimizer."""
        if not self._is_checked:
            self._check(crafting.inner_module(model), x, y)
        arguments.check_not_empty(x)
        x, y = x.detach(), y.to(torch.int64)
        ids = arguments.sample_ids(None, x, needed=False)
        objective = modified(
            functools.partial(cross_entropy, label_smoothing=self.label_smoothing), self.modifiers
        )
        carried = self._carried(x)
        x_adv = (x + carried).to(x.dtype)
        try:
            for _ in range(self.replays):
                leaf = x_adv.detach().requires_grad_()
                eps = self.effective_eps
                batch = Crafted(x, leaf, y, eps, ids, draw_of(self), self.seed, self.threat)
                with torch.enable_grad(), crafting.in_precision(self.precision, x.device):
                    loss = objective(Reduced.of(model), batch)
                self.train_loss = loss.detach()
                yield loss
                self._move(x_adv, leaf.grad, x)
        finally:
            carried.copy_(x_adv - x)

    def _check(self, model: Model, x: torch.Tensor, y: torch.Tensor) -> None:
        """Of the first batch, which pays for it with one forward in eval mode."""
        arguments.check_batch(self.threat, model, x, y)
        with (
            torch.no_grad(),
            crafting.crafting(
                model, bn="eval", precision=self.precision, device=x.device, seed=self.seed
            ),
        ):  # fmt: skip
            arguments.checking(model, model, x, y)(x)
        self._is_checked = True

    @property
    def effective_eps(self) -> float:
        """The radius of the next replay, after warm-up."""
        return float(self.threat.eps) * arguments.warmup_factor(self.batches, self.eps_warmup)

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

    def _move(self, x_adv: torch.Tensor, grad: torch.Tensor | None, x: torch.Tensor) -> None:
        if grad is None:
            raise RuntimeError(
                "call loss.backward() before asking for the loss of the next replay: the same "
                "backward gives the gradient of the perturbation. If you did, the model's output "
                "does not depend on its input (a detached copy?)"
            )
        factor = arguments.warmup_factor(self.batches, self.eps_warmup)
        step = float(self.threat.eps) if self.step_size is None else self.step_size
        self.threat.step_(x_adv, grad, x, step_size=step * factor, eps=self.effective_eps)
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        """The perturbation and the counter, between two batches; per rank under torchrun."""
        return {"method": "FreeAT", "batches": self.batches, "delta": self.delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the step that gave `state`; raises ValueError if it does not fit."""
        arguments.check_state(state, ("method", "batches", "delta"))
        arguments.check_method(state, self)
        delta = state["delta"]
        self.delta = None if delta is None else delta.detach().clone()
        self.batches = int(state["batches"])
