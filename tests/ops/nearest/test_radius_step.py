"""The steps of DDN and FMN: their rules against a simulation in float64, for what an op may run."""

import pytest
import torch
from radius_rules import INF, NAN, RULES, STEPS, State, assert_agree, simulate

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.nearest.radius import radius_step_

_WITHOUT_CPU = pytest.mark.parametrize(
    "implementation", ["reference", "compiled", "triton"], indirect=True
)
_TOLERANCE = 2e-6  # 16 to 32 ulp of values below 1


@pytest.mark.parametrize("size", [5, 784, 4100])
@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_every_rule(rule, norm, size, implementation, device):
    state = State(size, device)
    expected = simulate(state.clone(), rule, norm)
    got = state.clone().step(rule, norm)
    assert_agree(got, expected, _TOLERANCE)
    for name in ("x", "grad", "loss", "aims", "prediction", "eps", "limit", "schedule"):
        assert torch.equal(getattr(got, name).nan_to_num(7.0), getattr(state, name).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (75, dict(targeted=True)),
        (75, dict(stop_early=True)),
        (75, dict(minds_bounds=False, overshoot=0.0)),
        (4100, dict(overshoot=0.5, stop_early=True, targeted=True, minds_bounds=False)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_every_option(rule, norm, size, options, implementation, device):
    state = State(size, device)
    expected = simulate(state.clone(), rule, norm, **options)
    assert_agree(state.step(rule, norm, **options), expected, _TOLERANCE)


@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_float64(rule, norm, implementation, device):
    state = State(75, device, torch.float64)
    expected = simulate(state.clone(), rule, norm)
    assert_agree(state.step(rule, norm), expected, 1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_tiny_and_huge_gradients_make_full_steps(rule, norm, scale, implementation, device):
    state = State(75, device, scale=scale)
    expected = simulate(state.clone(), rule, norm)
    assert_agree(state.step(rule, norm), expected, _TOLERANCE)


@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_half_precision_rounds_once(rule, norm, implementation, device):
    state = State(75, device, torch.bfloat16)
    full = state.clone()
    for name in ("x", "x_adv", "grad", "closest"):
        setattr(full, name, getattr(full, name).float())
    got, full = state.step(rule, norm), full.step(rule, norm)
    assert torch.equal(got.slots, full.slots)
    # one ulp of bfloat16 below 1, where a sum's last bit decides the rounding
    torch.testing.assert_close(got.x_adv.float(), full.x_adv, atol=2**-8, rtol=0)


@pytest.mark.parametrize("bad", [NAN, -INF], ids=str)
@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_what_is_not_finite_in_a_gradient_counts_as_0(rule, norm, bad, implementation, device):
    state = State(75, device)
    state.grad[:, ::4] = bad
    clean = state.clone()
    clean.grad[:, ::4] = 0.0
    got, expected = state.step(rule, norm), clean.step(rule, norm)
    assert torch.equal(got.x_adv, expected.x_adv) and torch.equal(got.radius, expected.radius)


@pytest.mark.parametrize(("rule", "norm"), RULES)
@_WITHOUT_CPU
def test_finished_rows_keep_every_bit(rule, norm, implementation, device):
    state = State(75, device)
    state.slots[:, columns.ACTIVE] = 0
    state.x_adv[1] = NAN
    got = state.clone().step(rule, norm)
    for name, value in vars(state).items():
        assert torch.equal(getattr(got, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("size", [5, 784])
@pytest.mark.parametrize(("rule", "norm"), RULES)
@pytest.mark.parametrize("implementation", ["compiled", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(rule, norm, size, implementation):
    state = State(size, "cpu")
    together = state.clone().step(rule, norm)
    for i in range(len(state.x)):
        alone = state.rows(slice(i, i + 1)).step(rule, norm)
        for name, value in vars(alone).items():
            others = getattr(together, name)
            others = others if name == "schedule" else others[i : i + 1]
            assert torch.equal(value.nan_to_num(7.0), others.nan_to_num(7.0)), (i, name)


@_WITHOUT_CPU
def test_channels_last_and_without_bounds(implementation, device):
    state = State(75, device)
    expected = state.clone().step("fmn", "l1", bounds=None)
    for name in ("x", "x_adv", "grad", "closest"):
        image = getattr(state, name).view(-1, 3, 5, 5)
        form = torch.contiguous_format if name == "grad" else torch.channels_last
        setattr(state, name, image.contiguous(memory_format=form))
    state.step("fmn", "l1", bounds=None)
    assert state.x_adv.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(state.x_adv.reshape(-1, 75), expected.x_adv, atol=1e-6, rtol=0)
    assert expected.x_adv.amin() < 0  # out of [0, 1]


def test_an_empty_batch_is_left_alone(implementation, device):
    State(75, device).rows(slice(0, 0)).step("ddn", "l2")


@pytest.mark.parametrize(
    ("size", "kernel"), [(75, "radius_step_kernel"), (5000, "radius_step_long_kernel")]
)
def test_one_launch(size, kernel, count_launches, device):
    with backend.use_backend("triton"), count_launches() as launches:
        State(size, device).step("fmn", "linf")
    assert launches == [kernel]


def test_the_op_keeps_the_dispatchers_rules(device):
    s = State(75, device)
    images = s.x_adv, s.closest, s.grad, s.x
    rows = s.loss, s.prediction, s.aims, s.distance, s.radius, s.limit, s.slots, s.eps, s.schedule
    settings = 0.02, 0.0, 1.0, "l2", "fmn", True, False, True
    torch.library.opcheck(torch.ops.fastadv.radius_step_.default, (*images, *rows, *settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm="lp"), "rule and norm"),
        (dict(rule="ddn", norm="linf"), "rule and norm"),
        (dict(bounds=(1.0, 0.0)), "bounds"),
        (dict(schedule=torch.ones(STEPS, 2)), "schedule"),
        (dict(slots=torch.zeros(3, 5, dtype=torch.int32)), "slots"),
        (dict(distance=torch.zeros(3)), "distance"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    state = State(5, "cpu")
    images = [getattr(state, name) for name in ("x_adv", "closest", "grad", "x")]
    named = {k: v for k, v in vars(state).items() if k not in ("x_adv", "closest", "grad", "x")}
    with pytest.raises(ValueError, match=message):
        radius_step_(*images, **(named | dict(rule="fmn", norm="l2") | changes))
