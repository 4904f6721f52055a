"""Folding, channels_last and compile: other arithmetic, the same verdicts; and what a run took."""

import functools

import pytest
import torch
from members import custom_ensemble, member_problem
from torch import nn
from toy_models import differing_fields, mixed_problem, threat_of

import fastadv

N = 24


def _network(seed=0):
    """Convolutions with BatchNorm whose statistics are not trivial, in eval mode."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.3, 1.5)
    net.eval()
    with torch.no_grad():  # every class is predicted for some
        net[-1].weight *= 3
        logits = net(torch.rand(256, 3, 8, 8))
        net[-1].weight /= logits.std(0)[:, None]
        net[-1].bias.copy_(net[-1].bias - net(torch.rand(256, 3, 8, 8)).mean(0))
    return net


def _problem():
    net = _network()
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    return net, x, y


@pytest.fixture
def problem():
    return _problem()


def _attacks(eps=0.006):
    threat = fastadv.Linf(eps)
    return {
        "pgd": fastadv.pgd(threat, steps=8, restarts=2),
        "apgd_ce": fastadv.apgd_ce(threat, steps=8),
        "apgd_t": fastadv.apgd_t(threat, steps=8, n_target_classes=3),
        "fab_t": fastadv.fab_t(threat, steps=6, n_target_classes=3),
        "square": fastadv.square(fastadv.Linf(8 * eps), queries=40),
    }


EXECUTIONS = {
    "channels_last": dict(channels_last=True),
    "folded": dict(fold_batchnorm=True),
    "folded, channels_last": dict(fold_batchnorm=True, channels_last=True),
    "bf16, folded, channels_last": dict(
        precision="bf16", fold_batchnorm=True, channels_last=True, final_pass=True
    ),
}


_BATCHING = {name: ("continuous", "plain")[i % 2] for i, name in enumerate(EXECUTIONS)}


@functools.cache
def _exact(name):
    """The verdicts of the model as it is, whatever the schedule."""
    net, x, y = _problem()
    result = _attacks()[name].run(net, x, y, execution=fastadv.Execution(batch_size=10))
    assert 4 < int(result.success.sum()) < N - 2
    return result.success


@pytest.mark.parametrize("how", EXECUTIONS)
@pytest.mark.parametrize("name", _attacks())
def test_the_verdicts_are_those_of_the_model_as_it_is(name, how):
    net, x, y = _problem()
    execution = fastadv.Execution(batch_size=10, batching=_BATCHING[how], **EXECUTIONS[how])
    found = _attacks()[name].run(net, x, y, execution=execution)
    assert torch.equal(_exact(name), found.success)
    with torch.no_grad():
        assert torch.equal(found.success, net(found.x_adv).argmax(1) != y)
    assert found.x_adv.is_contiguous()


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("keep", ["first_success", "last", "best"])
def test_the_result_has_the_layout_of_x(problem, keep, format):
    net, x, y = problem
    x = x.contiguous(memory_format=format)
    attack = fastadv.pgd(fastadv.Linf(0.006), steps=4, keep=keep)
    execution = fastadv.Execution(channels_last=True)
    for x_adv in (
        attack.run(net, x, y, execution=execution).x_adv,
        attack(net, x, y, execution=execution),
    ):
        assert x_adv.stride() == x.stride()
    init = fastadv.start_point(attack.threat, x, seed=1)
    result = attack.run(net, x, y, x_init=init, execution=execution)
    assert bool(fastadv.contains(attack.threat, result.x_adv, x).all())


def test_weights_changed_in_place_reach_the_shadow(problem):
    net, x, y = problem
    attack = fastadv.pgd(fastadv.Linf(0.006), steps=8)
    how = fastadv.Execution(fold_batchnorm=True, channels_last=True)
    attack.run(net, x, y, execution=how)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(-0.8)
        net[1].running_mean.add_(0.1)
    exact = attack.run(net, x, y)
    assert torch.equal(exact.success, attack.run(net, x, y, execution=how).success)


class Skipping(nn.Module):
    """Also uses what BatchNorm is given: it cannot be folded away."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(0.5)
        self.head = nn.Linear(3 * 64, 5)

    def forward(self, x):
        z = self.conv(x)
        return self.head((self.norm(z) + z).flatten(1))


def test_folding_that_would_change_the_model_is_left_out_and_that_is_said(problem):
    _, x, y = problem
    attack = fastadv.pgd(fastadv.Linf(0.006), steps=2)
    net = Skipping().eval()
    exact = attack.run(net, x, y)
    with pytest.warns(fastadv.ExecutionWarning, match="fold_batchnorm=True was left out"):
        found = attack.run(net, x, y, execution=fastadv.Execution(fold_batchnorm=True))
    assert differing_fields(exact, found) == []


def test_the_model_is_as_it_was(problem):
    net, x, y = problem
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modules, parameters = list(net.modules()), list(net.parameters())
    attack = fastadv.apgd_ce(fastadv.Linf(0.006), steps=4)
    for how in EXECUTIONS.values():
        attack.run(net, x, y, execution=fastadv.Execution(**how))
    assert list(net.modules()) == modules
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_compiled_search_gives_the_same_verdicts_at_every_batch_size(problem):
    """With inductor, as users get it; a second batch size compiles nothing anew (torch itself
    chooses other CPU convolutions from 16 samples on: all batches here are smaller)."""
    import torch._dynamo.config

    _, x, y = problem
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    net.append(nn.Linear(4 * 36, 5))
    attack = fastadv.pgd(fastadv.Linf(0.006), steps=4)
    how = dict(compile=True, batching="plain")
    exact = attack.run(net, x, y, execution=fastadv.Execution(batching="plain", batch_size=10))
    first = attack.run(net, x, y, execution=fastadv.Execution(batch_size=12, **how))
    assert torch.equal(exact.success, first.success)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for size in (6, 15):
        found = attack.run(net, x, y, execution=fastadv.Execution(batch_size=size, **how))
        assert torch.equal(exact.success, found.success)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


def test_the_parts_of_the_time_add_up():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=10)
    result = attack.run(problem.model, problem.x, problem.y)
    cost = result.cost
    assert 0 < cost.model_seconds < cost.seconds
    assert cost.attack_seconds == cost.seconds - cost.model_seconds
    assert cost.limit_seconds == 0 and cost.share_of_limit is None
    assert (cost.denied, cost.final_attacked, cost.final_passes) == (0, 0, 0)


def test_the_limit_is_that_of_the_passes_that_were_made(monkeypatch):
    """Of a model each of whose passes takes a known time, on a clock of our own."""
    from fastadv.attacks.call import accounting

    clock = [0.0]

    class Slow(nn.Module):
        def forward(self, x):
            clock[0] += 2.0
            return Backward.apply(problem.model(x))

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.clone()

        @staticmethod
        def backward(ctx, *grads):
            clock[0] += 3.0
            return grads[0]

    monkeypatch.setattr(accounting.time, "perf_counter", lambda: clock[0])
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=10, keep="last")
    result = attack.run(Slow(), problem.x, problem.y, execution=fastadv.Execution(timed=True))
    # ten forwards and backwards and one forward that verifies, of all samples at once
    assert result.cost.limit_seconds == pytest.approx(10 * 5.0 + 2.0)
    assert (result.forwards, result.backwards) == (11 * 40, 10 * 40)
    assert result.cost.share_of_limit == pytest.approx(1.0)


def test_the_cost_of_an_ensemble_is_that_of_its_stages():
    problem = member_problem(24)
    result = custom_ensemble("linf").run(
        problem.model, problem.x, problem.y, execution=fastadv.Execution(batch_size=9, timed=True)
    )
    stages = result.stages
    assert result.cost.model_seconds == pytest.approx(sum(s.model_seconds for s in stages))
    assert result.cost.limit_seconds == pytest.approx(sum(s.limit_seconds for s in stages))
    assert result.cost.seconds == pytest.approx(sum(s.seconds for s in stages)) and stages


def test_timing_changes_no_result():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=6)
    plain, timed = (
        attack.run(problem.model, problem.x, problem.y, execution=fastadv.Execution(timed=timed))
        for timed in (False, True)
    )
    assert differing_fields(plain, timed) == []
    assert (plain.forwards, plain.backwards) == (timed.forwards, timed.backwards)


def test_passes_of_the_users_model_have_its_price_in_the_limit(monkeypatch):
    """In half precision the model takes no time at all, on a clock of our own."""
    from fastadv.attacks.call import accounting

    clock = [0.0]

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits, seconds):
            ctx.seconds = seconds
            return logits.clone()

        @staticmethod
        def backward(ctx, *grads):
            clock[0] += ctx.seconds
            return grads[0], None

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = problem.model

        def forward(self, x):
            is_own = not torch.is_autocast_enabled("cpu")
            clock[0] += 2.0 * is_own
            return Backward.apply(self.model(x), 3.0 * is_own)

    monkeypatch.setattr(accounting.time, "perf_counter", lambda: clock[0])
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf", 1e-4), steps=10)
    how = fastadv.Execution(precision="bf16", final_pass=True, timed=True)
    result = attack.run(Slow(), problem.x, problem.y, execution=how)
    attacked = int((result.clean_prediction == problem.y).sum())
    assert result.cost.final_attacked == attacked == int((~result.success).sum())
    # the clean look and the last one at all 40, ten steps of the final pass at the others
    expected = (2 * 40 * 2.0 + 10 * attacked * 5.0) / attacked
    assert result.cost.limit_seconds == pytest.approx(expected)
