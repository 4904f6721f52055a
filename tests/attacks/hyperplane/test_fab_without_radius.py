"""FAB without a radius: the nearest adversarial point of all steps, or x and the distance inf."""

import dataclasses
import math

import pytest
import torch
from members import member_problem
from toy_models import NORMS, Quadratic

import fastadv

MAKES = {"linf": fastadv.Linf, "l2": fastadv.L2, "l1": fastadv.L1}
NAMES = ("fab", "fab_t")


def _attack(name, norm, *, eps=math.inf, bounds=(0.0, 1.0), **more):
    more = dict(n_target_classes=3) | more if name == "fab_t" else more
    return getattr(fastadv, name)(MAKES[norm](eps, bounds=bounds), **(dict(steps=7) | more))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_point_is_kept_and_the_model_confirms_it(norm, name):
    problem = member_problem(18)
    attack = _attack(name, norm)
    result = attack.run(problem.model, problem.x, problem.y)
    widest = {"linf": 1.0, "l2": problem.x[0].numel() ** 0.5, "l1": float(problem.x[0].numel())}
    whole = _attack(name, norm, eps=widest[norm], keep="best")
    nearest = whole.run(problem.model, problem.x, problem.y)
    assert torch.equal(result.x_adv, nearest.x_adv)
    assert torch.equal(result.success, problem.model(result.x_adv).argmax(1) != problem.y)
    assert result.success.all() and result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.distance, attack.threat.distance(result.x_adv, problem.x))
    wrong = result.clean_prediction != problem.y
    assert wrong.any() and not wrong.all()
    assert (result.distance[wrong] == 0).all() and (result.step[wrong] == 0).all()
    assert (result.distance[~wrong] > 0).all() and (result.step[~wrong] >= 1).all()


def test_of_all_targets_the_nearest_is_kept():
    def model(x):  # the likeliest wrong class is 5 away, the other 0.1
        return torch.stack([0 * x[:, 0], 0.1 * x[:, 0] - 0.5, 10 * x[:, 1] - 1], 1)

    x, y = torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
    first, both = (
        _attack("fab_t", "l2", bounds=None, n_target_classes=n).run(model, x, y) for n in (1, 2)
    )
    assert first.prediction.item() == 1 and both.prediction.item() == 2
    assert 5 <= first.distance.item() < 5.25 and 0.1 <= both.distance.item() < 0.105


def test_a_finite_radius_still_stops_at_the_first_point_inside():
    problem = member_problem(18)
    nearest = _attack("fab_t", "l2").run(problem.model, problem.x, problem.y)
    first = _attack("fab_t", "l2", eps=1.0).run(problem.model, problem.x, problem.y)
    assert first.success.all() and first.forwards < nearest.forwards
    assert (first.distance >= nearest.distance).all() and (first.distance > nearest.distance).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_bits_are_those_of_a_sample_alone(norm, name):
    problem = member_problem(12)
    attack = _attack(name, norm)
    result = attack.run(problem.model, problem.x, problem.y)
    plain = fastadv.Execution(batching="plain", batch_size=5)
    parts = attack.run(problem.model, problem.x, problem.y, execution=plain)
    for row in (1, 4, 11):
        alone = attack.run(problem.model, problem.x[row : row + 1], problem.y[row : row + 1])
        for one in (result, parts):
            assert torch.equal(alone.x_adv[0], one.x_adv[row])
            assert alone.distance[0] == one.distance[row] and alone.step[0] == one.step[row]


class _Deaf(Quadratic):
    """Right whatever the input is, where `deaf` samples begin with a large element."""

    def forward(self, x):
        logits = super().forward(x)
        deaf = x.reshape(len(x), -1)[:, :1].detach() > 2
        return torch.where(deaf, torch.tensor([[9.0, 0, 0, 0, 0]]), logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_failure_is_x_and_infinitely_far(norm, name):
    problem = member_problem(12)
    model = _Deaf(problem.x[0].numel(), seed=1, curvature=3.0)
    x, y = problem.x.clone(), problem.y.clone()
    x[::2, 0, 0, 0], y[::2] = 1e6, 0
    y[2] = 1
    with pytest.warns(fastadv.AttackWarning, match="gradient"):
        result = _attack(name, norm, bounds=None).run(model, x, y)
    failed = torch.arange(12) % 2 == 0
    failed[2] = False  # wrong as it is
    assert torch.equal(result.success, ~failed)
    assert torch.equal(result.x_adv[failed], x[failed])
    assert (result.distance[failed] == math.inf).all() and (result.step[failed] == -1).all()
    assert torch.equal(result.prediction[failed], y[failed])
    assert result.distance[2] == 0 and result.step[2] == 0
    assert result.distance[~failed].isfinite().all()


class _Fickle:
    """Takes back in its last call, counted from 1, all that it has said before."""

    def __init__(self, problem, last):
        self.problem, self.calls, self.last = problem, 0, last

    def __call__(self, x):
        self.calls += 1
        if self.calls != self.last:
            return self.problem.model(x)
        return 5.0 * torch.nn.functional.one_hot(self.problem.y, 5).to(x.dtype)


def test_a_point_that_the_model_takes_back_is_a_failure():
    problem = member_problem(9)
    attack, whole = _attack("fab_t", "l2"), fastadv.Execution(batch_size=9)
    counted = _Fickle(problem, 0)
    honest = attack.run(counted, problem.x, problem.y, execution=whole)
    with pytest.warns(fastadv.AttackWarning, match="unconfirmed|not confirmed"):
        denied = attack.run(_Fickle(problem, counted.calls), problem.x, problem.y, execution=whole)
    assert honest.success.all() and not denied.success.any()
    assert torch.equal(denied.x_adv, problem.x) and (denied.distance == math.inf).all()
    assert torch.equal(denied.prediction, denied.clean_prediction)
    assert torch.equal(denied.clean_prediction, honest.clean_prediction)


@pytest.mark.parametrize("norm", NORMS)
def test_linear_models_are_beaten_near_the_closed_form(norm):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    x = torch.randn(8, 12, generator=generator, dtype=torch.float64)

    def model(x):
        return x @ weight.T

    y, w = model(x).argmax(1), weight[0] - weight[1]
    dual = torch.linalg.vector_norm(w, {"linf": 1, "l2": 2, "l1": torch.inf}[norm])
    closed = (x @ w).abs() / dual
    result = _attack("fab", norm, bounds=None, steps=20).run(model, x, y)
    assert result.success.all()
    assert (result.distance >= closed * (1 - 1e-12)).all()
    assert (result.distance <= closed * 1.05).all()  # eta


def test_every_implementation_keeps_the_same_points(implementation, device):
    problem = member_problem(2, (2, 3))
    attack = _attack("fab_t", "linf", n_target_classes=1, steps=2)
    result = attack.run(problem.model.to(device), problem.x.to(device), problem.y.to(device))
    assert result.success.tolist() == [True, True]
    # the first is wrong as it is; of the second from the eager reference
    assert result.distance.tolist() == pytest.approx([0.0, 0.0471697], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_attack_can_be_pasted_back(name):
    attack = _attack(name, "l2")
    assert eval(repr(attack)) == attack and "fastadv.L2()" in repr(attack)
    assert dataclasses.replace(attack, threat=fastadv.L2(math.inf)) == attack
