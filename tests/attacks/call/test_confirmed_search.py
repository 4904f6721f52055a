"""Contract C3 with a fast search: no success counts that the user's own model has not confirmed."""

import sys
from pathlib import Path

import pytest
import torch
from members import MEMBERS, custom_ensemble, member, member_problem
from toy_models import NORMS, Counting, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.diagnostics import ExecutionWarning

MODELS = Path(__file__).resolve().parents[4] / "shared" / "models"
HALVES = ("bf16", "fp16")
pytestmark = pytest.mark.filterwarnings("ignore:precision='fp16' is emulated")


class Lying(torch.nn.Module):
    """In half precision, and only there, the largest logit is lower by `offset`: the search sees
    successes that are none, and the gradient of the margin is what it is."""

    def __init__(self, model, offset):
        super().__init__()
        self.model, self.offset = model, offset

    def forward(self, x):
        logits = self.model(x)
        if not torch.is_autocast_enabled("cpu"):
            return logits
        lower = torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), self.offset)
        return logits - lower


def _run(attack, model, problem, **execution):
    execution = dict(batch_size=9) | execution
    return attack.run(model, problem.x, problem.y, execution=fastadv.Execution(**execution))


def _assert_honest(result, model, problem, threat):
    """Every success is one of the user's model on exactly what is returned, in bounds and ball."""
    with torch.no_grad():
        prediction = model(result.x_adv).argmax(1)
    assert torch.equal(result.success, prediction != problem.y)
    assert torch.equal(result.prediction, prediction)
    assert bool(fastadv.contains(threat, result.x_adv, problem.x).all())


@pytest.mark.parametrize(
    ("norm", "precision", "batching"),
    [
        ("linf", "bf16", "continuous"),
        ("l2", "bf16", "plain"),
        ("l1", "bf16", "continuous"),
        ("linf", "fp16", "plain"),
        ("l2", "fp16", "continuous"),
        ("l1", "fp16", "plain"),
    ],
)
def test_denied_successes_are_attacked_further(norm, precision, batching):
    """As far as float32 gets, from a search that lies about the last third of the way."""
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of(norm), steps=12, restarts=2, loss="margin")
    exact = _run(attack, problem.model, problem, batching=batching)
    assert 5 < int(exact.success.sum()) < 38 and int(exact.step.max()) > 5
    model = Lying(problem.model, 0.1)
    result = _run(attack, model, problem, precision=precision, batching=batching)
    assert result.cost.denied > 10
    _assert_honest(result, model, problem, attack.threat)
    assert torch.equal(exact.success, result.success)
    # a success is taken late by no more than the steps that are made between two looks
    assert bool((result.step >= exact.step)[exact.success].all())


@pytest.mark.parametrize(
    ("name", "norm", "batching"),
    [(name, norm, "continuous") for name in MEMBERS for norm in NORMS]
    + [(name, NORMS[i % 3], "plain") for i, name in enumerate(MEMBERS)],
)
def test_no_attack_reports_a_success_that_is_none(name, norm, batching):
    problem = member_problem(40)
    attack = member(name, norm)
    model = Lying(problem.model, 0.2)
    result = _run(attack, model, problem, precision="bf16", batching=batching)
    _assert_honest(result, model, problem, attack.threat)
    if attack.resolves_finely:  # which searches in float32
        assert result.cost.denied == 0
    else:
        assert result.cost.denied > 0


def test_no_ensemble_does():
    problem = member_problem(40)
    ensemble = custom_ensemble("linf")
    model = Lying(problem.model, 0.2)
    result = _run(ensemble, model, problem, precision="bf16")
    with torch.no_grad():
        prediction = model(result.x_adv).argmax(1)
    assert torch.equal(result.success, prediction != problem.y)
    assert result.cost.denied > 0
    assert result.cost.denied == sum(stage.denied for stage in result.stages)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_nor_where_nothing_stops(keep):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=6, keep=keep)
    model = Lying(problem.model, 0.2)
    result = _run(attack, model, problem, precision="bf16")
    _assert_honest(result, model, problem, attack.threat)


@pytest.mark.parametrize("precision", HALVES)
def test_the_schedule_changes_no_bit(precision):
    """Of a model whose passes do not depend on the batch, in half precision either."""
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=12, restarts=2)
    model = Lying(problem.model, 0.05)
    first = _run(attack, model, problem, precision=precision)
    for size, batching in ((40, "continuous"), (4, "continuous"), (7, "plain")):
        again = _run(
            attack, model, problem, precision=precision, batch_size=size, batching=batching
        )
        assert torch.equal(first.success, again.success)


def test_the_final_pass_leaves_what_float32_leaves():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=12)
    exact = _run(attack, problem.model, problem)
    result = _run(attack, problem.model, problem, precision="bf16", final_pass=True)
    robust = ~exact.success
    assert torch.equal(robust, ~result.success)
    assert torch.equal(exact.x_adv[robust], result.x_adv[robust])
    cost = result.cost
    assert cost.final_attacked == int(robust.sum()) and cost.final_broken == 0
    # 12 steps for each survivor, in slots that may wait
    assert cost.final_passes >= 24 * cost.final_attacked
    assert 0 < cost.final_seconds < cost.seconds


class Blind(torch.nn.Module):
    """In half precision its gradient leads nowhere: nothing falls in the search."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return logits.detach() + 0 * logits if torch.is_autocast_enabled("cpu") else logits


def test_the_final_pass_finds_what_the_search_could_not():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=12)
    exact = _run(attack, problem.model, problem)
    model = Blind(problem.model)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient"):
        weak = _run(attack, model, problem, precision="bf16")
    assert int(weak.success.sum()) < int(exact.success.sum())
    result = _run(attack, model, problem, precision="bf16", final_pass=True)
    assert torch.equal(exact.success, result.success)
    assert result.cost.final_broken > 0


class Overflowing(torch.nn.Module):
    """In half precision, gradients of samples whose first pixel is large leave fp16's range."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        if not torch.is_autocast_enabled("cpu"):
            return self.model(x)
        large = (x[:, :1, :1, :1] > 0.5).to(x.dtype)
        return self.model(x + large * 1e30 * (1e12 * (x - x.detach())))


def test_fp16_that_overflows_falls_back_to_float32():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=12)
    exact = _run(attack, problem.model, problem)
    model = Overflowing(problem.model)
    result = _run(attack, model, problem, precision="fp16")
    assert torch.equal(exact.success, result.success)
    robust = ~exact.success & (problem.x[:, 0, 0, 0] > 0.5)
    assert int(robust.sum()) > 2
    assert torch.equal(exact.x_adv[robust], result.x_adv[robust])
    assert result.cost.final_attacked >= int(robust.sum())
    last = fastadv.pgd(attack.threat, steps=12, keep="last")
    exact, result = (
        _run(last, m, problem, precision=p) for m, p in ((problem.model, "fp32"), (model, "fp16"))
    )
    large = problem.x[:, 0, 0, 0] > 0.5
    assert torch.equal(exact.x_adv[large], result.x_adv[large])


@pytest.mark.parametrize("more", [{}, dict(random_start=False), dict(eot=2)], ids=str)
def test_the_passes_that_are_reported_are_those_of_both_models(more):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=6, **more)
    model = Counting(Lying(problem.model, 0.1))
    result = _run(attack, model, problem, precision="bf16")
    shadow_forwards = result.forwards - model.forwards
    assert shadow_forwards > 0
    assert result.backwards > 0


def test_settings_that_make_no_sense_are_refused():
    problem = mixed_problem(4)
    with pytest.raises(ValueError, match="precision must be one of"):
        fastadv.Execution(precision="fp8")
    with pytest.raises(ValueError, match="channels_last must be True or False"):
        fastadv.Execution(channels_last="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cuda_graph must be one of"):
        fastadv.Execution(cuda_graph="always")
    attack = fastadv.apgd_ce(threat_of("linf"), steps=2, keep="authors")
    with pytest.raises(ValueError, match="keep='authors'"):
        _run(attack, problem.model, problem, precision="bf16")


def test_a_plain_function_is_searched_by_autocast_alone():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    seen = []

    def model(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return problem.model(x)

    result = _run(attack, model, problem, precision="bf16")
    _assert_honest(result, problem.model, problem, attack.threat)
    assert any(seen) and not all(seen)
    for name in ("channels_last", "fold_batchnorm"):
        with pytest.raises(ValueError, match=f"{name}=True needs a copy of the model"):
            _run(attack, model, problem, **{name: True})


class Unfit(torch.nn.Module):
    """Answers NaN in half precision."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        return logits * float("nan") if torch.is_autocast_enabled("cpu") else logits


def test_a_model_unfit_for_half_precision_is_searched_as_it_is_and_that_is_said():
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    exact = _run(attack, problem.model, problem)
    with pytest.warns(ExecutionWarning, match="precision='bf16' was left out"):
        result = _run(attack, Unfit(problem.model), problem, precision="bf16")
    assert differing_fields(exact, result) == []


EPS = {
    "mnist_kw_0.1": 0.1,
    "mnist_wong_0.3": 0.3,
    "cifar_sgd_8px": 0.5 / 255,
    "cifar_madry_8px": 8 / 255,
    "cifar_wide_kw": 2 / 255,
}


@pytest.mark.parametrize("name", EPS)
def test_third_party_models_are_as_robust_in_bf16_to_one_sample(name):
    if not MODELS.exists():
        pytest.skip("needs the third-party models of ../shared/models")
    sys.path.insert(0, str(MODELS))
    from load_models import load

    model, x, y = load(name, n=60)
    attack = fastadv.pgd(fastadv.Linf(EPS[name]), steps=20)
    exact, half = (
        attack.run(model, x, y, execution=fastadv.Execution(precision=precision, batch_size=30))
        for precision in ("fp32", "bf16")
    )
    with torch.no_grad():
        assert torch.equal(half.success, model(half.x_adv).argmax(1) != y)
    assert abs(int(exact.success.sum()) - int(half.success.sum())) <= 1


def test_fp16_on_a_cpu_is_warned_of():
    problem = mixed_problem(4)
    with pytest.warns(ExecutionWarning, match="fp16' is emulated on CPUs"):
        _run(fastadv.pgd(threat_of("linf"), steps=2), problem.model, problem, precision="fp16")
