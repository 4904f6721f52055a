"""Modifiers of one-step methods: perturbed weights, aligned gradients, clean samples mixed in."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fastadv import reach
from fastadv.isolation import Model, restored_generators
from fastadv.starts import start_point
from fastadv.training.craft import statistics_policy
from fastadv.training.weight_loss import Crafted, Reduced, WeightLoss

_TINY = 1e-20  # guards 0/0: a layer without a gradient is not perturbed


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation: the loss at w + gamma * ||w|| / ||g|| * g, g its gradient.

    Of each weight with more than one dimension; the gradient that the optimizer gets is the one at
    the perturbed weights, which themselves are never written. gamma: 0.01 for cross-entropy, 0.005
    for TRADES. Costs one more forward and backward with weight gradients (3 units; TRADES 6). Under
    DistributedDataParallel each rank perturbs by the gradient of its own share: the global one
    would cost a second all-reduce. Raises ValueError where no such weight is found.

    Example: `fastadv.training.PGDAT(threat, modifiers=[fastadv.training.AWP(0.01)])`.
    Source: Wu, Xia and Wang 2020, arXiv:2004.05884. Unlike theirs, no model is copied.
    """

    gamma: float = 0.01

    def __repr__(self) -> str:
        return f"fastadv.training.AWP({self.gamma})"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1:
            raise ValueError(f"gamma must lie in (0, 1); got {self.gamma}")

    def __call__(self, objective: WeightLoss, model: Reduced, batch: Crafted) -> torch.Tensor:
        inner = model.others
        if not isinstance(inner, nn.Module):
            raise TypeError(f"AWP needs an nn.Module; got {type(inner).__name__}")
        if any(isinstance(m, torch.jit.ScriptModule) for m in reach.every_module(inner)):
            raise TypeError(
                "AWP calls the model with other weights, which torch.jit does not allow: give it "
                "the module as it was before it was scripted or traced"
            )
        named = _perturbed(inner)
        weights = list(named.values())
        with (
            restored_generators(batch.x.device, batch.host_seed),
            statistics_policy(inner, "batch"),
        ):
            extra = tuple(rows.detach() for rows in model.extra)
            loss = objective(Reduced(inner, inner, model.objective, extra), batch.cut_off())
            grads = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        sizes, lengths = [w.norm() for w in weights], [g.norm() for g in grads]
        moved = {
            name: w + (self.gamma * size / (length + _TINY) * g).detach()
            for (name, w), g, size, length in zip(named.items(), grads, sizes, lengths, strict=True)
        }
        perturbed = Reduced(
            _with_weights(model.first, inner, moved),
            _with_weights(inner, inner, moved),
            model.objective,
            model.extra,
        )
        return objective(perturbed, batch)


def _perturbed(inner: nn.Module) -> dict[tuple[int, str], nn.Parameter]:
    """The weights to perturb, by the number of their module among those that `inner` reaches and
    by name; each once."""
    named = {
        (i, name): p
        for i, root in enumerate(reach.modules_behind(inner))
        for name, p in root.named_parameters()
        if p.requires_grad and p.ndim > 1
    }
    once = {id(p): at for at, p in reversed(named.items())}
    named = {at: p for at, p in named.items() if once[id(p)] == at}
    if not named:
        raise ValueError(
            f"AWP perturbs weights of two or more dimensions that require a gradient; "
            f"{type(inner).__name__} has none that are found, as they are in an nn.ModuleList"
        )
    return named


def _with_weights(
    called: Model, inner: nn.Module, moved: Mapping[tuple[int, str], torch.Tensor]
) -> Model:
    """`called`, which is `inner` or its wrapper, with other weights in `inner` and what it reaches.

    Nets that are no submodules (in a list, say) become some of one module around all of them.
    """
    assert isinstance(called, nn.Module), "a wrapper of a module is one"
    prefix = "" if called is inner else "module."
    own = {prefix + name: w for (i, name), w in moved.items() if i == 0}
    if len(own) == len(moved):
        return lambda *given: functional_call(called, own, given)
    around = _Around([called, *reach.modules_behind(inner)[1:]])
    every = {f"0.{name}": w for name, w in own.items()}
    every |= {f"{i}.{name}": w for (i, name), w in moved.items() if i}
    return lambda *given: functional_call(around, every, given)


class _Around(nn.ModuleList):
    """Several modules as one, which calls the first."""

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self[0](*given)


@dataclass(frozen=True)
class GradAlign:
    """The loss + weight * (1 - mean cos(g(x), g(x + u))), g the input gradient, u a random start.

    Keeps the loss locally linear, which single-step methods need at large eps. weight: 0.2 at eps
    8/255 of CIFAR-10. A double backward: two forwards and about eight more units. The gradients are
    those of the cross-entropy, or of the step's objective; where x requires a gradient, this term
    does not reach it.

    Example: `fastadv.training.FastAT(threat, modifiers=[fastadv.training.GradAlign(0.2)])`.
    Source: Andriushchenko and Flammarion 2020, arXiv:2007.02617.
    """

    weight: float = 0.2

    def __repr__(self) -> str:
        return f"fastadv.training.GradAlign({self.weight})"

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight must not be negative; got {self.weight}")

    def __call__(self, objective: WeightLoss, model: Reduced, batch: Crafted) -> torch.Tensor:
        loss = objective(model, batch)
        x = batch.x.detach()
        near = start_point(
            batch.threat,
            x,
            seed=batch.seed + 1,
            sample_ids=batch.sample_ids,
            draw=batch.draw,
            clamp_start=False,
            eps=batch.eps,
            region=batch.region,
        )
        with statistics_policy(model.others, "batch"):
            here, there = (self._gradient(model, at, batch) for at in (x, near))
        return loss + self.weight * (1 - F.cosine_similarity(here, there, dim=1).mean())

    @staticmethod
    def _gradient(model: Reduced, x: torch.Tensor, batch: Crafted) -> torch.Tensor:
        def gradient(at: torch.Tensor) -> torch.Tensor:
            leaf = at.detach().requires_grad_()
            loss = batch.loss(model(leaf), "sum")
            (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
            return grad

        return batch.differentiate(gradient, x, model.past_wrapper).reshape(len(x), -1)


@dataclass(frozen=True)
class CleanMixing:
    """(1 - weight) * the loss + weight * CE(f(x), y): clean samples beside the adversarial ones.

    Of a step with an objective, weight * the mean of its losses at x.

    Example: `fastadv.training.FastAT(threat, modifiers=[fastadv.training.CleanMixing(0.5)])`.
    Source: Kurakin, Goodfellow and Bengio 2017, arXiv:1611.01236.
    """

    weight: float = 0.5

    def __repr__(self) -> str:
        return f"fastadv.training.CleanMixing({self.weight})"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must lie in [0, 1]; got {self.weight}")

    def __call__(self, objective: WeightLoss, model: Reduced, batch: Crafted) -> torch.Tensor:
        loss = objective(model, batch)
        clean = batch.loss(model(batch.x), "mean")
        return (1 - self.weight) * loss + self.weight * clean
