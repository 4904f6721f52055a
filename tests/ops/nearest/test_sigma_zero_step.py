"""Sigma-zero's step: its rules against a simulation in float64 by autograd, for what may run."""

import pytest
import torch
from radius_rules import IMAGES, INF, NAN, STEPS, State

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.nearest.sparse import sigma_zero_step_

_EACH = pytest.mark.parametrize(
    "implementation", ["reference", "compiled", "triton"], indirect=True
)


class SparseState(State):
    """As that of DDN, with what sigma-zero remembers; every third entry is that of x."""

    def __init__(self, size, device, dtype=torch.float32):
        super().__init__(size, device, dtype)
        compute = self.loss.dtype
        del self.radius, self.limit
        self.x_adv[:, ::3] = self.x[:, ::3]
        away = (self.x_adv != self.x).sum(1).to(compute)
        self.distance = torch.where(self.distance < INF, away + 1, self.distance)
        self.threshold = torch.linspace(0.0, 0.3, len(self.x), dtype=compute, device=device)
        generator = torch.Generator().manual_seed(1)
        shape = self.x.shape
        self.square = torch.rand(shape, generator=generator).to(device, compute)
        self.mean = torch.randn(shape, generator=generator).to(device, compute)
        rates = torch.linspace(1.0, 0.1, STEPS, dtype=compute, device=device)
        self.schedule = torch.stack([rates, 1 + rates, rates / 50]).contiguous()

    def clone(self):
        other = object.__new__(type(self))
        other.__dict__ = {k: v.clone() for k, v in self.__dict__.items()}
        return other

    def step(self, **options):
        images = (getattr(self, name) for name in IMAGES)
        named = {k: v for k, v in vars(self).items() if k not in IMAGES}
        sigma_zero_step_(*images, **named, **options)
        return self


def _slope(d, g, loss, smoothing):
    """Of max(-loss, 0) + mean(d^2 / (d^2 + smoothing)), over its largest entry; g: of loss."""
    leaf = d.clone().requires_grad_()
    count = (leaf**2 / (leaf**2 + smoothing)).mean()
    slope = torch.autograd.grad(count, leaf)[0]
    if not loss > 0:
        slope = slope - g
    return slope / slope.abs().max().clamp(min=1e-12)


def _simulate(s, *, smoothing=1e-3, unit=1.0, targeted=False, stop_early=False):
    for i in range(len(s.x)):
        slot, step = s.slots[i], int(s.slots[i, columns.STEP])
        if slot[columns.ACTIVE] == 0:
            continue
        x_adv, x, g = (t[i].double() for t in (s.x_adv, s.x, s.grad))
        length = int((x_adv != x).sum())
        if s.loss[i].isnan():
            slot[columns.FAULT] |= columns.FAULT_NAN_LOGITS
        hit = bool(s.prediction[i] == s.aims[i])
        fooled = hit == targeted and not bool(s.loss[i].isnan())
        if fooled and length < s.distance[i]:
            s.closest[i], s.distance[i] = s.x_adv[i], length
            slot[columns.NEAREST_STEP] = step
        within = fooled and length <= s.eps[i]
        if within and slot[columns.SUCCESS_STEP] < 0:
            slot[columns.SUCCESS_STEP] = step
        if step == STEPS - 1 or (stop_early and within):
            slot[columns.ACTIVE] = 0
            continue
        slot[columns.STEP] = step + 1
        rate, spread, change = s.schedule[:, step].double().tolist()
        d = (x_adv - x) / unit
        slope = _slope(d, g.nan_to_num(0.0, 0.0, 0.0) * unit, s.loss[i], smoothing)
        mean = 0.9 * s.mean[i].double() + 0.1 * slope
        square = 0.999 * s.square[i].double() + 0.001 * slope**2
        s.mean[i], s.square[i] = mean, square
        u = d - rate * mean / (square.sqrt() * spread + 1e-8)
        moved = (x + unit * u).clamp(0, 1)
        threshold = min(max(float(s.threshold[i]) + (change if fooled else -change), 0.0), 1.0)
        s.threshold[i] = threshold
        s.x_adv[i] = torch.where((moved - x).abs() / unit < threshold, x, moved)
    return s


def _assert_agree(got, expected, tolerance):
    assert torch.equal(got.slots, expected.slots)
    assert torch.equal(got.distance, expected.distance)
    for name in ("x_adv", "closest", "threshold", "mean", "square"):
        a, b = getattr(got, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (5, {}),
        (784, {}),
        (4100, {}),
        (75, dict(targeted=True)),
        (75, dict(stop_early=True, smoothing=0.01, unit=2.0)),
    ],
)
@_EACH
def test_every_rule(size, options, implementation, device):
    state = SparseState(size, device)
    expected = _simulate(state.clone(), **options)
    got = state.clone().step(**options)
    _assert_agree(got, expected, 5e-6)
    for name in ("x", "grad", "loss", "aims", "prediction", "eps", "schedule"):
        assert torch.equal(getattr(got, name).nan_to_num(7.0), getattr(state, name).nan_to_num(7.0))


@_EACH
def test_float64_and_half_precision(implementation, device):
    state = SparseState(75, device, torch.float64)
    _assert_agree(state.clone().step(), _simulate(state.clone()), 1e-12)
    half = SparseState(75, device, torch.bfloat16)
    full = half.clone()
    for name in IMAGES:
        setattr(full, name, getattr(full, name).float())
    half.step(), full.step()
    assert torch.equal(half.slots, full.slots)
    torch.testing.assert_close(half.x_adv.float(), full.x_adv, atol=2**-8, rtol=0)


@_EACH
def test_entries_that_are_put_back_have_the_bits_of_x_and_finished_rows_keep_theirs(
    implementation, device
):
    state = SparseState(75, device)
    state.x[:, ::5] = -0.0
    before = state.clone()
    state.step()
    moved = state.slots[:, columns.ACTIVE] != 0
    x_adv, x = state.x_adv[moved], state.x[moved]
    same = x_adv == x
    assert same.any() and not same.all()
    assert torch.equal(x_adv[same].view(torch.int32), x[same].view(torch.int32))
    before.slots[:, columns.ACTIVE] = 0
    kept = before.clone().step()
    for name, value in vars(before).items():
        assert torch.equal(getattr(kept, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@_EACH
def test_what_is_not_finite_counts_as_0(implementation, device):
    state, clean = (SparseState(75, device) for _ in range(2))
    state.grad[:, ::4] = NAN
    clean.grad[:, ::4] = 0.0
    assert torch.equal(state.step().x_adv, clean.step().x_adv)


@pytest.mark.parametrize("implementation", ["compiled", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(implementation):
    state = SparseState(784, "cpu")
    together = state.clone().step()
    for i in range(len(state.x)):
        alone = object.__new__(SparseState)
        own = {k: v if k == "schedule" else v[i : i + 1].clone() for k, v in vars(state).items()}
        alone.__dict__ = own
        for name, value in vars(alone.step()).items():
            other = getattr(together, name)
            other = other if name == "schedule" else other[i : i + 1]
            assert torch.equal(value.nan_to_num(7.0), other.nan_to_num(7.0)), (i, name)


def test_one_launch_and_an_empty_batch(count_launches, device):
    with backend.use_backend("triton"), count_launches() as launches:
        SparseState(5000, device).step()
    assert launches == ["sigma_zero_step_kernel"]
    empty = object.__new__(SparseState)
    empty.__dict__ = {
        k: v if k == "schedule" else v[:0] for k, v in vars(SparseState(5, device)).items()
    }
    empty.step()


def test_what_does_not_fit_is_refused():
    wrong = (("threshold", torch.ones(2)), ("mean", torch.ones(2, 5)), ("schedule", torch.ones(2)))
    for name, value in wrong:
        state = SparseState(5, "cpu")
        setattr(state, name, value)
        with pytest.raises(ValueError, match=name):
            state.step()
