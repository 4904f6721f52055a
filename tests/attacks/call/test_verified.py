"""Contract C3: a reported success is one that the returned tensor shows on the user's own model."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import NORMS, Quadratic, Recording, assert_mixed, mixed_problem, threat_of

import fastadv

STEPS = 6
_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
_WAYS = [
    fastadv.Execution(),
    fastadv.Execution(batching="plain"),
    fastadv.Execution(batch_size=7),
    fastadv.Execution(batching="plain", batch_size=7),
]


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


class _RightInFullBatches(nn.Module):
    """Right on batches of `size`, wrong on all others: only a shrunken batch fools it."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        right = x.flatten(1).mean(1) * 1e-3 + self.shift
        sign = 1.0 if len(x) == self.size else -1.0
        return torch.stack([sign * (1 + right), torch.zeros_like(right)], 1)


@pytest.mark.filterwarnings("ignore:unconfirmed")
@pytest.mark.parametrize("execution", _WAYS[:2], ids=["continuous", "plain"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_model_wrong_in_other_batch_sizes_only_is_not_fooled(execution, restarts):
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(8, dtype=torch.long)
    # two clean-wrong samples make the batch that is attacked smaller than the batch of the call
    y[:2] = 1
    model = _RightInFullBatches(8)
    result = fastadv.pgd(fastadv.Linf(0.1), steps=3, restarts=restarts).run(
        model, x, y, execution=execution
    )
    assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)
    assert result.success.tolist() == [True] * 2 + [False] * 6
    assert result.step.tolist() == [0] * 2 + [-1] * 6


@pytest.mark.filterwarnings("ignore:unconfirmed")
def test_a_model_wrong_alone_only_is_not_fooled():
    class WrongAlone(_RightInFullBatches):
        def forward(self, x):
            self.size = len(x) if len(x) > 1 else 0
            return super().forward(x)

    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([1, 0])  # the first is clean-wrong, so the second is attacked alone
    model = WrongAlone(2)
    spy = Recording(model, len)
    result = fastadv.pgd(fastadv.Linf(0.1), steps=3).run(spy, x, y)
    assert 1 in spy.seen
    assert result.success.tolist() == [True, False]
    assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)


class _TieInHalfPrecision(nn.Module):
    """Class 1 leads class 0 by 0.001 of 1: a tie, hence class 0, once rounded to bf16."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [1.001, 0.0]]))
        self.autocast = []

    def forward(self, x):
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return F.linear(x, self.weight)


@pytest.mark.parametrize("execution", _WAYS, ids=str)
def test_a_model_wrong_under_autocast_only_is_not_fooled(execution):
    model = _TieInHalfPrecision()
    x = torch.ones(9, 2)
    y = torch.ones(9, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).argmax(1) != y).all()  # the plant works
        model.autocast.clear()
        result = fastadv.pgd(fastadv.Linf(0.01), steps=2).run(model, x, y, execution=execution)
        assert torch.is_autocast_enabled("cpu")
    assert not any(model.autocast)
    assert result.clean_prediction.tolist() == [1] * 9
    assert not result.success.any()
    assert (model(result.x_adv).argmax(1) == y).all()


class _WrongOnce(nn.Module):
    """Wrong at one call only: an iterate that no later evaluation reproduces."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.calls = 0
        self.fooled = False

    def forward(self, x):
        sign = -1.0 if self.calls == self.call else 1.0
        self.fooled |= sign < 0
        self.calls += 1
        rows = x.flatten(1).mean(1)
        return torch.stack([sign * (1 + rows), torch.zeros_like(rows)], 1)


@pytest.mark.filterwarnings("ignore:unconfirmed")
@pytest.mark.parametrize("execution", _WAYS, ids=str)
@pytest.mark.parametrize("call", [2, 3, 4])
def test_an_iterate_that_no_later_evaluation_reproduces_is_no_success(execution, call):
    model = _WrongOnce(call)
    x = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(9, dtype=torch.long)
    result = fastadv.pgd(fastadv.Linf(0.1), steps=8, restarts=2).run(
        model, x, y, execution=execution
    )
    assert model.fooled
    assert not result.success.any()
    assert (result.step == -1).all()


class _NaNAbove(nn.Module):
    """Class 1, but NaN, whose argmax is class 0, where the first element exceeds a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        rows = x.flatten(1)
        up = rows[:, 0]
        logits = torch.stack([up, 2 + 0 * up, -up], 1)
        return torch.where(up[:, None] > self.threshold, float("nan"), logits)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_nan_logits_are_warned_of_and_no_success(keep):
    x = torch.full((6, 4), 0.5)
    x[3:] = 0.1
    y = torch.ones(6, dtype=torch.long)
    attack = fastadv.pgd(fastadv.Linf(0.2), steps=5, step_size=0.05, random_start=False, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="NaN logits") as caught:
        result = attack.run(_NaNAbove(0.6), x, y)
    assert {w.message.code: w.message.count for w in caught}["nan_logits"] == 3
    assert not result.success.any()
    assert (result.step == -1).all()


def test_nan_logits_of_the_last_iterate_are_no_success_and_warned_of():
    # the threshold is crossed by the last step, which only the verification evaluates
    x = torch.full((6, 4), 0.5)
    y = torch.ones(6, dtype=torch.long)
    attack = fastadv.pgd(fastadv.Linf(0.2), steps=3, step_size=0.04, random_start=False)
    with pytest.warns(fastadv.AttackWarning, match="NaN logits"):
        result = attack.run(_NaNAbove(0.6), x, y)
    assert not result.success.any()


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


def test_with_nan_logits_everywhere_the_best_iterate_is_still_in_the_ball():
    x = torch.full((2, 4), 0.5)
    y = torch.zeros(2, dtype=torch.long)

    class NaNAfterTheCleanPass(nn.Module):
        def forward(self, z):
            rows = z.sum(1)
            logits = torch.stack([1 + rows, -rows], 1)
            return logits if torch.equal(z, x) else logits * float("nan")

    attack = fastadv.pgd(fastadv.Linf(0.1), steps=3, keep="best", random_start=False)
    with pytest.warns(fastadv.AttackWarning, match="nan_"):
        result = attack.run(NaNAfterTheCleanPass(), x, y, x_init=torch.full((2, 4), 1.7))
    assert not result.success.any()
    assert (result.x_adv <= 0.6 + 1e-6).all()


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
