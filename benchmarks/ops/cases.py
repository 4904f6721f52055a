"""Each op beside the eager chain it replaces, on its own buffers, with the bytes it must move."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import harness, schema
from fastadv.ops import backend
from fastadv.ops.heads import loss_head as heads
from fastadv.ops.noise import start
from fastadv.ops.steps import l1, l2, linf

Shape = tuple[int, ...]

_FLOAT32_ULP = 2.0**-23  # of 1.0


@dataclass(frozen=True)
class OpCase:
    """One op at one shape and dtype.

    fused, eager: calls without arguments, each on buffers of its own; the first call of each gives
    the compared result. floor_bytes: what must be read and written once, None where that depends
    on data. check: see `harness`.
    """

    name: str
    shape: Shape
    dtype: torch.dtype
    fused: harness.Run
    eager: harness.Run
    floor_bytes: int | None
    check: harness.Check


Build = Callable[[Shape, torch.dtype, torch.device], OpCase]


@dataclass(frozen=True)
class StepTensors:
    """Random tensors of a step: x in [0, 1], x_adv in the ball, grad with zeros; eps as given."""

    x_adv: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor


def step_tensors(shape: Shape, dtype: torch.dtype, device: torch.device, eps: float) -> StepTensors:
    # made where they are used: on a host 256 images of ImageNet's size take seconds
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device}
    x = torch.rand(shape, **options)
    grad = torch.randn(shape, **options) * 1e-3
    grad[torch.rand(shape, **options) < 0.05] = 0.0
    x_adv = (x + eps * (2 * torch.rand(shape, **options) - 1)).clamp(0, 1)
    return StepTensors(*(t.to(dtype) for t in (x_adv, grad, x)))


def close_to(expected: torch.Tensor, metric: str, ulps: float) -> harness.Check:
    tolerance = ulps * _FLOAT32_ULP * max(1.0, torch.finfo(expected.dtype).eps / _FLOAT32_ULP)
    expected = expected.clone()

    def check(name: str, result: torch.Tensor) -> schema.Equality:
        error = harness.max_difference(result, expected)
        return schema.Equality(error, tolerance, metric, "fastadv's eager reference")

    return check


def linf_step(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """The L-infinity step against torchattacks' chain of seven kernels."""
    eps, step_size = 8 / 255, 2 / 255
    t = step_tensors(shape, dtype, device, eps)
    x_adv = t.x_adv.clone()

    def eager() -> torch.Tensor:
        moved = t.x_adv + step_size * t.grad.sign()
        delta = torch.clamp(moved - t.x, min=-eps, max=eps)
        return torch.clamp(t.x + delta, min=0, max=1)

    return OpCase(
        "linf_step_",
        shape,
        dtype,
        lambda: linf.linf_step_(x_adv, t.grad, t.x, step_size=step_size, eps=eps),
        eager,
        4 * t.x.nbytes,
        close_to(
            linf.linf_step_reference(t.x_adv, t.grad, t.x, step_size=step_size, eps=eps),
            "max difference; the eager chain adds delta back, which rounds once more",
            1,
        ),
    )


def l2_step(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """The L2 step against torchattacks' chain (norm, scale, add, norm, scale, add, clamp)."""
    eps, step_size = 0.5, 0.125
    t = step_tensors(shape, dtype, device, eps / root_of_size(shape))
    x_adv = t.x_adv.clone()
    column = (-1, *[1] * (len(shape) - 1))

    def eager() -> torch.Tensor:
        length = torch.norm(t.grad.flatten(1), p=2, dim=1) + 1e-10
        moved = t.x_adv + step_size * (t.grad / length.view(column))
        delta = moved - t.x
        factor = eps / torch.norm(delta.flatten(1), p=2, dim=1)
        factor = torch.min(factor, torch.ones_like(factor))
        return torch.clamp(t.x + delta * factor.view(column), min=0, max=1)

    return OpCase(
        "l2_step_",
        shape,
        dtype,
        lambda: l2.l2_step_(x_adv, t.grad, t.x, step_size=step_size, eps=eps),
        eager,
        4 * t.x.nbytes,
        close_to(
            l2.l2_step_reference(t.x_adv, t.grad, t.x, step_size=step_size, eps=eps),
            "max difference; the norms are summed in other orders",
            4,
        ),
    )


def l1_step(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """The L1 step with its exact projection; its eager chain is fastadv's own reference."""
    options: dict[str, Any] = {"step_size": 1.0, "eps": 12.0, "sparsity": 0.2}
    t = step_tensors(shape, dtype, device, 12.0 / root_of_size(shape) ** 2)
    x_adv = t.x_adv.clone()
    return OpCase(
        "l1_step_",
        shape,
        dtype,
        lambda: l1.l1_step_(x_adv, t.grad, t.x, **options),
        lambda: l1.l1_step_reference(t.x_adv, t.grad, t.x, **options),
        4 * t.x.nbytes,
        close_to(
            l1.l1_step_reference(t.x_adv, t.grad, t.x, **options),
            "max difference; the threshold comes from sums in other orders",
            16,
        ),
    )


def ce_head(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """Loss, dL/dlogits, prediction and correctness against cross_entropy, autograd and argmax.

    shape: (B, C).
    """
    batch, classes = shape
    generator = torch.Generator(device).manual_seed(0)
    logits = (4 * torch.randn(shape, generator=generator, device=device)).to(dtype)
    labels = torch.randint(classes, (batch,), generator=generator, device=device)
    loss = torch.empty(batch, dtype=torch.float32, device=device)
    grad, prediction = torch.empty_like(logits), torch.empty_like(labels)
    correct = torch.empty(batch, dtype=torch.bool, device=device)
    leaf = logits.clone().requires_grad_()

    def fused() -> torch.Tensor:
        heads.loss_head_(
            logits,
            labels,
            None,
            None,
            loss,
            grad,
            prediction,
            correct,
            None,
            None,
            "cross_entropy",
            0.0,
            0,
            0,
            False,
            0,
            False,
        )
        return grad

    def eager() -> torch.Tensor:
        with torch.enable_grad():
            total = F.cross_entropy(leaf, labels, reduction="sum")
        (result,) = torch.autograd.grad(total, leaf)
        # what an attack with early stop computes beside it
        torch.eq(leaf.detach().argmax(1), labels)
        return result

    expected = logits.double().softmax(1) - F.one_hot(labels, classes)
    return OpCase(
        "loss_head_ (ce)",
        shape,
        dtype,
        fused,
        eager,
        2 * logits.nbytes + batch * (8 + 4 + 8 + 1),
        close_to(expected.to(dtype), "max difference of dL/dlogits to float64", 4),
    )


def random_start(kind: start.Kind) -> Build:
    """A start of `kind`, beside a chain of the L-infinity or the L2 ball's."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        """A random start against torch's generator: other numbers, so only the ball is compared."""
        x = step_tensors(shape, dtype, device, 0.1).x
        eps = 8 / 255 if kind == "linf_uniform" else 0.5
        ids = torch.arange(len(x), device=device)
        expected = start.random_start_reference(x, eps=eps, seed=0, sample_ids=ids, kind=kind)
        exact = close_to(expected, "max difference; starts with a norm agree to a few ulp", 8)
        column = (-1, *[1] * (len(shape) - 1))

        def eager() -> torch.Tensor:
            if kind == "linf_uniform":
                delta = torch.empty_like(x).uniform_(-eps, eps)
            else:
                delta = torch.empty_like(x).normal_()
                radius = torch.rand(len(x), device=device) ** (1 / x[0].numel())
                delta *= (eps * radius / delta.flatten(1).norm(p=2, dim=1)).view(column)
            return torch.clamp(x + delta, min=0, max=1)

        def check(name: str, result: torch.Tensor) -> schema.Equality:
            if name.startswith("fastadv"):
                return exact(name, result)
            distance = (result.double() - x.double()).flatten(1)
            p = float("inf") if kind == "linf_uniform" else 2
            excess = float((torch.linalg.vector_norm(distance, p, dim=1) - eps).max())
            tolerance = 4 * torch.finfo(dtype).eps
            return schema.Equality(
                max(0.0, excess), tolerance, "excess over eps: other random numbers", "the ball"
            )

        return OpCase(
            f"random_start ({kind})",
            shape,
            dtype,
            lambda: start.random_start(x, eps=eps, seed=0, sample_ids=ids, kind=kind),
            eager,
            2 * x.nbytes,
            check,
        )

    return build


def root_of_size(shape: Shape) -> float:
    """sqrt(d): turns an L2 radius into a radius an element."""
    return float(torch.Size(shape[1:]).numel()) ** 0.5


IMAGE_OPS = {
    "linf_step": linf_step,
    "l2_step": l2_step,
    "l1_step": l1_step,
    "linf_start": random_start("linf_uniform"),
    "l2_start": random_start("l2_uniform"),
}
HEAD_OPS = {"ce_head": ce_head}


def providers(case: OpCase, *, device: torch.device, compiled: bool) -> dict[str, harness.Run]:
    """fastadv with the backend it chooses, the eager chain, and if asked torch.compile of it."""
    chosen, _ = backend.explain(device)
    runs: dict[str, harness.Run] = {f"fastadv ({chosen})": case.fused, "eager chain": case.eager}
    if compiled:
        # a shape at a time: a second one would otherwise be compiled for any
        runs["torch.compile of the chain"] = torch.compile(case.eager, dynamic=False)
    return runs
