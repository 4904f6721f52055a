"""Contract C4: what surrounds a call, modes, generators and kinds of models, changes no result."""

import pytest
import torch
from torch import nn
from toy_models import differing_fields, mixed_problem, same_bits, threat_of
from traces import WAYS, images, process_state, short_attack, trace_of, training_net

import fastadv


def _modes():
    yield "no_grad", torch.no_grad
    yield "enable_grad", torch.enable_grad
    yield "inference_mode", torch.inference_mode
    yield "autocast", lambda: torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize(("name", "mode"), list(_modes()), ids=lambda value: value if value else "")
def test_the_mode_around_the_call_changes_no_bit(name, mode, keep):
    problem = mixed_problem(16)
    attack = short_attack(keep=keep)
    expected = attack.run(problem.model, problem.x, problem.y)
    with mode():
        before = process_state()
        x, y, ids = problem.x.clone(), problem.y.clone(), torch.arange(16)
        assert x.is_inference() == (name == "inference_mode")
        result = attack.run(problem.model, x, y, sample_ids=ids)
        moved = attack(problem.model, x, y, sample_ids=ids)
        assert process_state() == before
        assert same_bits(x, problem.x)
    assert differing_fields(result, expected) == []
    assert same_bits(moved, expected.x_adv)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_argument_may_be_an_inference_tensor(norm):
    problem = mixed_problem(16)
    x_init = (problem.x * 0.99).clamp(0, 1)
    target = (problem.y + 1) % 5
    kind = threat_of(norm).__class__
    eps = threat_of(norm).eps

    def attack(eps):
        return fastadv.pgd(kind(eps), steps=3, step_size=eps / 4)

    expected = attack(torch.full((16,), eps)).run(
        problem.model,
        problem.x,
        problem.y,
        target=target,
        x_init=x_init,
        sample_ids=torch.arange(16),
    )
    with torch.inference_mode():
        radius = torch.full((16,), eps)
        arguments = [t.clone() for t in (problem.x, problem.y)]
        more = dict(target=target.clone(), x_init=x_init.clone(), sample_ids=torch.arange(16))
        inside = attack(radius).run(problem.model, *arguments, **more)
    # inference tensors that outlive their mode
    outside = attack(radius).run(problem.model, *arguments, **more)
    assert differing_fields(inside, expected) == []
    assert differing_fields(outside, expected) == []


def test_a_result_can_be_trained_on_after_inference_mode():
    problem = mixed_problem(16)
    for keep in ("first_success", "last"):
        with torch.inference_mode():
            x_adv = short_attack(keep=keep)(problem.model, problem.x, problem.y)
        loss = nn.functional.cross_entropy(problem.model(x_adv), problem.y)
        loss.backward()  # an inference tensor cannot be saved for backward
        assert problem.model.weight.grad is not None


class _Noisy(nn.Module):
    """Draws random numbers in its own forward."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.01 * torch.randn_like(x))


@pytest.mark.parametrize("execution", WAYS, ids=["continuous", "plain"])
def test_a_random_model_gives_the_same_result_twice(execution):
    problem = mixed_problem(16)
    model = _Noisy(problem.model)
    attack = short_attack(eot=2)
    before = process_state()
    first = attack.run(model, problem.x, problem.y, execution=execution)
    assert process_state() == before
    torch.manual_seed(99)
    assert (
        differing_fields(attack.run(model, problem.x, problem.y, execution=execution), first) == []
    )


def test_a_random_model_draws_otherwise_for_another_seed():
    problem = mixed_problem(16)
    model = _Noisy(problem.model)
    first = short_attack(seed=0, random_start=False).run(model, problem.x, problem.y)
    other = short_attack(seed=1, random_start=False).run(model, problem.x, problem.y)
    assert "loss" in differing_fields(first, other)


def test_dropout_is_off_while_attacked_and_on_after():
    model = training_net()
    x, y = images()
    first = short_attack().run(model, x, y)
    assert differing_fields(short_attack().run(model, x, y), first) == []
    assert model[4][1].training
    assert not torch.equal(model[4][1](torch.ones(64)), torch.ones(64))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net.forward,
        lambda net: lambda x: net(x),
        lambda net: _Owner(net).predict,
        lambda net: _Callable(net),
    ],
    ids=["bound method", "lambda", "method of a plain object", "callable object"],
)
def test_models_need_not_be_modules(wrap):
    net = training_net()
    for module in net.modules():  # eval() does not reach the stubborn ones
        module.training = False
    x, y = images()
    expected = short_attack().run(net, x, y)
    before = trace_of(net)
    assert differing_fields(short_attack().run(wrap(net), x, y), expected) == []
    assert trace_of(net) == before


class _Owner:
    def __init__(self, net):
        self.net = net

    def predict(self, x):
        return self.net(x)


class _Callable(_Owner):
    def __call__(self, x):
        return self.net(x)


def test_deterministic_algorithms_suffice():
    problem = mixed_problem(16)
    expected = short_attack().run(problem.model, problem.x, problem.y)
    torch.use_deterministic_algorithms(True)
    try:
        for execution in WAYS:
            result = short_attack().run(problem.model, problem.x, problem.y, execution=execution)
            assert differing_fields(result, expected) == []
    finally:
        torch.use_deterministic_algorithms(False)
