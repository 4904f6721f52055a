"""On a GPU: fast searches confirmed, no waiting in a replay, memory that lacks and is returned."""

import contextlib
import gc
import warnings

import pytest
import torch
from cuda_attacks import BATCHING, PGD, captures, cuda, on, run, total_captures
from members import MEMBERS, member, member_problem
from torch import nn
from toy_models import NORMS, Problem, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.attacks.call import preparation
from fastadv.diagnostics import ExecutionWarning
from fastadv.engine.stepping import Stepper

__all__ = ["cuda"]  # a fixture


@pytest.fixture
def without_tf32():
    """Convolutions of float32 in float32, as a float64 copy can be compared with."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _network(device: torch.device) -> nn.Module:
    """Convolutions with BatchNorm whose statistics are not trivial, in eval mode."""
    generator = torch.Generator().manual_seed(0)
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
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(0, p[0].numel() ** -0.5 if p.ndim > 1 else 0.2, generator=generator)
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.add_(1.0)
                layer.running_mean.normal_(0, 0.2, generator=generator)
                layer.running_var.uniform_(0.3, 1.5, generator=generator)
        net[-1].weight.mul_(6)
    return net.eval().to(device)


_FAST = {
    "bf16": dict(precision="bf16"),
    "fp16": dict(precision="fp16"),
    "channels_last": dict(channels_last=True),
    "folded": dict(fold_batchnorm=True),
    "bf16, folded, channels_last": dict(
        precision="bf16", fold_batchnorm=True, channels_last=True, final_pass=True
    ),
}
_SEARCHES = {
    "pgd": lambda threat: fastadv.pgd(threat, steps=8, restarts=2),
    "apgd_t": lambda threat: fastadv.apgd_t(threat, steps=8, n_target_classes=3),
    "square": lambda threat: fastadv.square(fastadv.Linf(5 * threat.eps), queries=200),
}
# of logits of size 1 to 10: what float32 loses in sums of some hundred terms, a few ulp of 10
_DECIDED = 1e-4


@pytest.mark.filterwarnings("ignore:precision='fp16' is emulated")
@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("how", _FAST)
@pytest.mark.parametrize("name", _SEARCHES)
def test_successes_of_a_fast_search_are_the_models_own(cuda, without_tf32, name, how, batching):
    """Told by a float64 copy: another batch size may choose another algorithm of float32."""
    net = _network(cuda)
    x = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(3)).to(cuda)
    with torch.no_grad():
        y = net(x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    problem, attack = Problem(net, x, y), _SEARCHES[name](fastadv.Linf(0.03))
    common = dict(batching=batching, batch_size=10)
    exact = run(attack, problem, graph=False, **common)
    result = run(attack, problem, graph=True, **common, **_FAST[how])
    wide = _network(cuda).double()
    with torch.no_grad():
        logits = wide(result.x_adv.double())
    own = logits.gather(1, y[:, None])[:, 0]
    margin = logits.scatter(1, y[:, None], -torch.inf).amax(1) - own
    assert bool((result.success == (margin > 0))[margin.abs() > _DECIDED].all())
    assert int((margin.abs() <= _DECIDED).sum()) <= 1
    assert torch.equal(result.success, result.prediction != y)
    assert bool(fastadv.contains(attack.threat, result.x_adv, x).all())
    assert 2 < int(exact.success.sum()) < 24
    # a logit near its rival may turn at another precision: one sample of 24
    assert abs(int(result.success.sum()) - int(exact.success.sum())) <= 1
    assert total_captures(net) > 0


class Lying(nn.Module):
    """In half precision, and only there, the largest logit is lower: successes that are none."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        if not torch.is_autocast_enabled(x.device.type):
            return logits
        return logits - torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 0.1)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("norm", NORMS)
def test_denied_successes_are_attacked_further_between_replays(cuda, norm, batching):
    problem = on(cuda, mixed_problem(40))
    model = Lying(problem.model)
    attack = fastadv.pgd(threat_of(norm), steps=12, restarts=2, loss="margin")
    how = dict(batching=batching, batch_size=9)
    exact = run(attack, problem, graph=False, **how)
    eager = run(attack, problem, model, graph=False, precision="bf16", **how)
    for _ in range(2):
        replayed = run(attack, problem, model, precision="bf16", **how)
        assert differing_fields(eager, replayed) == []
        assert replayed.cost.denied == eager.cost.denied > 10
        assert torch.equal(replayed.success, exact.success)
    assert captures(model) > 0


_KEPT = tuple(name for name in PGD if name != "callable loss")


@contextlib.contextmanager
def _without_waiting():
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said once: that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [*_KEPT, *MEMBERS])
def test_nothing_waits_for_the_device_in_a_replayed_step(cuda, monkeypatch, name, norm, batching):
    """Of a plan that is warmed, which those of callable losses never are; Square's looks at its
    queue, which no graph holds, are let be."""
    is_member = name in MEMBERS
    problem = on(cuda, member_problem(24) if is_member else mixed_problem(40))
    attack = member(name, norm) if is_member else PGD[name](threat_of(norm))
    how = dict(batching=batching, batch_size=9)
    for _ in range(6):  # two steps of each kind warm up, two replays are compared with eager steps
        run(attack, problem, **how)
    (graphs,) = (one.graphs for one in preparation._KEPT[problem.model].values())
    assert graphs is not None
    recorded, replays, watched = graphs.captures, graphs.replays, []
    advance = Stepper.advance

    def strict(self, state, steps, *, look=False):
        for step in range(steps):
            looks = look and step == steps - 1
            if self.algorithm.variant(state) is None:
                advance(self, state, 1, look=looks)
                continue
            watched.append(1)
            with _without_waiting():
                advance(self, state, 1, look=looks)

    monkeypatch.setattr(Stepper, "advance", strict)
    run(attack, problem, **how)
    assert graphs.captures == recorded
    assert len(watched) == graphs.replays - replays > 0


def test_a_wait_would_be_noticed(cuda):
    ones = torch.ones(3, device=cuda)
    with pytest.raises(RuntimeError), _without_waiting():
        ones.sum().item()
    assert float(ones.sum()) == 3.0


class Cramped(nn.Module):
    """Asks for more memory than there is for over `rows` rows, from call number `call` on; with
    recording=True only while a graph is recorded."""

    def __init__(self, model, *, rows=3, call=0, recording=False):
        super().__init__()
        self.model, self.rows, self.call, self.recording = model, rows, call, recording
        self.counts = [0, 0]  # calls, failures: in a list, which recordings do not depend on

    def forward(self, x):
        self.counts[0] += 1
        applies = not self.recording or torch.cuda.is_current_stream_capturing()
        if len(x) > self.rows and self.counts[0] > self.call and applies:
            self.counts[1] += 1
            torch.empty(1 << 50, dtype=torch.uint8, device=x.device)
        return self.model(x)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("call", [0, 3, 4, 7])
@pytest.mark.parametrize("name", ["pgd", *MEMBERS])
def test_memory_that_runs_out_costs_no_sample(cuda, name, call, batching):
    """Whether the recording goes on in smaller parts or is given up with a warning."""
    problem = on(cuda, member_problem(24))
    attack = PGD["pgd"](threat_of("linf")) if name == "pgd" else member(name, "linf")
    how = dict(batching=batching, batch_size=9)
    calm = run(attack, problem, graph=False, **how)
    model = Cramped(problem.model, call=call)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert differing_fields(calm, run(attack, problem, model, **how)) == []
    assert model.counts[1] > 0
    assert len(seen) <= 1 and all(one.category is ExecutionWarning for one in seen)


def test_memory_that_a_recording_lacks_costs_no_sample(cuda):
    problem = on(cuda, mixed_problem(40))
    attack = PGD["pgd"](threat_of("linf"))
    calm = run(attack, problem, graph=False, batch_size=16)
    model = Cramped(problem.model, recording=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert differing_fields(calm, run(attack, problem, model, batch_size=16)) == []
    assert model.counts[1] > 0
    assert len(seen) <= 1 and all(one.category is ExecutionWarning for one in seen)


# what streams, generators and libraries keep for good, once they were used: their smallest blocks
_LEFT = 2 << 20


@pytest.mark.parametrize("how", ["release", "forget"])
def test_memory_is_given_back(cuda, how):
    problem = on(cuda, mixed_problem(64, (3, 64, 64)))
    attack = fastadv.pgd(threat_of("linf"), steps=6, keep="last")
    run(attack, on(cuda, mixed_problem(8)))  # what is made once for a device
    preparation.release()
    before = _allocated_and_reserved()
    result = run(attack, problem)
    del result
    held = _allocated_and_reserved()
    assert held[0] - before[0] >= problem.x.nbytes  # the slots of the plan
    if how == "release":
        fastadv.release()
        kept = 0
    else:
        kept = sum(t.nbytes for t in (problem.x, problem.y, *problem.model.parameters()))
        del problem
    left = _allocated_and_reserved()
    assert left[0] <= before[0] - kept + _LEFT and left[1] <= before[1] + _LEFT


def _allocated_and_reserved() -> tuple[int, int]:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
