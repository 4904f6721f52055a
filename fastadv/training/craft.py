"""Crafting in the middle of training: frozen weights, a policy for running statistics, no trace."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadv import losses, outputs, recorded
from fastadv.execution import Precision
from fastadv.graphs.parallel import WRAPPERS
from fastadv.isolation import (
    Model,
    differentiable_in_eval,
    is_training,
    restored_buffers,
    restored_generators,
)
from fastadv.objective import Objective
from fastadv.ops.heads import loss_head as heads
from fastadv.reach import every_module, every_parameter
from fastadv.region import Region
from fastadv.threat_model import ThreatModel
from fastadv.training import casts

BNPolicy = Literal["batch", "eval", "train"]
BN_POLICIES: tuple[BNPolicy, ...] = get_args(BNPolicy)
HALVES = (torch.float16, torch.bfloat16)
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# keeps what a robust network's fp16 gradient would round to zero: with the sum of the losses and
# this factor 4.8 % are lost, with their mean 87 %
FP16_SCALE = 1024.0

InputGradient = Callable[[torch.Tensor], torch.Tensor]  # x -> a gradient there, both (B, ...)
# (gradient, x, model) -> the gradient to use at x, for instance that of a point beside it
Differentiate = Callable[[InputGradient, torch.Tensor, Model], torch.Tensor]


def directly(gradient: InputGradient, x: torch.Tensor, model: Model) -> torch.Tensor:
    """The gradient at x itself."""
    return gradient(x)


def inner_module(model: Model) -> Model:
    """What data parallelism wraps: calling it moves no buffer and reduces no gradient."""
    while isinstance(model, WRAPPERS):
        model = model.module
    return model


@contextlib.contextmanager
def in_precision(precision: Precision | None, device: torch.device) -> Iterator[None]:
    """Autocast to `precision`, no autocast for "fp32", the surrounding one for None."""
    if precision is None:
        yield
    else:
        dtype = PRECISIONS.get(precision)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            yield


@contextlib.contextmanager
def frozen(model: Model, *, but: Collection[nn.Parameter] = ()) -> Iterator[None]:
    """No parameter requires a gradient: neither autograd nor a compiled backward computes one.

    Eager autograd leaves weight gradients out by itself where only the input's is asked for; the
    backward of a model under torch.compile, and of a custom Function, does not. but: those that no
    such backward sees, which stay as they are.
    """
    kept = {id(p) for p in but}
    trainable = [p for p in every_parameter(model) if p.requires_grad and id(p) not in kept]
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trainable:
            p.requires_grad_(True)


@contextlib.contextmanager
def statistics_policy(model: Model, bn: BNPolicy) -> Iterator[None]:
    """How layers that keep statistics behave: "batch", "eval" or "train".

    "eval": every submodule in eval mode. "train": modes as they are, running statistics move.
    "batch": modes as they are, batch statistics, and no buffer keeps a change.
    """
    modules = every_module(model)
    training = [m for m in modules if is_training(m)] if bn != "train" else []
    with contextlib.ExitStack() as stack:
        if bn == "eval":
            stack.enter_context(differentiable_in_eval(modules))
            for m in training:
                m.training = False
            stack.callback(_set_all, training, "training", True)
        elif bn == "batch":
            tracking = [m for m in training if _obeys_its_flag(m) and m.track_running_stats]
            # then forward hands no running statistics to the op
            _set_all(tracking, "track_running_stats", False)
            stack.callback(_set_all, tracking, "track_running_stats", True)
            others = [m for m in training if not _obeys_its_flag(m)]
            buffers = [b for m in others for b in m.buffers(recurse=False)]
            buffers += (b for m in recorded.left_in_training(modules) for b in m.buffers())
            stack.enter_context(restored_buffers(buffers))
        yield


def _obeys_its_flag(module: nn.Module) -> bool:
    """Whether track_running_stats stops the updates: not for InstanceNorm, nor for subclasses that
    have a forward of their own."""
    # None of a scripted module, whose class has no forward to look at
    forward = getattr(type(module), "forward", None)
    return forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _set_all(modules: Sequence[nn.Module], name: str, value: bool) -> None:
    for m in modules:
        setattr(m, name, value)


@contextlib.contextmanager
def crafting(
    model: Model, *, bn: BNPolicy, precision: Precision | None, device: torch.device, seed: int
) -> Iterator[None]:
    """Inside: frozen weights, the `bn` policy, `precision`, own random state; then all as before.

    seed: what a random model (dropout) draws is reproducible, and the global generators are put
    back. Under autocast the weights of torch's own layers are not frozen but cast once, see
    `casts.kept`.
    """
    with (
        restored_generators(device, seed),
        in_precision(precision, device),
        casts.kept(model, device) as cast,
        frozen(model, but=cast),
        statistics_policy(model, bn),
    ):
        yield


class Ascent(NamedTuple):
    """`steps` steps of `step_size` up `loss`, in the ball of radius eps of `threat`; both in units
    of the radii where elements have their own, as their `Region` says."""

    threat: ThreatModel
    steps: int
    step_size: float
    eps: float
    loss: losses.LossName = "ce"


def ascend(
    model: Model,
    x_adv: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    ascent: Ascent,
    *,
    reference: torch.Tensor | None = None,
    objective: Objective | None = None,
    differentiate: Differentiate = directly,
    region: Region | None = None,
) -> torch.Tensor:
    """The fused steps of `ascent` on x_adv, in place, inside `crafting`; no synchronisation.

    The losses of samples are summed: a mean would round half-precision gradients to zero.
    objective: whose loss is ascended in place of the ascent's. differentiate: how the gradient at
    an iterate is taken. region: where elements may go. Returns the losses where it is taken first,
    (B,).
    """
    check = losses.check_logits if objective is None else losses.check_rows
    # heads compute in float32 by themselves, but a half output's gradient is scaled in float32
    lifted = HALVES if objective is not None else (torch.float16,)
    first: torch.Tensor | None = None

    def gradient(at: torch.Tensor) -> torch.Tensor:
        nonlocal first
        leaf = at.detach().requires_grad_()
        with torch.enable_grad():
            output = outputs.logits_in(model(leaf), x)
            check(output, x)
            half = output.dtype == torch.float16
            output = output.float() if output.dtype in lifted else output
        if objective is None:
            loss, grad, *_ = heads.loss_head(output, y, loss=ascent.loss, reference=reference)
        else:
            loss, grad = _judged(objective, output, y)
        first = loss if first is None else first
        return input_gradient(output, leaf, grad.mul_(FP16_SCALE) if half else grad)

    box = None if region is None else region.box(x, ascent.eps, like=x_adv)
    for _ in range(ascent.steps):
        grad = differentiate(gradient, x_adv, model)
        ascent.threat.step_(x_adv, grad, x, step_size=ascent.step_size, eps=ascent.eps, box=box)
    assert first is not None, "steps is at least 1: checked by the constructors"
    return first


def _judged(
    objective: Objective, output: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of an objective, (B,), and the gradient of their sum by the output."""
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        rows = objective.losses(leaf, y)
    if not rows.requires_grad:
        raise ValueError(
            f"the loss of {objective!r} has no gradient: it is detached, or does not depend on the "
            "output differentiably"
        )
    (grad,) = torch.autograd.grad(rows, leaf, torch.ones_like(rows))
    return rows.detach(), grad


def input_gradient(
    output: torch.Tensor, leaf: torch.Tensor, grad_output: torch.Tensor
) -> torch.Tensor:
    """d <output, grad_output> / d leaf; ValueError if no gradient flows."""
    grad = None
    if output.requires_grad:
        (grad,) = torch.autograd.grad(output, leaf, grad_output, allow_unused=True)
    if grad is None:
        raise ValueError(
            "the model's output does not depend on its input (a detached copy?): nothing can be "
            "crafted; wrap the part that blocks the gradient in fastadv.BPDA"
        )
    return grad
