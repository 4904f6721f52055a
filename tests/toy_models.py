"""Toy models for tests of attacks: batch-invariant ones, planted ones, and spies."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import fastadv


class _TreeSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.size = rows.shape[-1]
        while rows.shape[-1] > 1:
            if rows.shape[-1] % 2:
                rows = F.pad(rows, (0, 1))
            half = rows.shape[-1] // 2
            rows = rows[..., :half] + rows[..., half:]
        return rows[..., 0].clone()

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0].unsqueeze(-1).expand(*grads[0].shape, ctx.size)


def tree_sum(rows: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension by elementwise halves: no order depends on the batch."""
    return _TreeSum.apply(rows)


class _EveryClass(torch.autograd.Function):
    """(B, size) to (B, classes, size); gradients are added class by class, in any batch alike."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, classes: int) -> torch.Tensor:
        return rows.unsqueeze(1).expand(-1, classes, -1)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        first, *others = grads[0].unbind(1)
        for grad in others:
            first = first + grad
        return first, None


class Quadratic(nn.Module):
    """logits_c = sum_i (w_ci x_i + v_ci x_i^2) + b_c: elementwise operations and tree sums only.

    Bit for bit the same for a sample alone, in a batch, and for any number of threads.
    """

    def __init__(
        self,
        size: int,
        classes: int = 5,
        *,
        seed: int = 0,
        curvature: float = 0.5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> nn.Parameter:
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            return nn.Parameter((values / size**0.5).to(dtype))

        self.weight = draw(classes, size)
        self.curvature = nn.Parameter(curvature * draw(classes, size).detach())
        self.bias = draw(classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(len(x), -1)
        if flat.shape[1] > 4096:  # all classes at once would leave the caches
            rows = zip(self.weight, self.curvature, self.bias, strict=True)
            return torch.stack([tree_sum(flat * w + flat * flat * v) + b for w, v, b in rows], 1)
        rows = _EveryClass.apply(flat, len(self.bias))
        return tree_sum(rows * self.weight + rows * rows * self.curvature) + self.bias


@dataclass(frozen=True)
class Problem:
    """A model with samples of mixed outcomes: clean-wrong, falling early, falling late, never."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor


_IMAGE = (3, 4, 4)


def mixed_problem(
    n: int = 40,
    shape: tuple[int, ...] = _IMAGE,
    *,
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    wrong_every: int = 9,
    curvature: float = 0.5,
) -> Problem:
    """x uniform in [0, 1]; y is the model's prediction, but every `wrong_every`-th is another."""
    size = int(torch.tensor(shape).prod())
    model = Quadratic(size, classes, seed=seed, curvature=curvature, dtype=dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.rand((n, *shape), generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[::wrong_every] = (y[::wrong_every] + 1) % classes
    return Problem(model, x, y)


# radii at which `mixed_problem` has every outcome within a few steps of a tenth of the radius
_THREATS = {"linf": (fastadv.Linf, 0.06), "l2": (fastadv.L2, 0.35), "l1": (fastadv.L1, 1.8)}
NORMS = tuple(_THREATS)
_ENTRIES = 12  # of L0, in which attacks without a radius are tested alone


def threat_of(norm: str, scale: float = 1.0, **more: object) -> fastadv.Linf:
    """The threat model of `norm`, whose radius suits `mixed_problem` where scale is 1."""
    if norm == "l0":
        return fastadv.L0(round(_ENTRIES * scale), **more)  # type: ignore[return-value]
    make, eps = _THREATS[norm]
    return make(eps * scale, **more)


class Counting(nn.Module):
    """A model that counts its forward and backward passes, in samples and in calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = self.backwards = self.calls = 0
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += len(x)
        self.calls += 1
        self.batches.append(len(x))
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, grad: torch.Tensor) -> None:
        if torch._C._functorch.is_legacy_batchedtensor(grad):
            raise RuntimeError("how many gradients come at once is not to be seen here")
        self.backwards += len(grad)


class Recording(nn.Module):
    """A model that keeps what `look(x)` returns at each of its calls."""

    def __init__(self, model: nn.Module, look) -> None:
        super().__init__()
        self.model = model
        self.look = look
        self.seen: list[object] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.look(x))
        return self.model(x)


class FailingAt(nn.Module):
    """A model that raises `error` at its call number `call`, counted from 0."""

    def __init__(self, model: nn.Module, call: int, error: BaseException) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.error = error
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.call:
            raise self.error
        return self.model(x)


class _SpyLinear(torch.autograd.Function):
    asked: list[tuple[bool, ...]] = []

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return x @ weight.t() + bias

    @staticmethod
    def backward(ctx, *grads):
        (grad,) = grads
        _SpyLinear.asked.append(tuple(ctx.needs_input_grad))
        return grad @ ctx.saved_tensors[0], None, None


class SpyLinear(nn.Linear):
    """A linear layer that records, for each backward pass, whose gradients it was asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _SpyLinear.apply(x, self.weight, self.bias)

    @property
    def asked(self) -> list[tuple[bool, ...]]:
        """(x, weight, bias) of each backward pass of any such layer since `clear`."""
        return _SpyLinear.asked

    def clear(self) -> None:
        _SpyLinear.asked.clear()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, dtype and bits; NaN equals NaN, -0 is not 0."""
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))


RESULT_TENSORS = ("x_adv", "success", "loss", "distance", "step", "prediction", "clean_prediction")


def differing_fields(a: fastadv.AttackResult, b: fastadv.AttackResult) -> list[str]:
    """Names of the per-sample fields in which two results differ in any bit."""
    different = []
    for name in RESULT_TENSORS:
        one, other = getattr(a, name), getattr(b, name)
        if one is None or other is None:
            if one is not other:
                different.append(name)
        elif not same_bits(one, other):
            different.append(name)
    return different


def rows_of(result: fastadv.AttackResult, rows: torch.Tensor) -> fastadv.AttackResult:
    """`result` with its samples reordered."""
    picked = {}
    for name in RESULT_TENSORS:
        value = getattr(result, name)
        picked[name] = None if value is None else value[rows]
    return fastadv.AttackResult(**picked, forwards=result.forwards, backwards=result.backwards)


def joined(results: list[fastadv.AttackResult]) -> fastadv.AttackResult:
    """The results of consecutive calls as one."""
    whole = {}
    for name in RESULT_TENSORS:
        values = [getattr(result, name) for result in results]
        whole[name] = None if values[0] is None else torch.cat(values)
    return fastadv.AttackResult(
        **whole,
        forwards=sum(result.forwards for result in results),
        backwards=sum(result.backwards for result in results),
    )


def assert_mixed(result: fastadv.AttackResult, y: torch.Tensor, steps: int) -> None:
    """The result has clean-wrong samples, some that fall early, some late, and some that never do.

    Without this, a test of what happens to them could not fail.
    """
    assert result.clean_prediction is not None
    wrong = result.clean_prediction != y
    step = result.step[~wrong]
    assert wrong.any() and not wrong.all()
    assert ((step >= 0) & (step <= steps // 2)).any(), f"none falls early: {step.tolist()}"
    assert (step > steps // 2).any(), f"none falls late: {step.tolist()}"
    assert (step == -1).any(), f"all fall: {step.tolist()}"
