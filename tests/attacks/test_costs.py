"""Contract C5: passes, weight gradients, synchronisations and launches, counted."""

from collections import Counter

import pytest
import torch
from op_counts import DATA_DEPENDENT, all_ops, linear, outer_ops, per_step
from torch import nn
from toy_models import NORMS, Counting, SpyLinear, assert_mixed, mixed_problem, threat_of

import fastadv
from fastadv.attacks.gradient.slots import ProjectedGradient
from fastadv.engine import continuous

STEPS = 6
N = 30


def _attack(norm="linf", keep="first_success", **more):
    return fastadv.pgd(threat_of(norm), **(dict(steps=STEPS, keep=keep) | more))


def _counted(attack, *, call=False, **more):
    problem = mixed_problem(N)
    model = Counting(problem.model)
    result = (attack if call else attack.run)(model, problem.x, problem.y, **more)
    return model, result


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("eot", [1, 3])
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("norm", NORMS)
def test_keep_last_makes_exactly_its_steps_and_verifies_nothing(norm, steps, eot, batch_size):
    model, _ = _counted(
        _attack(norm, "last", steps=steps, eot=eot),
        call=True,
        execution=fastadv.Execution(batch_size=batch_size),
    )
    assert (model.forwards, model.backwards) == (N * steps * eot, N * steps * eot)
    assert model.calls == steps * eot * (1 if batch_size is None else 5)


@pytest.mark.parametrize("batching", ["plain", "continuous"])
@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("eot", [1, 2])
@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_the_reported_passes_are_those_the_model_saw(keep, eot, batch_size, batching):
    restarts = 1 if keep == "last" else 2
    model, result = _counted(
        _attack(keep=keep, eot=eot, restarts=restarts),
        execution=fastadv.Execution(batching=batching, batch_size=batch_size),
    )
    assert type(result.forwards) is int and type(result.backwards) is int
    assert (result.forwards, result.backwards) == (model.forwards, model.backwards)


@pytest.mark.parametrize("more", [{}, dict(restarts=3), dict(eot=2)], ids=str)
def test_no_batch_is_larger_than_asked(more):
    for batching in ("plain", "continuous"):
        model, _ = _counted(
            _attack(**more), execution=fastadv.Execution(batching=batching, batch_size=7)
        )
        assert max(model.batches) == 7, batching


def test_continuous_batching_saves_the_steps_of_fooled_samples():
    problem = mixed_problem(60)
    attack = fastadv.pgd(threat_of("linf", 1.5), steps=24, step_size=0.01, restarts=4)

    def passes(batching):
        return attack.run(
            problem.model,
            problem.x,
            problem.y,
            execution=fastadv.Execution(batching=batching, batch_size=12),
        )

    plain, continuous = passes("plain"), passes("continuous")
    assert_mixed(plain, problem.y, 8)
    assert continuous.backwards < 0.8 * plain.backwards
    # what cannot be saved: each step of each sample until it falls, the clean and the last look
    fallen = (plain.step > 0).sum()
    needed = 24 * 4 * int((plain.step == -1).sum()) + int(fallen)
    assert needed <= continuous.backwards


def test_clean_wrong_samples_cost_no_backward_pass():
    problem = mixed_problem(10)
    with torch.no_grad():
        y = (problem.model(problem.x).argmax(1) + 1) % 5
    model = Counting(problem.model)
    result = _attack().run(model, problem.x, y)
    assert result.success.all()
    assert (model.forwards, model.backwards) == (20, 0)


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: net.forward, lambda net: _call(net)])
@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_no_weight_gradient_is_ever_computed(keep, wrap):
    layer = SpyLinear(48, 5)
    net = nn.Sequential(nn.Flatten(), layer)
    x = mixed_problem(N).x
    with torch.no_grad():
        y = net(x).argmax(1)
    layer.clear()
    _attack(keep=keep).run(wrap(net), x, y)
    assert layer.asked
    if wrap(net) is net:
        assert set(layer.asked) == {(True, False, False)}
    assert all(p.grad is None for p in net.parameters())


def _call(net):
    return lambda x: net(x)


@pytest.mark.parametrize("loss", ["ce", lambda z, y: z.gather(1, y[:, None])[:, 0].neg()])
def test_no_weight_gradient_through_a_normalised_model_or_a_loss_of_the_user(loss):
    layer = SpyLinear(48, 5)
    net = fastadv.Normalized(nn.Sequential(nn.Flatten(), layer), mean=(0.5,) * 3, std=(0.25,) * 3)
    layer.clear()
    _attack("l2", loss=loss, eot=2).run(net, mixed_problem(N).x)
    assert set(layer.asked) == {(True, False, False)}


def _caller(model, norm, keep="last", execution=None, **more):
    """steps -> the call of an attack with as many, at a radius too small to fool the model."""
    x = mixed_problem(N).x
    with torch.no_grad():
        y = model(x).argmax(1)

    def call_of(steps):
        threat = threat_of(norm, 1e-3)
        attack = fastadv.pgd(threat, steps=steps, step_size=1e-6, keep=keep, **more)
        run = attack if keep == "last" else attack.run
        return lambda: run(model, x, y, execution=execution)

    return call_of


_KINDS = {
    "ce": {},
    "margin": dict(loss="margin"),
    "dlr": dict(loss="dlr"),
    "kl": dict(loss="kl"),
    "user": dict(loss=lambda logits, y: logits.gather(1, y[:, None])[:, 0].neg()),
    "eot": dict(eot=2),
    "best": dict(keep="best", execution=fastadv.Execution(batching="plain")),
}


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_step_of_the_plain_loop_depends_on_data(norm, kind):
    step = per_step(all_ops, _caller(linear(), norm, **_KINDS[kind]))
    assert step["fastadv::loss_head_"] >= 1 and step[f"fastadv::{norm}_step_"] == 1
    assert DATA_DEPENDENT & step.keys() == set()


@pytest.mark.parametrize(
    "look",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 2).any()),
        lambda x: x[x > 2],
        lambda x: (x > 2).nonzero(),
    ],
    ids=["item", "bool", "mask", "nonzero"],
)
def test_the_count_of_data_dependent_ops_can_fail(look):
    """A model that looks at its data is seen."""
    net = linear()

    def looking(x):
        look(x.detach())
        return net(x)

    assert DATA_DEPENDENT & per_step(all_ops, _caller(looking, "linf")).keys()


_VIEWS = {f"aten::{n}" for n in ("view", "t", "detach", "select", "slice", "alias", "_unsafe_view")}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("keep", ["last", "first_success", "best"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_two_ops_beside_the_model(norm, keep, normalised):
    net = model = linear()
    if normalised:
        model = fastadv.Normalized(net, mean=(0.5,) * 3, std=(0.25,) * 3)
    plain = fastadv.Execution(batching="plain")
    step = per_step(outer_ops, _caller(model, norm, keep, plain))
    expected = Counter({"fastadv::loss_head_": 1, f"fastadv::{norm}_step_": 1})
    if keep == "best":  # contract C5: one launch more
        expected["fastadv::select_rows_"] = 1
    # beside them the model's own forward and backward to the input, nothing else that computes
    for p in net.parameters():
        p.requires_grad_(False)
    leaf, grad = torch.rand(N, 3, 4, 4, requires_grad=True), torch.rand(N, 5)
    expected += outer_ops(lambda: torch.autograd.grad(net(leaf), leaf, grad))
    assert {n: c for n, c in step.items() if n not in _VIEWS} == {
        n: c for n, c in expected.items() if n not in _VIEWS
    }


@pytest.mark.parametrize("steps", [4, 40])
def test_continuous_batching_reads_back_once_every_few_steps(monkeypatch, steps):
    problem = mixed_problem(N)
    reads, taken = [], []
    read = continuous.read
    step = ProjectedGradient.step
    monkeypatch.setattr(continuous, "read", lambda *args: reads.append(None) or read(*args))
    monkeypatch.setattr(
        ProjectedGradient,
        "step",
        lambda self, state: taken.append(None) or step(self, state),
    )
    _attack(steps=steps).run(problem.model, problem.x, problem.y)
    assert taken and len(reads) <= len(taken) / 4 + 1


def test_continuous_batching_depends_on_data_nowhere_else():
    """Between two reads nothing asks the device: flags come back in one copy."""
    call_of = _caller(linear(), "linf", "first_success")
    step = per_step(all_ops, lambda steps: call_of(8 * steps))
    assert step["fastadv::linf_step_"] == 8
    assert DATA_DEPENDENT & step.keys() == set()
