"""Steps, heads and row ops that `op_cases` lacks, each beside its own eager reference.

Their eager chains would be dozens of lines of the papers' code; the reference is that chain, and
defines the result. Of losses and of the L1 projection there are other people's chains too.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.ops import cases as op_cases
from benchmarks.ops.cases import Build, OpCase, Shape, close_to, step_tensors
from fastadv import ops
from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.heads.arguments import Kind

Call = Callable[[], torch.Tensor]

EXACT = "max difference; the reference defines the bits, tolerance one rounding of 1.0"
SUMS = "max difference; sums in other orders"
EPS = 8 / 255
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def against_reference(
    name: str,
    shape: Shape,
    dtype: torch.dtype,
    build: Callable[[], Call],
    *,
    ulps: float,
    bytes_moved: int | None,
    metric: str = EXACT,
    chain: Call | None = None,
) -> OpCase:
    """build: makes tensors and returns a call on them, thrice: expected, fused, eager.

    chain: of plain torch, in place of the reference as the eager one.
    ulps: of the largest result, at least of 1.0; in half precision, whose results are computed in
    fp32 and rounded once, two at most.
    """
    slow = build()
    with backend.use_backend("reference"):
        expected = build()()
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    ulps = (ulps if dtype == torch.float32 else min(ulps, 2)) * max(1.0, largest)

    def eager() -> torch.Tensor:
        with backend.use_backend("reference"):
            return slow()

    check = close_to(expected, metric, ulps)
    return OpCase(name, shape, dtype, build(), chain or eager, bytes_moved, check)


@dataclass(frozen=True)
class RowState:
    """The (B,) state that steps read: all slots active, in mid-attack, none fooled."""

    slots: torch.Tensor
    eps: torch.Tensor
    labels: torch.Tensor
    loss: torch.Tensor
    best: torch.Tensor

    @classmethod
    def of(cls, batch: int, device: torch.device, eps: float) -> "RowState":
        slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=device)
        slots[:, columns.STEP] = 4
        slots[:, columns.SUCCESS_STEP] = -1
        slots[:, columns.ACTIVE] = 1
        full = functools.partial(torch.full, (batch,), device=device)
        return cls(slots, full(eps), torch.arange(batch, device=device) % 10, full(-1.0), full(0.0))


def radius_of(norm: str, shape: Shape) -> float:
    """An eps at which about half of the projections have something to do."""
    size = op_cases.root_of_size(shape)
    return {"linf": EPS, "l2": 0.01 * size, "l1": 0.01 * size**2}[norm]


def step(norm: str, form: str) -> Build:
    """`linf_step_` and its kin with momentum, or writing the model's normalised input."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        t = step_tensors(shape, dtype, device, EPS)
        op = {"linf": ops.linf_step_, "l2": ops.l2_step_, "l1": ops.l1_step_}[norm]
        eps = radius_of(norm, shape)

        def make() -> Call:
            x_adv, more = t.x_adv.clone(), {}
            if form == "momentum":
                more["momentum"] = torch.zeros_like(t.x, dtype=torch.float32)
            else:
                mean, std = (torch.tensor(v, device=device) for v in (_MEAN, _STD))
                more |= {"model_input": torch.empty_like(t.x), "mean": mean, "std": std}
            return lambda: op(x_adv, t.grad, t.x, step_size=eps / 4, eps=eps, **more)

        written = 4 * t.x.nbytes + (8 * t.x.numel() if form == "momentum" else t.x.nbytes)
        return against_reference(
            f"{norm}_step_ ({form.replace('_', ' ')})",
            shape,
            dtype,
            make,
            ulps=1 if norm == "linf" and form != "momentum" else 16,
            bytes_moved=written,
            metric=EXACT if norm == "linf" else SUMS,
        )

    return build


def project_l1(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    t = step_tensors(shape, dtype, device, 0.1)
    eps = radius_of("l1", shape)
    return against_reference(
        "project_l1",
        shape,
        dtype,
        lambda: lambda: ops.project_l1(t.x_adv, t.x, eps=eps),
        ulps=16,
        bytes_moved=3 * t.x.nbytes,
        metric=SUMS,
    )


def authors_project_l1(
    projection: Callable[..., torch.Tensor], shape: Shape, device: torch.device
) -> Call:
    """The authors' `L1_projection`, which sorts, on the tensors of `project_l1`."""
    t = step_tensors(shape, torch.float32, device, 0.1)
    delta, eps = t.x_adv - t.x, radius_of("l1", shape)
    return lambda: t.x_adv + projection(t.x, delta, eps)


def select_rows(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """Every second row is copied."""
    t = step_tensors(shape, dtype, device, EPS)
    flags = (torch.arange(shape[0], device=device) % 2).to(torch.int32)

    def make() -> Call:
        kept = t.x.clone()
        return lambda: ops.select_rows_(kept, t.x_adv, flags)

    copied = 2 * t.x[0].nbytes * (shape[0] // 2)
    return against_reference("select_rows_", shape, dtype, make, ulps=0, bytes_moved=max(copied, 1))


def augment(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """Bytes to floats with a random crop and flip; rows in a random order of twice as many."""
    generator = torch.Generator(device).manual_seed(0)
    size = (2 * shape[0], *shape[1:])
    images = torch.randint(256, size, generator=generator, device=device, dtype=torch.uint8)
    index = torch.randperm(len(images), generator=generator, device=device)[: shape[0]]
    crop = max(1, shape[2] // 8)

    def run() -> torch.Tensor:
        return ops.augment_batch(images, index, epoch=1, crop=crop, flip="random", dtype=dtype).x

    pixels = images[0].numel() * shape[0]
    moved = pixels * (1 + torch.finfo(dtype).bits // 8)
    return against_reference("augment_batch", shape, dtype, lambda: run, ulps=1, bytes_moved=moved)


def head(kind: Kind, tracked: bool = False) -> Build:
    """Another loss than the cross-entropy's; tracked: with the slot state, as an attack has it."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        batch, classes = shape
        generator = torch.Generator(device).manual_seed(0)
        logits = (4 * torch.randn(shape, generator=generator, device=device)).to(dtype)
        labels = torch.randint(classes, (batch,), generator=generator, device=device)
        # the three largest are 32, 31, 30: of ties, the gradient would go to any of them
        at = 7 * torch.arange(batch, device=device)
        for rank in range(3):
            logits.scatter_(1, ((at + rank) % classes)[:, None], 32.0 - rank)
        labels[::2] = (at % classes)[::2]  # the margin of what is wrong already has no gradient

        def make() -> Call:
            rows = RowState.of(batch, device, EPS)
            grad, prediction = torch.empty_like(logits), torch.empty_like(labels)
            correct = torch.empty(batch, dtype=torch.bool, device=device)
            state = (rows.slots, rows.best) if tracked else (None, None)

            def run() -> torch.Tensor:
                ops.loss_head_(
                    logits,
                    labels,
                    None,
                    None,
                    rows.loss,
                    grad,
                    prediction,
                    correct,
                    *state,
                    kind,
                    0.0,
                    10**6,
                    0,
                    False,
                    0,
                    False,
                )
                return grad

            return run

        return against_reference(
            f"loss_head_ ({kind}{', tracked' if tracked else ''})",
            shape,
            dtype,
            make,
            ulps=8,
            bytes_moved=2 * logits.nbytes + batch * (8 + 4 + 8 + 1),
            metric=SUMS,
            chain=None if tracked else _head_chain(kind, logits, labels),
        )

    return build


def _head_chain(kind: str, logits: torch.Tensor, labels: torch.Tensor) -> Call:
    """Margin or DLR loss by torch's own operations, autograd and argmax."""
    leaf, column = logits.clone().requires_grad_(), labels[:, None]

    def chain() -> torch.Tensor:
        with torch.enable_grad():
            own = leaf.gather(1, column)[:, 0]
            first, second, third = leaf.topk(3, 1).values.unbind(1)
            gap = own - torch.where(own == first, second, first)
            loss = -gap.relu() if kind == "margin" else -gap / (first - third + 1e-12)
            total = loss.sum()
        (result,) = torch.autograd.grad(total, leaf)
        # what an attack with early stop computes beside it
        torch.eq(leaf.detach().argmax(1), labels)
        return result

    return chain


IMAGE_OPS: dict[str, Build] = {
    "linf_model_input": step("linf", "model_input"),
    "select": select_rows,
    "augment": augment,
    "linf_momentum": step("linf", "momentum"),
    "l2_model_input": step("l2", "model_input"),
    "l1_model_input": step("l1", "model_input"),
    "project_l1": project_l1,
}
HEAD_OPS: dict[str, Build] = {
    "ce_tracked": head("cross_entropy", tracked=True),
    "margin_head": head("margin"),
    "dlr_head": head("dlr"),
}
