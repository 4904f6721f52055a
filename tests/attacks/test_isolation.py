"""Contract C4: an attack leaves no trace on the model, its arguments or the process."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from toy_models import FailingAt, differing_fields, mixed_problem, same_bits, threat_of

import fastadv

_WAYS = [
    fastadv.Execution(batch_size=3),
    fastadv.Execution(batching="plain", batch_size=3),
]


class _Stubborn(nn.Sequential):
    """A module whose train() and eval() do nothing, as in frozen backbones."""

    def train(self, mode=True):
        return self

    def eval(self):
        return self


def _net(dtype=torch.float32):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        _Stubborn(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).to(dtype)
    net.train()
    net[1].eval()  # the user froze one layer
    net[0].bias.requires_grad_(False)
    net[0].weight.grad = torch.full_like(net[0].weight, 0.25)
    net[1].running_mean.uniform_(-0.1, 0.1)
    return net


def _data(n=8, dtype=torch.float32):
    x = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, torch.arange(n) % 4


def _attack(**more):
    return fastadv.pgd(fastadv.Linf(0.1), steps=3, **more)


def _trace(model):
    """Everything about a module that an attack could change, in comparable form."""
    return {
        "training": [(name, m.training) for name, m in model.named_modules()],
        "requires_grad": [(name, p.requires_grad) for name, p in model.named_parameters()],
        "identities": [id(p) for p in model.parameters()],
        "grad": [None if p.grad is None else id(p.grad) for p in model.parameters()],
        "grad_bits": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "weights": [p.tolist() for p in model.parameters()],
        "buffers": [(name, b.tolist()) for name, b in model.named_buffers()],
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        ],
        "attributes": [(name, sorted(vars(m))) for name, m in model.named_modules()],
    }


def _process():
    """Global state of the process, in comparable form."""
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "autocast_dtype": [torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")],
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "cudnn": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
        "matmul": (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
        ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "printing": np.geterr(),
    }


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("execution", _WAYS, ids=["continuous", "plain"])
def test_the_model_is_as_it_was(execution, keep):
    model = _net()
    x, y = _data()
    before = _trace(model)
    result = _attack(keep=keep).run(model, x, y, execution=execution)
    assert result.success.any()
    assert _trace(model) == before
    assert before["grad"][0] is not None and before["grad"][2] is None  # both kinds are covered
    assert {False, True} == {flag for _, flag in before["training"]}
    assert {False, True} == {flag for _, flag in before["requires_grad"]}


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_the_process_is_as_it_was(keep):
    model = _net()
    x, y = _data()
    before = _process()
    _attack(keep=keep).run(model, x, y)
    assert _process() == before


def test_the_model_is_in_eval_mode_and_frozen_while_attacked():
    seen = []

    class Spied(nn.Sequential):
        def forward(self, x):
            modes = {m.training for m in self.modules()}
            seen.append((modes, {p.requires_grad for p in self.parameters()}))
            return super().forward(x)

    model = Spied(_net())
    model.train(True)
    x, y = _data()
    _attack().run(model, x, y)
    assert seen and all(modes == {False} and grads == {False} for modes, grads in seen)
    assert model.training


class _Boom(Exception):
    pass


@pytest.mark.parametrize("error", [_Boom("forward"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("call", [0, 1, 3, 6])
@pytest.mark.parametrize("keep", ["first_success", "last"])
def test_everything_is_as_it_was_after_an_error(error, call, keep):
    model = FailingAt(_net(), call, error)
    model.train(True)
    model.model[1].eval()
    x, y = _data()
    x = x.clone().requires_grad_()
    before, process, pixels = _trace(model.model), _process(), x.detach().clone()
    with pytest.raises(type(error)):
        _attack(keep=keep).run(model, x, y, execution=_WAYS[0])
    assert model.calls == call + 1
    assert _trace(model.model) == before
    assert _process() == process
    assert model.training
    assert torch.equal(x, pixels) and x.grad is None and x.requires_grad


@pytest.mark.parametrize("call", [0, 2])
def test_everything_is_as_it_was_after_an_error_of_the_loss(call):
    model = _net()
    x, y = _data()
    calls = []

    def loss(logits, y):
        calls.append(None)
        if len(calls) > call:
            raise _Boom
        return nn.functional.cross_entropy(logits, y, reduction="none")

    before, process = _trace(model), _process()
    with pytest.raises(_Boom):
        _attack(loss=loss).run(model, x, y)
    assert _trace(model) == before
    assert _process() == process


def test_everything_is_as_it_was_after_a_refused_argument():
    model = _net()
    x, y = _data()
    before, process = _trace(model), _process()
    with pytest.raises(ValueError):
        _attack().run(model, x, y + 100)
    with pytest.raises(ValueError):
        _attack().run(model, 2 * x, y)
    assert _trace(model) == before
    assert _process() == process


def test_hooks_stay_registered_and_fire():
    model = _net()
    fired = []
    model[1].register_forward_hook(lambda *args: fired.append("inner"))
    model.register_forward_pre_hook(lambda *args: fired.append("outer"))
    x, y = _data()
    before = _trace(model)
    _attack(keep="last")(model, x, y)
    assert fired == ["outer", "inner"] * 3
    assert _trace(model) == before


@pytest.mark.parametrize("register", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_a_normalised_model_fire(register):
    fired = []
    model = fastadv.Normalized(_net(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))

    def hook(*args):
        fired.append(None)

    getattr(model, f"register_{register}_hook")(hook)
    x, y = _data()
    _attack(keep="last")(model, x, y)
    assert len(fired) == 3


def test_a_forward_hook_that_changes_the_logits_counts():
    model = fastadv.Normalized(_net().eval(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    x, _ = _data()
    with torch.no_grad():
        plain = model(x).argmax(1)
    model.register_forward_hook(lambda module, args, logits: -logits)
    result = fastadv.pgd(fastadv.Linf(0.0), steps=1).run(model, x)
    assert not torch.equal(result.clean_prediction, plain)
    assert torch.equal(result.clean_prediction, result.prediction)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_the_arguments_are_not_modified(keep):
    problem = mixed_problem(16)
    x = problem.x.clone().requires_grad_()
    x.grad = torch.full_like(x, 0.5)
    y, ids, target = problem.y.clone(), torch.arange(16) * 3, (problem.y + 1) % 5
    start = (x.detach() + 0.01).clamp(0, 1).requires_grad_()
    eps, step = torch.full((16,), 0.06), torch.full((16,), 0.01)
    arguments = (x, y, ids, target, start, eps, step)
    before = [(t.detach().clone(), t._version, t.requires_grad) for t in arguments]
    attack = fastadv.pgd(fastadv.Linf(eps), steps=3, step_size=step, keep=keep)
    result = attack.run(problem.model, x, y, target=target, sample_ids=ids, x_init=start)
    for tensor, (bits, version, requires_grad) in zip(arguments, before, strict=True):
        assert same_bits(tensor.detach(), bits)
        assert (tensor._version, tensor.requires_grad) == (version, requires_grad)
    assert torch.equal(x.grad, torch.full_like(x, 0.5)) and start.grad is None
    assert not result.x_adv.requires_grad and result.x_adv.is_leaf
    assert not result.loss.requires_grad
    # and the result is not a view of an argument
    result.x_adv.fill_(7.0)
    assert same_bits(x.detach(), before[0][0])


@pytest.mark.parametrize("keep", ["first_success", "last"])
def test_the_result_of_no_attack_is_not_x_itself(keep):
    problem = mixed_problem(4)
    x = problem.x.clone()
    for rows in (x, x[:0]):
        moved = fastadv.bim(fastadv.Linf(0.0), steps=1, keep=keep)(
            problem.model, rows, problem.y[: len(rows)]
        )
        assert moved is not rows
        moved.fill_(7.0)
    assert torch.equal(x, problem.x)


def _modes():
    yield "no_grad", torch.no_grad
    yield "enable_grad", torch.enable_grad
    yield "inference_mode", torch.inference_mode
    yield "autocast", lambda: torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize(("name", "mode"), list(_modes()), ids=lambda value: value if value else "")
def test_the_mode_around_the_call_changes_no_bit(name, mode, keep):
    problem = mixed_problem(16)
    attack = _attack(keep=keep)
    expected = attack.run(problem.model, problem.x, problem.y)
    with mode():
        before = _process()
        x, y, ids = problem.x.clone(), problem.y.clone(), torch.arange(16)
        assert x.is_inference() == (name == "inference_mode")
        result = attack.run(problem.model, x, y, sample_ids=ids)
        moved = attack(problem.model, x, y, sample_ids=ids)
        assert _process() == before
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
            x_adv = _attack(keep=keep)(problem.model, problem.x, problem.y)
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


@pytest.mark.parametrize("execution", _WAYS, ids=["continuous", "plain"])
def test_a_random_model_gives_the_same_result_twice(execution):
    problem = mixed_problem(16)
    model = _Noisy(problem.model)
    attack = _attack(eot=2)
    before = _process()
    first = attack.run(model, problem.x, problem.y, execution=execution)
    assert _process() == before
    torch.manual_seed(99)
    assert (
        differing_fields(attack.run(model, problem.x, problem.y, execution=execution), first) == []
    )


def test_a_random_model_draws_otherwise_for_another_seed():
    problem = mixed_problem(16)
    model = _Noisy(problem.model)
    first = _attack(seed=0, random_start=False).run(model, problem.x, problem.y)
    other = _attack(seed=1, random_start=False).run(model, problem.x, problem.y)
    assert "loss" in differing_fields(first, other)


def test_dropout_is_off_while_attacked_and_on_after():
    model = _net()
    x, y = _data()
    first = _attack().run(model, x, y)
    assert differing_fields(_attack().run(model, x, y), first) == []
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
    net = _net()
    for module in net.modules():  # eval() does not reach the stubborn ones
        module.training = False
    x, y = _data()
    expected = _attack().run(net, x, y)
    before = _trace(net)
    assert differing_fields(_attack().run(wrap(net), x, y), expected) == []
    assert _trace(net) == before


class _Owner:
    def __init__(self, net):
        self.net = net

    def predict(self, x):
        return self.net(x)


class _Callable(_Owner):
    def __call__(self, x):
        return self.net(x)


def test_a_bound_method_of_a_module_is_isolated_like_the_module():
    net = _net()
    x, y = _data()
    before = _trace(net)
    expected = _attack().run(net, x, y)
    assert differing_fields(_attack().run(net.forward, x, y), expected) == []
    assert _trace(net) == before


def test_a_lambda_over_a_training_module_leaves_no_gradients():
    net = _net()
    x, y = _data()
    grads = _trace(net)
    _attack(keep="last")(lambda x: net(x), x, y)
    after = _trace(net)
    for what in ("training", "requires_grad", "grad", "grad_bits", "weights", "hooks"):
        assert after[what] == grads[what]


def test_a_model_that_modifies_its_input_does_not_modify_x():
    problem = mixed_problem(8)
    x = problem.x.clone()
    with pytest.raises(ValueError, match="modifies its input in place"):
        _attack().run(lambda z: problem.model(z.mul_(0.5)), x, problem.y)
    assert same_bits(x, problem.x)


def test_shared_and_nested_modules_keep_their_flags():
    shared = nn.Linear(48, 48)
    shared.eval()
    model = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(48, 4))
    model.train()
    shared.eval()
    before = _trace(model)
    x, y = _data()
    _attack().run(model, x, y)
    assert _trace(model) == before


def test_deterministic_algorithms_suffice():
    problem = mixed_problem(16)
    expected = _attack().run(problem.model, problem.x, problem.y)
    torch.use_deterministic_algorithms(True)
    try:
        for execution in _WAYS:
            result = _attack().run(problem.model, problem.x, problem.y, execution=execution)
            assert differing_fields(result, expected) == []
    finally:
        torch.use_deterministic_algorithms(False)
