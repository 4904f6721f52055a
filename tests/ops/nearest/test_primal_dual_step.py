"""The step of PDGD and PDPGD: its rules against a simulation in float64, for what an op may run."""

import pytest
import torch
from primal_dual_rules import COURSE, IDS, WAYS, DualState, assert_agree, simulate
from radius_rules import IMAGES, INF, NAN

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.nearest.primal_dual import primal_dual_step_

_EACH = pytest.mark.parametrize(
    "implementation", ["reference", "compiled", "triton"], indirect=True
)
_IN_EACH_NORM = pytest.mark.parametrize(("norm", "course", "pull"), WAYS, ids=IDS)


@pytest.mark.parametrize("size", [5, 784, 4100])
@_IN_EACH_NORM
@_EACH
def test_every_rule(norm, course, pull, size, implementation, device):
    state = DualState(size, device)
    expected = state.clone()
    turns = simulate(expected, norm, course, pull=pull)
    if size == 5:
        assert course.turns == 0 or max(turns) > 1  # else they do not show that iterations go on
    got = state.clone().step(norm, course, pull=pull)
    assert_agree(got, expected, 1e-5)
    for name in ("x", "grad", "loss", "aims", "prediction", "eps", "schedule"):
        assert torch.equal(getattr(got, name).nan_to_num(7.0), getattr(state, name).nan_to_num(7.0))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        (dict(turns=1), dict(targeted=True)),
        (dict(turns=7, change=0.0), dict(stop_early=True)),
        (dict(unit=2.0, most=0.5, smoothing=1.0), {}),
    ],
)
@_IN_EACH_NORM
@_EACH
def test_every_option(norm, course, pull, changes, options, implementation, device):
    course = course._replace(**changes | dict(turns=changes.get("turns", 5) * (course.turns > 0)))
    state = DualState(75, device)
    expected = state.clone()
    simulate(expected, norm, course, pull=pull, **options)
    assert_agree(state.step(norm, course, pull=pull, **options), expected, 1e-5)


@pytest.mark.parametrize("implementation", ["reference", "compiled"], indirect=True)
def test_a_row_ends_its_iterations_by_itself(implementation):
    state = DualState(784, "cpu")
    turns = simulate(state.clone(), "l1", COURSE._replace(change=0.05))
    assert len({count for count in turns if count}) > 1, turns
    expected = state.clone()
    simulate(expected, "l1", COURSE._replace(change=0.05))
    assert_agree(state.step("l1", COURSE._replace(change=0.05)), expected, 1e-5)


@_IN_EACH_NORM
@_EACH
def test_float64(norm, course, pull, implementation, device):
    state = DualState(75, device, torch.float64)
    expected = state.clone()
    simulate(expected, norm, course, pull=pull)
    assert_agree(state.step(norm, course, pull=pull), expected, 1e-12)


@_EACH
def test_half_precision_rounds_once(implementation, device):
    state = DualState(75, device, torch.bfloat16)
    full = state.clone()
    for name in IMAGES:
        setattr(full, name, getattr(full, name).float())
    got, full = state.step("l1"), full.step("l1")
    assert torch.equal(got.slots, full.slots)
    torch.testing.assert_close(got.mean, full.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.x_adv.float(), full.x_adv, atol=2**-8, rtol=0)


@pytest.mark.parametrize("bad", [NAN, INF], ids=str)
@_EACH
def test_what_is_not_finite_in_a_gradient_counts_as_0(bad, implementation, device):
    state = DualState(75, device)
    state.grad[:, ::4] = bad
    clean = state.clone()
    clean.grad[:, ::4] = 0.0
    assert torch.equal(state.step("l1").x_adv, clean.step("l1").x_adv)


@_EACH
def test_finished_rows_keep_every_bit(implementation, device):
    state = DualState(75, device)
    state.slots[:, columns.ACTIVE] = 0
    state.x_adv[1] = NAN
    got = state.clone().step("l1")
    for name, value in vars(state).items():
        assert torch.equal(getattr(got, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("norm", ["l1", "l0"])
@_EACH
def test_what_comes_back_to_x_has_its_bits(norm, implementation, device):
    state = DualState(75, device)
    state.x[:, 1::3] = -0.0
    state.x_adv[:, 1::3] = -0.0
    state.grad[:, 1::3] = 0
    state.mean[:, 1::3] = 0
    got = state.step(norm)
    same = got.x_adv == got.x
    assert same[3, 1::3].all() and not same[3].all()
    assert torch.equal(got.x_adv.signbit()[same], got.x.signbit()[same])


@_IN_EACH_NORM
@pytest.mark.parametrize("implementation", ["compiled", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(norm, course, pull, implementation):
    state = DualState(75, "cpu")
    together = state.clone().step(norm, course, pull=pull)
    for i in range(len(state.x)):
        alone = state.rows(slice(i, i + 1)).step(norm, course, pull=pull)
        for name, value in vars(alone).items():
            others = getattr(together, name)
            others = others if name == "schedule" else others[i : i + 1]
            assert torch.equal(value.nan_to_num(7.0), others.nan_to_num(7.0)), (i, name)


@_EACH
def test_channels_last_and_without_bounds(implementation, device):
    state = DualState(75, device)
    expected = state.clone().step("l1", bounds=None)
    for name in (*IMAGES, "mean", "square"):
        image = getattr(state, name).view(-1, 3, 5, 5)
        form = torch.contiguous_format if name == "grad" else torch.channels_last
        setattr(state, name, image.contiguous(memory_format=form))
    state.step("l1", bounds=None)
    assert state.x_adv.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(state.x_adv.reshape(-1, 75), expected.x_adv, atol=1e-6, rtol=0)
    assert expected.x_adv.amin() < 0  # out of [0, 1]


def test_an_empty_batch_is_left_alone(implementation, device):
    DualState(75, device).rows(slice(0, 0)).step("l2")


@pytest.mark.parametrize("size", [75, 5000])
def test_one_launch(size, count_launches, device):
    with backend.use_backend("triton"), count_launches() as launches:
        DualState(size, device).step("l1")
    assert launches == ["primal_dual_step_kernel"]


def test_the_op_keeps_the_dispatchers_rules(device):
    s = DualState(75, device)
    images = s.x_adv, s.closest, s.grad, s.x, s.mean, s.square
    rows = s.loss, s.prediction, s.aims, s.distance, s.duals, s.slots, s.eps, s.schedule
    settings = 0.0, 1.0, *COURSE._replace(turns=2)[:3], 0.01, 2, "l1", "l1", False, False
    torch.library.opcheck(torch.ops.fastadv.primal_dual_step_.default, (*images, *rows, *settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm="l3"), "norm must be one of"),
        (dict(course=COURSE._replace(turns=0)), "without turns 'l2'"),
        (dict(pull="l2"), "pull must be"),
        (dict(bounds=(1.0, 0.0)), "bounds"),
        (dict(schedule=torch.ones(3, 2)), "schedule"),
        (dict(duals=torch.ones(3, 3)), "duals"),
        (dict(mean=torch.ones(3, 8)), "mean"),
        (dict(distance=torch.zeros(3)), "distance"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    state = DualState(5, "cpu")
    images = [getattr(state, name) for name in IMAGES]
    named = {k: v for k, v in vars(state).items() if k not in IMAGES}
    with pytest.raises(ValueError, match=message):
        primal_dual_step_(*images, **(named | dict(course=COURSE, norm="l1") | changes))
