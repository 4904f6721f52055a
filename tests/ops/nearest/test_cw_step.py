"""C&W's step: its rules against a simulation in float64 by autograd, for what an op may run."""

import pytest
import torch
from cw_rules import COURSE, WAYS, CwState, assert_agree, simulate
from radius_rules import IMAGES, INF, NAN

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.nearest.penalty import cw_step_

_EACH = pytest.mark.parametrize(
    "implementation", ["reference", "compiled", "triton"], indirect=True
)


@pytest.mark.parametrize("by", [0, 5])
@pytest.mark.parametrize("size", [5, 784, 4100])
@pytest.mark.parametrize(("norm", "squashed"), WAYS)
@_EACH
def test_every_rule(norm, squashed, size, by, implementation, device):
    course = COURSE._replace(squashed=squashed)
    state = CwState(size, device, squashed=squashed).shifted(by)
    expected = simulate(state.clone(), norm, course)
    got = state.clone().step(norm, course)
    assert_agree(got, expected, 1e-5)
    for name in ("x", "grad", "loss", "aims", "prediction", "eps", "schedule"):
        assert torch.equal(getattr(got, name).nan_to_num(7.0), getattr(state, name).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("course", "options"),
    [
        (COURSE, dict(targeted=True)),
        (COURSE._replace(abort_early=False, kappa=0.0), dict(stop_early=True)),
        (COURSE._replace(rounds=10, points=4), {}),
        (COURSE._replace(unit=2.0, relative=0.0, settled=4), {}),
    ],
)
@pytest.mark.parametrize("norm", ["l2", "linf"])
@_EACH
def test_every_option(norm, course, options, implementation, device):
    state = CwState(75, device).shifted(3)
    state.shift /= course.unit
    expected = simulate(state.clone(), norm, course, **options)
    assert_agree(state.step(norm, course, **options), expected, 1e-5)


@pytest.mark.parametrize(("norm", "squashed"), WAYS)
@_EACH
def test_float64(norm, squashed, implementation, device):
    course = COURSE._replace(squashed=squashed)
    state = CwState(75, device, torch.float64, squashed)
    expected = simulate(state.clone(), norm, course)
    assert_agree(state.step(norm, course), expected, 1e-9)  # what atanh loses at a bound


@_EACH
def test_half_precision_rounds_once(implementation, device):
    state = CwState(75, device, torch.bfloat16)
    full = state.clone()
    for name in IMAGES:
        setattr(full, name, getattr(full, name).float())
    got, full = state.step("l2"), full.step("l2")
    assert torch.equal(got.slots, full.slots)
    torch.testing.assert_close(got.shift, full.shift, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.x_adv.float(), full.x_adv, atol=2**-8, rtol=0)


@pytest.mark.parametrize("bad", [NAN, INF], ids=str)
@_EACH
def test_what_is_not_finite_in_a_gradient_counts_as_0(bad, implementation, device):
    state = CwState(75, device)
    state.grad[:, ::4] = bad
    clean = state.clone()
    clean.grad[:, ::4] = 0.0
    assert torch.equal(state.step("l2").x_adv, clean.step("l2").x_adv)


@_EACH
def test_finished_rows_keep_every_bit(implementation, device):
    state = CwState(75, device)
    state.slots[:, columns.ACTIVE] = 0
    state.x_adv[1] = NAN
    got = state.clone().step("l2")
    for name, value in vars(state).items():
        assert torch.equal(getattr(got, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize(("norm", "squashed"), WAYS)
@pytest.mark.parametrize("implementation", ["compiled", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(norm, squashed, implementation):
    state, course = CwState(75, "cpu", squashed=squashed), COURSE._replace(squashed=squashed)
    together = state.clone().step(norm, course)
    for i in range(len(state.x)):
        alone = state.rows(slice(i, i + 1)).step(norm, course)
        for name, value in vars(alone).items():
            others = getattr(together, name)
            others = others if name == "schedule" else others[i : i + 1]
            assert torch.equal(value.nan_to_num(7.0), others.nan_to_num(7.0)), (i, name)


@_EACH
def test_channels_last_and_without_bounds(implementation, device):
    state = CwState(75, device)
    expected = state.clone().step("l2", bounds=None)
    for name in (*IMAGES, "shift", "mean", "square"):
        image = getattr(state, name).view(-1, 3, 5, 5)
        form = torch.contiguous_format if name == "grad" else torch.channels_last
        setattr(state, name, image.contiguous(memory_format=form))
    state.step("l2", bounds=None)
    assert state.x_adv.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(state.x_adv.reshape(-1, 75), expected.x_adv, atol=1e-6, rtol=0)
    assert expected.x_adv.amin() < 0  # out of [0, 1]


def test_an_empty_batch_is_left_alone(implementation, device):
    CwState(75, device).rows(slice(0, 0)).step("l2")


@pytest.mark.parametrize("size", [75, 5000])
def test_one_launch(size, count_launches, device):
    with backend.use_backend("triton"), count_launches() as launches:
        CwState(size, device).step("linf")
    assert launches == ["cw_step_kernel"]


def test_the_op_keeps_the_dispatchers_rules(device):
    s = CwState(75, device)
    images = s.x_adv, s.closest, s.grad, s.x, s.shift, s.mean, s.square
    rows = s.loss, s.prediction, s.aims, s.distance, s.search, s.slots, s.eps, s.schedule
    settings = 0.0, 1.0, 1.0, 0.1, 10.0, 0.9, 5.0, 0.5, 1, 9, 100, "l2", False, True, False, False
    torch.library.opcheck(torch.ops.fastadv.cw_step_.default, (*images, *rows, *settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm="l1"), "norm must be"),
        (dict(bounds=(1.0, 0.0)), "bounds"),
        (dict(bounds=None, course=COURSE._replace(squashed=True)), "needs bounds"),
        (dict(schedule=torch.ones(3, 2)), "schedule"),
        (dict(search=torch.ones(3, 9)), "search"),
        (dict(mean=torch.ones(3, 8)), "mean"),
        (dict(distance=torch.zeros(3)), "distance"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    state = CwState(5, "cpu")
    images = [getattr(state, name) for name in IMAGES]
    named = {k: v for k, v in vars(state).items() if k not in IMAGES}
    with pytest.raises(ValueError, match=message):
        cw_step_(*images, **(named | dict(course=COURSE, norm="l2") | changes))
