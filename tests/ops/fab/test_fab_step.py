"""FAB's step: its rules row by row against a simulation in float64, for every implementation."""

import pytest
import torch
from fab_step_rules import INF, NAN, NORMS, ROWS, STEPS, State, assert_agree, simulate, tolerance

from fastadv.kernels import slots as columns
from fastadv.ops import backend


@pytest.mark.parametrize("stop_early", [True, False])
@pytest.mark.parametrize("size", [5, 75, 784, 3072, 5000])
@pytest.mark.parametrize("norm", NORMS)
def test_every_rule(norm, size, stop_early, implementation, device):
    state = State(size, device)
    expected = simulate(state.clone(), norm, stop_early)
    got = state.clone().step(norm, stop_early)
    assert_agree(got, expected, tolerance(norm, size))
    for name in ("x", "grad", "difference", "labels", "prediction", "eps"):
        assert torch.equal(getattr(got, name).nan_to_num(7.0), getattr(state, name).nan_to_num(7.0))


@pytest.mark.parametrize("stop_early", [True, False])
@pytest.mark.parametrize("size", [75, 5000])
@pytest.mark.parametrize("norm", NORMS)
def test_without_a_gradient_points_are_only_looked_at(
    norm, size, stop_early, implementation, device
):
    state = State(size, device)
    expected = simulate(state.clone(), norm, stop_early, looks=True)
    got = state.clone().step(norm, stop_early, looks=True)
    assert_agree(got, expected, tolerance(norm, size))
    still = [i for i, name in enumerate(ROWS) if name in ("pulled back", "difference is NaN")]
    assert torch.equal(got.x_adv[still], state.x_adv[still])


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("size", [1, 2, 75, 783, 5000])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("implementation", ["compiled"], indirect=True)
def test_compiled_loops_have_the_references_bits(norm, size, looks, implementation):
    got = State(size, "cpu").step(norm, True, looks=looks)
    with backend.use_backend("reference"):
        expected = State(size, "cpu").step(norm, True, looks=looks)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(got, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("size", [75, 5000])
def test_ties_in_l1_go_to_the_first_coordinates(size, implementation, device):
    state = State(size, device)
    # ties are spread over the row; thousands in a row would show the rounding of their sums
    state.grad = state.grad.sign() * (1 + torch.arange(size, device=device) % 20) / (20 * size)
    expected = simulate(state.clone(), "l1", True)
    assert_agree(state.step("l1", True), expected, tolerance("l1", size))


@pytest.mark.parametrize("norm", NORMS)
def test_finished_rows_keep_every_bit(norm, implementation, device):
    state = State(75, device)
    state.slots[:, columns.ACTIVE] = 0
    state.x_adv[1] = NAN
    got = state.clone().step(norm, True)
    for name, value in vars(state).items():
        assert torch.equal(getattr(got, name).nan_to_num(7.0), value.nan_to_num(7.0)), name


@pytest.mark.parametrize("norm", NORMS)
def test_other_constants(norm, implementation, device):
    state = State(75, device)
    options = dict(alpha_max=0.3, eta=1.2, beta=0.5)
    expected = simulate(state.clone(), norm, True, **options)
    assert_agree(state.clone().step(norm, True, **options), expected, tolerance(norm, 75))


@pytest.mark.parametrize("norm", NORMS)
def test_float64(norm, implementation, device):
    state = State(784, device, torch.float64)
    expected = simulate(state.clone(), norm, True)
    got = state.clone().step(norm, True)
    # eps is fp32 here and there
    assert_agree(got, expected, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_half_precision_rounds_once(norm, implementation, device):
    state = State(75, device, torch.bfloat16)
    full = state.clone()
    for name in ("x", "x_adv", "grad", "closest"):
        setattr(full, name, getattr(full, name).float())
    got, full = state.clone().step(norm, True), full.step(norm, True)
    assert torch.equal(got.slots, full.slots)
    # one ulp of bfloat16 below 1, where a sum's last bit decides the rounding
    torch.testing.assert_close(got.x_adv.float(), full.x_adv, atol=2**-8, rtol=0)
    assert torch.equal(got.closest.float().nan_to_num(7.0), full.closest.nan_to_num(7.0))


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_no_row_becomes_nan(norm, bad, implementation, device):
    state = State(75, device)
    state.grad[:, ::3] = bad
    clean = state.clone()
    clean.grad[:, ::3] = 0.0
    got, expected = state.step(norm, True), clean.step(norm, True)
    assert got.x_adv.isfinite().all()
    assert torch.equal(got.x_adv, expected.x_adv)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_mixes_in_the_clean_point(norm, implementation, device):
    state = State(75, device)
    before = state.clone()
    state.grad.zero_()
    state.step(norm, True)
    # d1 = d2 = 0, a1 = a2 and alpha = alpha_max
    expected = before.x_adv[1] * 0.9 + before.x[1] * 0.1
    torch.testing.assert_close(state.x_adv[1], expected, atol=2e-7, rtol=0)


@pytest.mark.parametrize("size", [5, 75, 784, 3072, 4097])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("implementation", ["compiled", "cpu", "reference"], indirect=True)
def test_a_row_does_not_depend_on_its_batch(norm, size, implementation):
    few = State(size, "cpu")
    many = few.rows(torch.arange(64) % len(ROWS))
    many.x_adv += 0.01 * torch.rand(64, 1, generator=torch.Generator().manual_seed(3))
    many.x_adv.clamp_(0, 1)
    together = many.clone().step(norm, True)
    for rows in (slice(1, 2), slice(5, 6), slice(20, 27)):
        alone = many.rows(rows).step(norm, True)
        for name, value in vars(alone).items():
            assert torch.equal(value.nan_to_num(7.0), getattr(together, name)[rows].nan_to_num(7.0))


@pytest.mark.parametrize("norm", NORMS)
def test_channels_last(norm, implementation, device):
    state = State(75, device)
    expected = state.clone().step(norm, True)
    for name in ("x", "x_adv", "grad", "closest"):
        image = getattr(state, name).view(-1, 3, 5, 5)
        # grad comes in the other layout
        form = torch.contiguous_format if name == "grad" else torch.channels_last
        setattr(state, name, image.contiguous(memory_format=form))
    state.step(norm, True)
    assert state.x_adv.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        state.x_adv.reshape(-1, 75), expected.x_adv, atol=tolerance(norm, 75), rtol=0
    )
    assert torch.equal(state.slots, expected.slots)


def test_an_empty_batch_is_left_alone(implementation, device):
    State(75, device).rows(slice(0, 0)).step("linf", True)


@pytest.mark.parametrize(
    ("size", "kernel"), [(75, "fab_step_kernel"), (5000, "fab_step_long_kernel")]
)
def test_one_launch(size, kernel, count_launches, device):
    with backend.use_backend("triton"), count_launches() as launches:
        State(size, device).step("l2", True)
    assert launches == [kernel]


def test_versions_are_bumped(implementation, device):
    state = State(75, device)
    written = ("x_adv", "closest", "distance", "pulled_back", "slots")
    before = [getattr(state, name)._version for name in written]
    state.step("linf", True)
    after = [getattr(state, name)._version for name in written]
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_the_op_keeps_the_dispatchers_rules(device):
    state = State(75, device)
    arguments = (
        state.x_adv,
        state.closest,
        state.grad,
        state.x,
        state.difference,
        state.prediction,
        state.labels,
        state.distance,
        state.pulled_back,
        state.slots,
        state.eps,
        0.0,
        1.0,
        "linf",
        STEPS,
        True,
        0.1,
        1.05,
        0.9,
    )
    torch.library.opcheck(torch.ops.fastadv.fab_step_.default, arguments)
