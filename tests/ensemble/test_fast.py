"""version="fast": doubtful samples, and only they, get the attacks held in reserve."""

import dataclasses
import warnings

import pytest
import torch
from members import member_problem
from toy_models import differing_fields, rows_of, threat_of

import fastadv
from fastadv.attacks import AttackResult
from fastadv.ensemble.cascade import Progress

_BUDGETS = {"apgd_ce": dict(steps=2), "apgd_t": dict(steps=2, n_target_classes=2)}


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
    n = 5
    progress = Progress.of_clean(
        torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64), torch.tensor([[1.0, 0.0]] * n)
    )
    #                     masked  honest  nearly there  nearly there  fallen
    progress.by_gradient = torch.tensor([-0.9, -0.5, -0.05, -0.5, -0.9])
    progress.by_search = torch.tensor([-0.4, -0.6, -0.60, -0.60, -0.1])
    progress.broken_by[4] = 0
    assert progress.doubtful.tolist() == [True, False, True, False, False]


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
    assert result.stages[3].attacked <= left // 4


def test_masked_gradients_call_the_reserve_which_breaks_more_than_the_gradients_did():
    p = member_problem(40)
    ensemble = _small(1.5)
    result = _run(ensemble, _staircase(p), p.x, p.y)
    first, second, search, again, more = result.stages
    assert first.broken + second.broken < search.broken + again.broken + more.broken
    assert again.attacked > 0 and more.broken > 0


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
