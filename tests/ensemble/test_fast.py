"""version="fast": doubtful samples, and only they, get the attacks held in reserve."""

import dataclasses
import warnings

import pytest
import torch
from members import member_problem
from toy_models import differing_fields, rows_of, threat_of

import fastadv
from fastadv.attacks import AttackResult
from fastadv.attacks.call.result import Stage
from fastadv.ensemble import checks
from fastadv.ensemble.cascade import Progress
from fastadv.ensemble.versions import reserved_of

_BUDGETS = {
    "apgd_ce": dict(steps=2),
    "apgd_t": dict(steps=2, n_target_classes=2),
    "fab_t": dict(steps=2),
}


def _small(scale: float = 1.0):
    """`fast` with few steps and queries, so that samples are left to doubt."""
    ensemble = fastadv.autoattack(threat_of("linf", scale), "fast")
    attacks = [
        dataclasses.replace(attack, **_BUDGETS.get(attack.constructor, dict(queries=12 + 20 * i)))
        for i, attack in enumerate(ensemble.attacks)
    ]
    return dataclasses.replace(ensemble, attacks=tuple(attacks))


def _run(ensemble, model, x, y, **options) -> AttackResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastadv.AttackWarning)
        return ensemble.run(model, x, y, **options)


def _staircase(p):
    """p's model on quantised pixels: its gradients are zero, random search sees through that."""

    def model(x):
        return p.model((x * 12).round() / 12 + 0.0 * x)

    return model


def test_doubted_are_those_that_search_came_closer_to_or_of_whose_margin_little_is_left():
    n = 6
    progress = Progress.of_clean(
        torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), torch.tensor([[1.0, 0.0]] * n)
    )
    #                     masked  honest  nearest  near  fallen  masked and nearest
    progress.by_gradient = torch.tensor([-0.9, -0.5, -0.05, -0.16, -0.9, -0.05])
    progress.by_search = torch.tensor([-0.4, -0.6, -0.60, -0.60, -0.1, -0.04])
    progress.broken_by[4] = 0
    who = [
        progress.attacked_by(i, 7, reserved_of("fast")).nonzero()[:, 0].tolist() for i in range(7)
    ]
    everyone, masked, nearest, near = [0, 1, 2, 3, 5], [0, 5], [2], [2, 3]
    assert who == [everyone] * 3 + [masked, nearest, near, masked]


def test_its_two_square_attacks_draw_other_windows():
    for seed in (0, 7, None):
        attacks = fastadv.autoattack(threat_of("linf"), "fast", seed=seed).attacks
        seeds = [attack.seed for attack in attacks if attack.constructor == "square"]
        assert len(set(seeds)) == len(seeds) == 2
        assert {attack.seed for attack in attacks} == set(seeds)


def _stage(name: str, attacked: int, broken: int) -> Stage:
    return Stage(name, "", attacked, broken, 0.0, 0, 0, 0)


def test_what_falls_from_where_square_ended_is_its_gain():
    before = [_stage("APGD-CE", 190, 140), _stage("APGD-T", 50, 31), _stage("SQUARE", 19, 0)]
    reserve = [_stage("APGD-T", 13, 8), _stage("APGD-T", 3, 1), _stage("FAB-T", 9, 0)]
    gains = checks.gains_of_square([*before, *reserve, _stage("SQUARE", 5, 0)], len(reserve) + 1)
    assert gains == (0, 8)
    with pytest.warns(fastadv.AttackWarning, match="square_gains: 8 of 200 samples"):
        checks.warn_of_square(gains, 200)


def test_one_sample_that_fell_from_where_search_ended_is_no_sign_but_one_that_it_broke_is():
    before = [_stage("APGD-CE", 190, 140), _stage("APGD-T", 50, 31), _stage("SQUARE", 19, 0)]
    reserve = [_stage("APGD-T", 1, 1), _stage("APGD-T", 8, 2), _stage("FAB-T", 9, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = _stage("SQUARE", 0, 0)
        checks.warn_of_square(checks.gains_of_square([*before, *reserve, last], 4), 200)
    reserve[0], last = _stage("APGD-T", 1, 0), _stage("SQUARE", 1, 1)
    with pytest.warns(fastadv.AttackWarning, match="square_gains: 1 of 200 samples"):
        checks.warn_of_square(checks.gains_of_square([*before, *reserve, last], 4), 200)


def test_a_run_and_an_evaluation_count_the_same_gains_of_square():
    p, ensemble = member_problem(40), _small(1.5)
    model = _staircase(p)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ensemble.run(model, p.x, p.y)
        report = fastadv.evaluate(model, (p.x, p.y), ensemble, batch_size=20, progress=False)
    said = [w.message for w in caught if isinstance(w.message, fastadv.AttackWarning)]
    counts = [warning.count for warning in said if warning.code == "square_gains"]
    last = result.stages[-1]
    expected = result.stages[2].broken + result.stages[3].broken + last.broken
    assert result.stages[3].attacked > 0 and last.broken > 0
    assert counts == [expected, expected] == [report.warnings["square_gains"]] * 2


def test_a_zero_gradient_in_an_ensemble_advises_no_loss():
    """All that could be named are among its own."""
    p, ensemble = member_problem(12, wrong_every=20), _small(0.5)
    attacks = [dataclasses.replace(attack) for attack in ensemble.attacks[:3]]
    ensemble = dataclasses.replace(ensemble, version="custom", attacks=tuple(attacks))

    def flat(x):
        return p.model(x).detach() + 0.0 * x.flatten(1).sum(1, keepdim=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = fastadv.evaluate(flat, (p.x, p.y), ensemble, progress=False)
        ensemble.run(flat, p.x, p.y)
    texts = [str(w.message) for w in caught if getattr(w.message, "code", "") == "zero_gradient"]
    texts.append(report.explanations["zero_gradient"])
    assert len(texts) == 3
    for text in texts:
        assert "BPDA" in text and "loss=" not in text


def test_an_honest_model_leaves_the_reserve_alone():
    p = member_problem(24, curvature=0.1)
    ensemble = fastadv.autoattack(threat_of("linf", 0.3), "fast")
    ensemble = dataclasses.replace(
        ensemble,
        attacks=tuple(
            dataclasses.replace(attack, queries=20) if attack.constructor == "square" else attack
            for attack in ensemble.attacks
        ),
    )
    result = _run(ensemble, p.model, p.x, p.y)
    left = int((~result.success).sum())
    assert left > 4
    for stage in result.stages[3:]:
        assert stage.attacked <= left // 4


def test_masked_gradients_call_the_reserve_which_breaks_more_than_the_gradients_did():
    p = member_problem(40)
    ensemble = _small(1.5)
    result = _run(ensemble, _staircase(p), p.x, p.y)
    first, second, search, *reserve = result.stages
    behind = search.broken + sum(stage.broken for stage in reserve)
    assert first.broken + second.broken < behind
    assert reserve[0].attacked > 0 and reserve[-1].broken > 0


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_the_batch_changes_no_bit(batch_size):
    p = member_problem(20)
    ensemble, model = _small(1.5), _staircase(p)
    expected = _run(ensemble, model, p.x, p.y)
    assert expected.stages[3].attacked > 0
    got = _run(ensemble, model, p.x, p.y, execution=fastadv.Execution(batch_size=batch_size))
    assert set(differing_fields(got, expected)) <= {"stages", "forwards", "backwards"}
    rows = torch.tensor([3, 11, 17])
    alone = _run(ensemble, model, p.x[rows], p.y[rows], sample_ids=rows)
    ignored = {"stages", "forwards", "backwards"}
    assert set(differing_fields(alone, rows_of(expected, rows))) <= ignored


def test_it_goes_on_after_any_stage(tmp_path):
    p = member_problem(20)
    ensemble, model = _small(1.5), _staircase(p)

    class Killed(Exception):
        pass

    data = (p.x, p.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastadv.AttackWarning)
        expected = fastadv.evaluate(model, data, ensemble, progress=False)
        path = tmp_path / "fast.pt"
        for _ in range(3):

            def stop(status):
                if status.attack and path.exists():
                    raise Killed

            try:
                fastadv.evaluate(model, data, ensemble, progress=stop, checkpoint=path)
            except Killed:
                pass
        got = fastadv.evaluate(model, data, ensemble, progress=False, checkpoint=path)
    assert torch.equal(got.robust, expected.robust) and torch.equal(got.distance, expected.distance)
    assert torch.equal(got.broken_by, expected.broken_by)
