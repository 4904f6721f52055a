"""Evaluations of what is no plain classifier, item D: an objective decides, and scores."""

import json
import warnings

import judged_models
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastadv
from fastadv.evaluation import evaluate
from fastadv.objective import Objective

THREAT = fastadv.Linf(0.25)
BATCH = 2  # blocks of 16


class Line(nn.Module):
    """x - 0.5, one number a sample."""

    def forward(self, x):
        return x - 0.5


def pgd(objective, **more):
    return fastadv.pgd(THREAT, loss=objective, **{"steps": 3, **more})


def comparable(report) -> dict:
    """All of a report but the clock."""
    read = json.loads(report.to_json())
    del read["seconds"], read["date"]
    read["cost"] = {k: v for k, v in read["cost"].items() if not k.endswith("seconds")}
    return read


class Failing(nn.Module):
    """Raises at a given call, or never (0), and counts its calls."""

    def __init__(self, model, at=0):
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, *inputs):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("killed")
        return self.model(*inputs)


def run(case, model, path=None, attack=None, data=None):
    return evaluate(
        model, data or case.data, attack or case.attack, batch_size=BATCH, checkpoint=path
    )


@pytest.mark.parametrize("keep", ["first_success", "last", "best"])
@pytest.mark.parametrize("kind", ["int64", "bool", "float column"])
def test_d_binary_accuracies_and_scores_are_those_of_a_line(keep, kind):
    x = torch.tensor([[0.1], [0.3], [0.45], [0.6], [0.9], [0.9]])
    y = torch.tensor([0, 0, 0, 1, 1, 0])
    y = {"int64": y, "bool": y.bool(), "float column": y[:, None].float()}[kind]
    report = evaluate(Line(), (x, y), pgd(fastadv.objectives.binary(), keep=keep))
    # only 0.1 and 0.9 are farther from 0.5 than eps; the last is wrong to begin with
    assert report.clean_correct.tolist() == [True, True, True, True, True, False]
    assert report.robust.tolist() == [True, False, False, False, True, False]
    assert report.clean_score.tolist() == [1, 1, 1, 1, 1, 0]
    assert report.score.tolist() == [1, 0, 0, 0, 1, 0]
    assert (report.clean_accuracy, report.robust_accuracy) == (5 / 6, 2 / 6)
    assert report.mean_clean_score == pytest.approx(5 / 6)
    assert report.mean_attacked_score == pytest.approx(2 / 6)
    assert report.objective == "fastadv.objectives.binary()"


def test_d_regression_errors_are_those_of_a_line():
    """One step of the whole radius goes where the error grows; the last is off as it is, and is not
    attacked: its score is that of x."""
    x = torch.tensor([[0.5], [0.5], [0.25]], dtype=torch.float64)
    y = torch.tensor([-0.125, -0.03125, 0.5], dtype=torch.float64)  # f is 0, 0, -0.25
    attack = pgd(
        fastadv.objectives.regression(tolerance=0.3), steps=1, step_size=0.25, random_start=False
    )
    report = evaluate(Line(), (x, y), attack)
    assert report.clean_score.tolist() == [0.125, 0.03125, 0.75]
    assert report.score.tolist() == [0.375, 0.28125, 0.75]
    assert report.success.tolist() == [True, False, True]
    assert report.robust.tolist() == [False, True, False]
    assert report.mean_attacked_score == pytest.approx(1.40625 / 3)


@pytest.mark.parametrize("name", ["segmentation", "multilabel"])
def test_d_interrupted_in_any_block_and_resumed_gives_the_same_bits(name, tmp_path):
    case = judged_models.CASES[name]()
    whole = Failing(case.model)
    expected = run(case, whole)
    assert 0 < expected.robust_accuracy < expected.clean_accuracy < 1
    assert expected.mean_attacked_score < expected.mean_clean_score < 1
    for at in (1, whole.calls // 2, whole.calls * 9 // 10):  # one call in each block
        path = tmp_path / f"{at}.pt"
        with pytest.raises(RuntimeError, match="killed"):
            run(case, Failing(case.model, at), path)
        resumed = Failing(case.model)
        report = run(case, resumed, path)
        assert comparable(report) == comparable(expected) and resumed.calls <= whole.calls
        again = Failing(case.model)  # a finished one asks the model about its first block only
        assert comparable(run(case, again, path)) == comparable(expected)
        assert again.calls == 8


def test_d_segments_and_labels_are_what_the_objective_says_of_the_outputs():
    """Clean columns by the model itself, attacked ones by the attack on all samples at once."""
    for name in ("segmentation", "multilabel"):
        case = judged_models.CASES[name]()
        report, (x, y) = run(case, case.model), case.data
        output = case.model(x)
        success = case.objective.success(output, y, **case.objective.parameters)
        score = case.objective.score(output, y, **case.objective.parameters)
        assert torch.equal(report.clean_correct, ~success)
        assert torch.equal(report.clean_score, score.double())
        result = case.attack.run(case.model, x, y)
        assert torch.equal(report.success, result.success)
        assert torch.equal(report.score, result.score.double())
        assert torch.equal(report.score[success], report.clean_score[success])


def test_d_a_checkpoint_of_another_parameter_y_or_model_is_refused(tmp_path):
    case, path = judged_models.segmentation(), tmp_path / "c.pt"
    expected = run(case, case.model, path)
    x, y = case.data
    other = judged_models.Judged(
        case.model, case.data, fastadv.objectives.segmentation(fraction=0.5, ignore_index=255)
    )
    with pytest.raises(ValueError, match="belongs to another attack: .*fraction=0.6.*, not .*=0.5"):
        run(case, case.model, path, attack=other.attack)
    changed = y.clone()
    changed[3, 1, 2] = (changed[3, 1, 2] + 1) % 3
    for labels, at in ((changed, 3), (y.to(torch.int32), 0)):
        with pytest.raises(ValueError, match=f"other data: sample {at} was another one"):
            run(case, case.model, path, data=(x, labels))
    assert comparable(run(case, case.model, path)) == comparable(expected)


def test_d_another_function_is_another_model_but_near_ties_are_not(tmp_path):
    x = torch.linspace(0.05, 0.95, 20)[:, None]
    x[7] = 0.5 - 2.0**-10
    y = (x[:, 0] > 0.5).long()
    shift = torch.zeros(())

    def line(x):
        return x - 0.5 + shift

    def noisy(x):
        return x - 0.5 + torch.randn(len(x), 1)

    def run(model, batch_size=BATCH):
        attack = pgd(fastadv.objectives.binary(), steps=1)
        path = tmp_path / model.__name__
        evaluate(model, (x, y), attack, batch_size=batch_size, checkpoint=path)

    run(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastadv.AttackWarning)
        run(noisy)
        run(noisy, batch_size=3)  # which draws other numbers for a sample
    shift += 2.0**-9
    assert bool(((x - 0.5 > 0) != (line(x) > 0)).any())
    run(line)
    shift -= 0.3
    with pytest.raises(ValueError, match="belongs to another model: .* classifies its first clean"):
        run(line)


def test_d_a_checkpoint_needs_an_objective_with_a_name(tmp_path):
    x, y = torch.linspace(0, 1, 20)[:, None], torch.zeros(20)

    def objective(name):
        return Objective(
            lambda out, y: out[:, 0], lambda out, y: out[:, 0] > 0.3, lambda out, y: 1 / y, name
        )

    with pytest.raises(ValueError, match="needs an objective with a name, .* Give it name="):
        evaluate(Line(), (x, y), pgd(objective(None)), checkpoint=tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()
    first = evaluate(Line(), (x, y), pgd(objective("above")), checkpoint=tmp_path / "c.pt")
    again = evaluate(Line(), (x, y), pgd(objective("above")), checkpoint=tmp_path / "c.pt")
    assert comparable(first) == comparable(again)
    # 0.8 and more are a success as they are, the others from 0.55 on after the attack
    assert first.clean_accuracy == 16 / 20 and first.robust_accuracy == 11 / 20
    with pytest.raises(ValueError, match="belongs to another attack: .*name='above'"):
        evaluate(Line(), (x, y), pgd(objective("below")), checkpoint=tmp_path / "c.pt")


def test_d_without_success_there_is_nothing_to_count():
    attack = pgd(Objective(lambda out, y: out[:, 0], name="up"), keep="last")
    data = (torch.zeros(2, 1), torch.zeros(2))
    for call in (evaluate, lambda *given: fastadv.robustness_curve(*given, [0.1])):
        with pytest.raises(ValueError, match="does not say what a success is: give it success="):
            call(Line(), data, attack)


@pytest.mark.parametrize(
    ("objective", "y", "said"),
    [
        (None, torch.zeros(3, 2), r"one label a sample.*Other labels need a fastadv.Objective"),
        (fastadv.objectives.binary(), torch.zeros(2, 1), "a row of y a sample; got x .3, 1. and"),
    ],
)
def test_d_labels_that_do_not_fit_are_refused(objective, y, said):
    attack = pgd(objective) if objective else fastadv.pgd(THREAT)
    with pytest.raises(ValueError, match=said):
        evaluate(Line(), (torch.zeros(3, 1), y), attack)


def test_d_a_curve_counts_successes_of_the_objective():
    x = torch.tensor([[0.1], [0.38], [0.47], [0.6], [0.9], [0.9]])
    y = torch.tensor([0.0, 0, 0, 1, 1, 0])[:, None]
    for data in ((x, y), DataLoader(TensorDataset(x, y), batch_size=4)):
        attack = pgd(fastadv.objectives.binary())
        curve = fastadv.robustness_curve(Line(), data, attack, [0.05, 0.11, 0.25])
        assert curve.clean_correct.tolist() == [True, True, True, True, True, False]
        assert curve.robust.sum(1).tolist() == [3, 2, 0, 1, 3, 0]
        assert "objectives.binary()" in curve.attack
