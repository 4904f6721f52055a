"""Contract C3: a reported success is one that the returned tensor shows on the user's own model."""

import math
import warnings

import pytest
import torch
from toy_models import NORMS, Quadratic, Recording, assert_mixed, mixed_problem, threat_of

import fastadv

STEPS = 6
_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}


def _distance(threat, x_adv, x):
    difference = (x_adv.double() - x.double()).flatten(1)
    if threat.norm == "linf":
        return difference.abs().amax(1)
    if threat.norm == "l2":
        return difference.square().sum(1).sqrt()
    return difference.abs().sum(1)


def _allowed(threat, x, eps):
    """eps * (1 + 1e-6) + one rounding of each element, as contract C3 writes it."""
    size = x[0].numel()
    spread = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[threat.norm]
    largest = max(abs(bound) for bound in threat.bounds)
    return eps * (1 + 1e-6) + _ROUNDOFF[x.dtype] * spread * largest


def _assert_shown(model, threat, x, y, result):
    """Every success of `result` is one in plain sight: same call shape, bounds and radius."""
    with torch.no_grad():
        logits = model(result.x_adv)
    wrong = (logits.argmax(1) != y) & ~logits.isnan().any(1)
    assert not (result.success & ~wrong).any()
    lo, hi = threat.bounds
    inside = ((result.x_adv >= lo) & (result.x_adv <= hi)).flatten(1).all(1)
    near = _distance(threat, result.x_adv, x) <= _allowed(threat, x, threat.eps)
    assert not (result.success & ~(inside & near)).any()
    return wrong & inside & near


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("norm", NORMS)
def test_every_success_is_in_bounds_within_eps_and_misclassified(norm, dtype):
    problem = mixed_problem(48, dtype=dtype)
    # samples on the edges of the box, whose start and steps the clamp cuts
    x = problem.x.clone()
    x[::3] = x[::3].round()
    with torch.no_grad():
        y = problem.model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    threat = threat_of(norm, 1.2)
    for keep in ("first_success", "best", "last"):
        attack = fastadv.pgd(threat, steps=STEPS, keep=keep)
        result = attack.run(problem.model, x, y)
        shown = _assert_shown(problem.model, threat, x, y, result)
        assert result.success.any() and not result.success.all()
        # and nothing that is a success goes unreported
        assert torch.equal(shown, result.success), keep
        # another order of summation: a few roundings of float64
        expected = _distance(threat, result.x_adv, x)
        torch.testing.assert_close(result.distance, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_unreported_failures_are_still_in_bounds_and_within_eps(norm):
    problem = mixed_problem(48)
    threat = threat_of(norm, 0.3)
    result = fastadv.pgd(threat, steps=STEPS).run(problem.model, problem.x, problem.y)
    assert not result.success.all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    near = _distance(threat, result.x_adv, problem.x) <= _allowed(threat, problem.x, threat.eps)
    assert near.all()


class _Leaky(fastadv.Linf):
    """A threat model whose steps leave the ball and the box."""

    def step_(self, x_adv, grad, x, *, step_size, eps, **more):
        return x_adv.add_(step_size.view(-1, 1, 1, 1) * grad.sign())


@pytest.mark.filterwarnings("ignore:unconfirmed")
@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_a_step_that_leaves_the_ball_or_the_box_gives_no_success(keep):
    problem = mixed_problem(48, wrong_every=100)
    attack = fastadv.pgd(_Leaky(0.02), steps=4, step_size=0.5, keep=keep)
    result = attack.run(problem.model, problem.x, problem.y)
    with torch.no_grad():
        wrong = problem.model(result.x_adv).argmax(1) != problem.y
    assert (wrong & (result.distance > 0.03)).any()  # the plant works
    assert not (result.success & (result.distance > 0.03)).any()
    # and within eps, but out of bounds
    edge = fastadv.Linf(0.5, bounds=(0.0, 0.9999))
    x = problem.x.clamp(max=0.9999)
    assert not fastadv.contains(edge, x + 0.0002, x).all()


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_an_unclamped_start_gives_no_success_out_of_bounds(norm, keep):
    problem = mixed_problem(48)
    x = problem.x.round()
    with torch.no_grad():
        y = problem.model(x).argmax(1)
    threat = threat_of(norm, 2.0)
    start = fastadv.start_point(threat, x, seed=0, clamp_start=False)
    assert ((start < 0) | (start > 1)).any()
    attack = fastadv.pgd(threat, steps=STEPS, keep=keep, clamp_start=False)
    result = attack.run(problem.model, x, y)
    _assert_shown(problem.model, threat, x, y, result)
    assert result.success.any()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    assert (result.step[result.success] >= 1).all()


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_start_iterate_outside_the_ball_gives_no_success_there(norm, keep):
    problem = mixed_problem(48, wrong_every=100)
    threat = threat_of(norm)
    x_init = (
        3 * torch.rand(problem.x.shape, generator=torch.Generator().manual_seed(2)) - 1
    )  # far from x, partly outside bounds, often misclassified
    attack = fastadv.pgd(threat, steps=STEPS, keep=keep)
    result = attack.run(problem.model, problem.x, problem.y, x_init=x_init)
    _assert_shown(problem.model, threat, problem.x, problem.y, result)
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()
    near = _distance(threat, result.x_adv, problem.x) <= _allowed(threat, problem.x, threat.eps)
    assert near.all()


def test_a_targeted_success_reaches_its_target():
    problem = mixed_problem(48)
    target = (problem.y + 2) % 5
    attack = fastadv.pgd(threat_of("linf", 1.5), steps=12)
    result = attack.run(problem.model, problem.x, problem.y, target=target)
    with torch.no_grad():
        reached = problem.model(result.x_adv).argmax(1) == target
    assert torch.equal(result.success, reached)
    assert result.success.any() and not result.success.all()


def test_infinite_bounds_do_not_stretch_the_ball():
    threat = fastadv.Linf(0.1, bounds=(-math.inf, math.inf))
    x = torch.zeros(1, 3)
    assert not fastadv.contains(threat, x + 5.0, x).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_precision_model_is_verified_in_its_own_precision(dtype):
    problem = mixed_problem(48, dtype=dtype)
    spy = Recording(problem.model, lambda x: x.dtype)
    result = fastadv.pgd(threat_of("linf"), steps=STEPS).run(spy, problem.x, problem.y)
    assert set(spy.seen) == {dtype}
    assert result.x_adv.dtype == dtype
    assert torch.equal(result.success, problem.model(result.x_adv).argmax(1) != problem.y)


def test_the_returned_examples_of_call_and_run_are_the_same():
    problem = mixed_problem(48)
    for keep in ("first_success", "best", "last"):
        attack = fastadv.pgd(threat_of("linf"), steps=STEPS, keep=keep)
        result = attack.run(problem.model, problem.x, problem.y)
        assert torch.equal(attack(problem.model, problem.x, problem.y), result.x_adv)
    assert_mixed(
        fastadv.pgd(threat_of("linf"), steps=STEPS).run(problem.model, problem.x, problem.y),
        problem.y,
        STEPS,
    )


def test_verification_does_not_warn_of_what_is_well():
    problem = mixed_problem(48)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for norm in NORMS:
            fastadv.pgd(threat_of(norm), steps=2).run(problem.model, problem.x, problem.y)


def test_a_model_of_double_logits_on_float_images_is_attacked():
    model = Quadratic(48, dtype=torch.float64)

    def upcast(x):
        return model(x.double())

    x = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    result = fastadv.pgd(threat_of("linf", 2.0), steps=STEPS).run(upcast, x)
    assert result.success.any()
    assert torch.equal(result.success, upcast(result.x_adv).argmax(1) != result.clean_prediction)
