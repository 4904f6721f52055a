"""Reports of objectives, item D: what they show, and scores of every kind of number read back."""

import json

import judged_models
import pytest
import torch
from torch import nn

import fastadv
from fastadv.evaluation import Report, evaluate
from fastadv.objective import Objective

THREAT = fastadv.Linf(0.25)


class Line(nn.Module):
    """x - 0.5, one number a sample."""

    def forward(self, x):
        return x - 0.5


def of_case(case) -> Report:
    return evaluate(case.model, case.data, case.attack, batch_size=2)


@pytest.fixture(scope="module")
def scored():
    """A score of every kind of number."""
    objective = Objective(
        lambda out, y: out[:, 0],
        lambda out, y: out[:, 0] > 0.3,
        lambda out, y: torch.where(y > 0, out[:, 0], torch.inf) * y.sign(),
        name="up",
    )
    x = torch.tensor([[0.0], [0.25], [0.375], [0.5], [0.75], [1.0]])
    y = torch.tensor([1.0, 1, 1, 0, -1, 1])
    return evaluate(Line(), (x, y), fastadv.pgd(THREAT, steps=3, loss=objective))


def test_d_reports_show_the_objective_and_its_scores(scored):
    case = judged_models.segmentation(20)
    report = of_case(case)
    clean, attacked = f"{report.mean_clean_score:.4g}", f"{report.mean_attacked_score:.4g}"
    assert report.summary()["objective"] == repr(case.objective)
    assert report.summary()["mean_clean_score"] == float(report.clean_score.mean())
    for text in (str(report), report.to_markdown(), report.to_html()):
        assert f"{clean} clean, {attacked} attacked" in text
        assert "objectives.segmentation(fraction=0.6, ignore_index=255)" in text
    plain = evaluate(nn.Flatten(), (torch.zeros(2, 3), torch.zeros(2).long()), fastadv.pgd(THREAT))
    assert plain.objective is None and plain.score is None and plain.mean_clean_score is None
    assert "score" not in str(plain) + plain.to_markdown() + plain.to_html()


def test_d_a_report_with_scores_is_loaded_as_it_was(scored, tmp_path):
    assert str(scored.score.tolist()) == "[-0.25, 0.0, 0.125, nan, -inf, 0.5]"
    scored.save(tmp_path / "report.json")
    loaded = Report.load(tmp_path / "report.json")
    assert loaded == scored and loaded.to_json() == scored.to_json()
    content = json.loads(scored.to_json())
    assert content["mean_attacked_score"] == "nan" and content["samples"]["score"][4] == "-inf"
    content["samples"]["score"][0] += 1
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert Report.load(tmp_path / "other.json") != scored


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.update(objective=3), "objective is not a text"),
        (lambda content: content["samples"].pop("score"), "clean_score and score, without the o"),
        (lambda content: content["samples"].update(score=["x"] * 6), "samples.score is not a list"),
        (lambda content: content["samples"]["score"].pop(), "samples.score has 5 values, not 6"),
    ],
)
def test_d_a_file_with_other_scores_is_refused(scored, tmp_path, change, said):
    content = json.loads(scored.to_json())
    change(content)
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        Report.load(tmp_path / "report.json")


def test_d_reports_from_before_objectives_are_loaded(tmp_path):
    case = judged_models.masked(8)
    report = of_case(case)
    content = json.loads(report.to_json())
    for name in ("objective", "mean_clean_score", "mean_attacked_score"):
        del content[name]
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert Report.load(tmp_path / "report.json") == report
