"""Contract C4: an attack leaves no trace on the model, its arguments or the process."""

import pytest
import torch
from torch import nn
from toy_models import FailingAt, differing_fields, mixed_problem, same_bits
from traces import WAYS, images, process_state, short_attack, trace_of, training_net

import fastadv


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("execution", WAYS, ids=["continuous", "plain"])
def test_the_model_is_as_it_was(execution, keep):
    model = training_net()
    x, y = images()
    before = trace_of(model)
    result = short_attack(keep=keep).run(model, x, y, execution=execution)
    assert result.success.any()
    assert trace_of(model) == before
    assert before["grad"][0] is not None and before["grad"][2] is None  # both kinds are covered
    assert {False, True} == {flag for _, flag in before["training"]}
    assert {False, True} == {flag for _, flag in before["requires_grad"]}


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_the_process_is_as_it_was(keep):
    model = training_net()
    x, y = images()
    before = process_state()
    short_attack(keep=keep).run(model, x, y)
    assert process_state() == before


def test_the_model_is_in_eval_mode_and_frozen_while_attacked():
    seen = []

    class Spied(nn.Sequential):
        def forward(self, x):
            modes = {m.training for m in self.modules()}
            seen.append((modes, {p.requires_grad for p in self.parameters()}))
            return super().forward(x)

    model = Spied(training_net())
    model.train(True)
    x, y = images()
    short_attack().run(model, x, y)
    assert seen and all(modes == {False} and grads == {False} for modes, grads in seen)
    assert model.training


class _Boom(Exception):
    pass


@pytest.mark.parametrize("error", [_Boom("forward"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("call", [0, 1, 3, 6])
@pytest.mark.parametrize("keep", ["first_success", "last"])
def test_everything_is_as_it_was_after_an_error(error, call, keep):
    model = FailingAt(training_net(), call, error)
    model.train(True)
    model.model[1].eval()
    x, y = images()
    x = x.clone().requires_grad_()
    before, process, pixels = trace_of(model.model), process_state(), x.detach().clone()
    with pytest.raises(type(error)):
        short_attack(keep=keep).run(model, x, y, execution=WAYS[0])
    assert model.calls == call + 1
    assert trace_of(model.model) == before
    assert process_state() == process
    assert model.training
    assert torch.equal(x, pixels) and x.grad is None and x.requires_grad


@pytest.mark.parametrize("call", [0, 2])
def test_everything_is_as_it_was_after_an_error_of_the_loss(call):
    model = training_net()
    x, y = images()
    calls = []

    def loss(logits, y):
        calls.append(None)
        if len(calls) > call:
            raise _Boom
        return nn.functional.cross_entropy(logits, y, reduction="none")

    before, process = trace_of(model), process_state()
    with pytest.raises(_Boom):
        short_attack(loss=loss).run(model, x, y)
    assert trace_of(model) == before
    assert process_state() == process


def test_everything_is_as_it_was_after_a_refused_argument():
    model = training_net()
    x, y = images()
    before, process = trace_of(model), process_state()
    with pytest.raises(ValueError):
        short_attack().run(model, x, y + 100)
    with pytest.raises(ValueError):
        short_attack().run(model, 2 * x, y)
    assert trace_of(model) == before
    assert process_state() == process


def test_hooks_stay_registered_and_fire():
    model = training_net()
    fired = []
    model[1].register_forward_hook(lambda *args: fired.append("inner"))
    model.register_forward_pre_hook(lambda *args: fired.append("outer"))
    x, y = images()
    before = trace_of(model)
    short_attack(keep="last")(model, x, y)
    assert fired == ["outer", "inner"] * 3
    assert trace_of(model) == before


@pytest.mark.parametrize("register", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_a_normalised_model_fire(register):
    fired = []
    model = fastadv.Normalized(training_net(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))

    def hook(*args):
        fired.append(None)

    getattr(model, f"register_{register}_hook")(hook)
    x, y = images()
    short_attack(keep="last")(model, x, y)
    assert len(fired) == 3


def test_a_forward_hook_that_changes_the_logits_counts():
    model = fastadv.Normalized(training_net().eval(), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    x, _ = images()
    with torch.no_grad():
        plain = model(x).argmax(1)
    model.register_forward_hook(lambda module, args, logits: -logits)
    with pytest.warns(fastadv.AttackWarning, match="zero_radius"):
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


@pytest.mark.filterwarnings("ignore:zero_radius:fastadv.AttackWarning")
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


def test_a_bound_method_of_a_module_is_isolated_like_the_module():
    net = training_net()
    x, y = images()
    before = trace_of(net)
    expected = short_attack().run(net, x, y)
    assert differing_fields(short_attack().run(net.forward, x, y), expected) == []
    assert trace_of(net) == before


def test_a_lambda_over_a_training_module_leaves_no_gradients():
    net = training_net()
    x, y = images()
    grads = trace_of(net)
    short_attack(keep="last")(lambda x: net(x), x, y)
    after = trace_of(net)
    for what in ("training", "requires_grad", "grad", "grad_bits", "weights", "hooks"):
        assert after[what] == grads[what]


def test_a_model_that_modifies_its_input_does_not_modify_x():
    problem = mixed_problem(8)
    x = problem.x.clone()
    with pytest.raises(ValueError, match="modifies its input in place"):
        short_attack().run(lambda z: problem.model(z.mul_(0.5)), x, problem.y)
    assert same_bits(x, problem.x)


def test_shared_and_nested_modules_keep_their_flags():
    shared = nn.Linear(48, 48)
    shared.eval()
    model = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(48, 4))
    model.train()
    shared.eval()
    before = trace_of(model)
    x, y = images()
    short_attack().run(model, x, y)
    assert trace_of(model) == before
