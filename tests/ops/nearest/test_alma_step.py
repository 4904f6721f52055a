"""ALMA's step: its rules against a simulation in float64 by autograd, for what an op may run."""

import pytest
import torch
from radius_rules import IMAGES, INF, NAN, ROWS, STEPS, State

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.nearest.lagrangian import Course, alma_step_

_EACH = pytest.mark.parametrize(
    "implementation", ["reference", "compiled", "triton"], indirect=True
)
COURSE = Course(
    rate=0.1,
    reach=0.0,
    fall=-4.6,
    unit=1.0,
    rms=0.9,
    inertia=0.8,
    smoothing=0.1,
    improvement=0.95,
    increase=1.2,
    steps=STEPS,
    check_steps=3,
)


class AlmaState(State):
    """As that of DDN, with what ALMA remembers."""

    def __init__(self, size, device, dtype=torch.float32):
        super().__init__(size, device, dtype)
        compute = self.loss.dtype
        del self.radius, self.limit, self.schedule
        # multipliers of every size, and ratios that fell enough, or not, since the last check
        rows = torch.arange(len(ROWS), dtype=compute, device=device)
        memory = 0.1 + rows, 0.5 + rows / 3, -self.loss.nan_to_num(0.0) * (1 + rows % 2) + 0.01
        found_at = torch.where(self.distance < INF, 1.0, STEPS + 1.0)
        rates = torch.full_like(rows, COURSE.rate)
        self.memory = torch.stack([*memory, found_at, rates], 1).contiguous()
        generator = torch.Generator().manual_seed(1)
        shape = self.x.shape
        self.square = torch.rand(shape, generator=generator).to(device, compute)
        self.momentum = torch.randn(shape, generator=generator).to(device, compute)

    def clone(self):
        other = object.__new__(AlmaState)
        other.__dict__ = {k: v.clone() for k, v in self.__dict__.items()}
        return other

    def step(self, course=COURSE, **options):
        images = (getattr(self, name) for name in IMAGES)
        named = {k: v for k, v in vars(self).items() if k not in IMAGES}
        alma_step_(*images, **named, course=course, **options)
        return self


def _penalty(ratio, rho, mu):
    if ratio >= 0:
        return mu * ratio + mu * rho * ratio**2 + rho**2 * ratio**3 / 6
    return mu * ratio / (1 - rho * ratio)


def _slope(ratio, rho, mu):
    leaf = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(_penalty(leaf, rho, mu), leaf)[0])


def _found_rate(x, whole, reach):
    def beyond(rate):
        return float(((x - rate * whole).clamp(0, 1) - x).norm()) > reach

    low, high = 0.0, 1.0
    while not beyond(high):
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return (low + high) / 2


def _simulate(s, course=COURSE, *, targeted=False, stop_early=False):
    for i in range(len(s.x)):
        slot, step = s.slots[i], int(s.slots[i, columns.STEP])
        if slot[columns.ACTIVE] == 0:
            continue
        x_adv, x, g = (t[i].double() for t in (s.x_adv, s.x, s.grad))
        d = x_adv - x
        length, known = float(d.norm()), bool(s.distance[i] < INF)
        if s.loss[i].isnan():
            slot[columns.FAULT] |= columns.FAULT_NAN_LOGITS
        fooled = bool(s.prediction[i] == s.aims[i]) == targeted and bool(s.loss[i] > 0)
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
        mu, rho, previous, found_at, rate = s.memory[i].double().tolist()
        ratio = -float(s.loss[i].nan_to_num(0.0))
        if step and (step + 1) % course.check_steps == 0:
            if not known and not ratio < course.improvement * previous:
                rho *= course.increase
            previous = ratio
        if step:
            mu += course.smoothing * (_slope(ratio, rho, mu) - mu)
            mu = min(max(mu, 1e-6), 1e12)
        else:
            previous = ratio
        found_at = step if fooled and not known else found_at
        whole = -_slope(ratio, rho, mu) * course.unit * g
        if step == 0 and course.reach:
            rate = _found_rate(x, whole * course.unit, course.reach)
        s.memory[i] = torch.tensor([mu, rho, previous, found_at, rate], dtype=torch.float64)
        fall = course.fall * max(step - found_at, 0) / (STEPS - found_at)
        rate = rate * torch.tensor(fall, dtype=torch.float64).exp()
        if step and length:
            whole = whole + d / length
        square = course.rms * s.square[i].double() + (1 - course.rms) * whole**2
        momentum = course.inertia * s.momentum[i].double() + whole / (square.sqrt() + 1e-8)
        s.square[i], s.momentum[i] = square, momentum
        s.x_adv[i] = (x + d - rate * course.unit * momentum).clamp(0, 1)
    return s


def _assert_agree(got, expected, tolerance):
    assert torch.equal(got.slots, expected.slots)
    assert torch.equal(got.closest.isnan(), expected.closest.isnan())
    for name in ("x_adv", "closest", "distance", "memory", "square", "momentum"):
        a, b = getattr(got, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("size", [5, 784, 4100])
@_EACH
def test_every_rule(size, implementation, device):
    state = AlmaState(size, device)
    expected = _simulate(state.clone())
    got = state.clone().step()
    _assert_agree(got, expected, 5e-6)
    for name in ("x", "grad", "loss", "aims", "prediction", "eps"):
        assert torch.equal(getattr(got, name).nan_to_num(7.0), getattr(state, name).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("course", "options"),
    [
        (COURSE, dict(targeted=True)),
        (COURSE._replace(unit=2.0, check_steps=2, reach=0.7), dict(stop_early=True)),
    ],
)
@_EACH
def test_every_option(course, options, implementation, device):
    state = AlmaState(75, device)
    expected = _simulate(state.clone(), course, **options)
    _assert_agree(state.step(course, **options), expected, 5e-6)


@_EACH
def test_float64_and_half_precision(implementation, device):
    state = AlmaState(75, device, torch.float64)
    expected = _simulate(state.clone())
    _assert_agree(state.step(), expected, 1e-12)
    half = AlmaState(75, device, torch.bfloat16)
    full = half.clone()
    for name in IMAGES:
        setattr(full, name, getattr(full, name).float())
    half.step(), full.step()
    assert torch.equal(half.slots, full.slots)
    torch.testing.assert_close(half.x_adv.float(), full.x_adv, atol=2**-8, rtol=0)


@_EACH
def test_what_is_not_finite_counts_as_0_and_finished_rows_keep_every_bit(implementation, device):
    state, clean = (AlmaState(75, device) for _ in range(2))
    state.grad[:, ::4] = NAN
    clean.grad[:, ::4] = 0.0
    assert torch.equal(state.step().x_adv, clean.step().x_adv)
    state.slots[:, columns.ACTIVE] = 0
    before = state.clone()
    state.step()
    for name, value in vars(before).items():
        assert torch.equal(getattr(state, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("implementation", ["compiled", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(implementation):
    state = AlmaState(784, "cpu")
    together = state.clone().step()
    for i in range(len(state.x)):
        alone = object.__new__(AlmaState)
        alone.__dict__ = {k: v[i : i + 1].clone() for k, v in vars(state).items()}
        for name, value in vars(alone.step()).items():
            other = getattr(together, name)[i : i + 1]
            assert torch.equal(value.nan_to_num(7.0), other.nan_to_num(7.0)), (i, name)


def test_one_launch_and_an_empty_batch(count_launches, device):
    with backend.use_backend("triton"), count_launches() as launches:
        AlmaState(5000, device).step()
    assert launches == ["alma_step_kernel"]
    empty = object.__new__(AlmaState)
    empty.__dict__ = {k: v[:0] for k, v in vars(AlmaState(5, device)).items()}
    empty.step()


def test_what_does_not_fit_is_refused():
    for name, value in (("memory", torch.ones(2, 5)), ("square", torch.ones(2, 5))):
        state = AlmaState(5, "cpu")
        setattr(state, name, value)
        with pytest.raises(ValueError, match=name):
            state.step()
