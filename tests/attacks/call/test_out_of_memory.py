"""Contract C7: running out of memory, anywhere, loses nothing and repeats nothing."""

import functools

import pytest
import torch
from members import MEMBERS, custom_ensemble, member, member_problem
from toy_models import NORMS, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv import memory
from fastadv.attacks.gradient.slots import ProjectedGradient

_CPU_TEXT = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"


class _Backward(torch.autograd.Function):
    """The identity; memory may run out on its way back."""

    @staticmethod
    def forward(ctx, logits, allows):
        ctx.allows = allows
        return logits.clone()

    @staticmethod
    def backward(ctx, *grads):
        ctx.allows()
        return grads[0], None


class Tight(torch.nn.Module):
    """Runs out of memory for more than `rows` rows, in the forward or on the way back, from call
    number `call` on; counts the samples of the passes that came to their end."""

    def __init__(self, model, *, rows, call=0, where="forward", error=torch.OutOfMemoryError):
        super().__init__()
        self.model, self.rows, self.call = model, rows, call
        self.where, self.error = where, error
        self.calls = self.forwards = self.backwards = self.failures = 0

    def forward(self, x):
        self.calls += 1
        fails = self.calls > self.call and len(x) > self.rows
        if fails and self.where == "forward":
            self._fail()
        logits = self.model(x)
        self.forwards += len(x)

        def allows():
            if fails:
                self._fail()
            self.backwards += len(x)

        return _Backward.apply(logits, allows)

    def _fail(self):
        self.failures += 1
        raise self.error(_CPU_TEXT if self.error is RuntimeError else "CUDA out of memory")


def _run(attack, model, problem, **execution):
    return attack.run(model, problem.x, problem.y, execution=fastadv.Execution(**execution))


def _pgd(keep="first_success"):
    restarts = 1 if keep == "last" else 2
    return fastadv.pgd(threat_of("linf"), steps=8, restarts=restarts, keep=keep)


@functools.cache
def _calm(keep, batching):
    """What `_pgd` finds where memory never runs out."""
    problem = mixed_problem(40)
    return _run(_pgd(keep), problem.model, problem, batching=batching, batch_size=16)


@pytest.mark.parametrize("batching", ["continuous", "plain"])
@pytest.mark.parametrize("call", [0, 3, 7])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_batch_is_halved_until_it_fits_and_no_pass_is_repeated(where, call, batching):
    problem, calm = mixed_problem(40), _calm("first_success", batching)
    model = Tight(problem.model, rows=3, call=call, where=where)
    result = _run(_pgd(), model, problem, batching=batching, batch_size=16)
    assert differing_fields(calm, result) == []
    assert model.failures > 0
    assert (result.forwards, result.backwards) == (model.forwards, model.backwards)
    assert result.backwards == calm.backwards
    if where == "forward":
        assert result.forwards == calm.forwards
    else:  # rows whose way back failed had to go forward again, and those alone
        assert calm.forwards < result.forwards <= calm.forwards + 16 * model.failures


@pytest.mark.parametrize(
    ("name", "norm", "where"),
    [
        # each member both ways, and each norm; Square goes forward only
        (name, norm, "forward" if name == "square" else ("forward", "backward")[(i + k) % 2])
        for i, name in enumerate(MEMBERS)
        for k, norm in enumerate(NORMS)
    ],
)
def test_every_attack_of_autoattack_goes_on(name, norm, where):
    problem = member_problem(14)
    attack = member(name, norm)
    calm = _run(attack, problem.model, problem, batch_size=9)
    model = Tight(problem.model, rows=4, call=5, where=where)
    assert differing_fields(calm, _run(attack, model, problem, batch_size=9)) == []
    assert model.failures > 0


def test_an_ensemble_goes_on():
    problem = member_problem(24)
    attack = custom_ensemble("linf")
    calm = _run(attack, problem.model, problem, batch_size=9)
    model = Tight(problem.model, rows=4, call=20)
    result = _run(attack, model, problem, batch_size=9)
    assert differing_fields(calm, result) == []
    assert torch.equal(calm.broken_by, result.broken_by)


def test_keep_last_and_eot_and_callable_losses_go_on():
    problem = mixed_problem(24)

    def loss(logits, y):
        return -logits.gather(1, y[:, None])[:, 0]

    for more in (dict(keep="last"), dict(eot=2), dict(loss=loss), dict(keep="best")):
        attack = fastadv.pgd(threat_of("linf"), steps=6, **more)
        calm = _run(attack, problem.model, problem, batch_size=16)
        for where in ("forward", "backward"):
            model = Tight(problem.model, rows=3, call=4, where=where)
            assert differing_fields(calm, _run(attack, model, problem, batch_size=16)) == []
            assert model.failures > 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_every_way_of_saying_it_is_understood(error):
    problem = mixed_problem(20)
    attack = fastadv.pgd(threat_of("linf"), steps=4)
    model = Tight(problem.model, rows=4, error=error)
    calm = _run(attack, problem.model, problem)
    assert differing_fields(calm, _run(attack, model, problem)) == []


def test_other_errors_are_not_taken_for_it():
    for error in (
        RuntimeError("CUDA error: an illegal memory access"),
        ValueError("out of memory"),
    ):
        assert not memory.is_out_of_memory(error)


def test_one_sample_that_does_not_fit_is_an_error():
    problem = mixed_problem(8)
    model = Tight(problem.model, rows=0, call=1)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        _run(fastadv.pgd(threat_of("linf"), steps=4), model, problem)


class _Failing:
    """A function that runs out of memory at some of its calls."""

    def __init__(self, function, calls):
        self.function, self.calls, self.count = function, calls, 0

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count in self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.function(*args, **kwargs)


_BESIDE = [
    ("allocate", {1}),
    ("allocate", {1, 2}),
    ("start", {1}),
    ("start", {2}),
    ("start", {3}),
    ("step", {1}),
    ("step", {2, 3}),
    ("step", {6}),
    ("step", {5, 9, 14}),
]


@pytest.mark.parametrize(
    ("keep", "place", "calls", "batching"),
    [
        (keep, place, calls, ("continuous", "plain")[(i + k) % 2])
        for i, (place, calls) in enumerate(_BESIDE)
        for k, keep in enumerate(("first_success", "last"))
    ],
)
def test_beside_the_model_what_was_under_way_starts_again(
    monkeypatch, keep, place, calls, batching
):
    problem, calm = mixed_problem(40), _calm(keep, batching)
    if keep == "last" and place != "step":
        place = "loaded"  # which allocates and starts
    failing = _Failing(getattr(ProjectedGradient, place), calls)
    monkeypatch.setattr(ProjectedGradient, place, lambda self, *args: failing(self, *args))
    result = _run(_pgd(keep), problem.model, problem, batching=batching, batch_size=16)
    assert differing_fields(calm, result) == []
    assert failing.count >= max(calls)


@pytest.mark.parametrize("how", ["precision", "channels_last", "timed"])
def test_a_shadow_is_checked_and_a_limit_measured_at_what_fits(how):
    problem = mixed_problem(40)
    more = {how: "bf16" if how == "precision" else True}
    attack = fastadv.pgd(threat_of("linf"), steps=4)
    calm = _run(attack, problem.model, problem, **more)
    result = _run(attack, Tight(problem.model, rows=7), problem, **more)
    assert torch.equal(calm.success, result.success)


def test_an_evaluation_and_its_resumption_go_on(tmp_path):
    problem = member_problem(24)
    for attack in (custom_ensemble("linf"), fastadv.pgd(threat_of("linf"), steps=3, keep="last")):
        data, path = (problem.x, problem.y), tmp_path / f"{len(repr(attack))}.pt"
        calm = fastadv.evaluate(problem.model, data, attack, batch_size=12, progress=False)
        model = Tight(problem.model, rows=5)
        for _ in range(2):
            report = fastadv.evaluate(
                model, data, attack, batch_size=12, checkpoint=path, progress=False
            )
            assert torch.equal(calm.robust, report.robust)
        assert model.failures > 0
