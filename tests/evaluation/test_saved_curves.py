"""`Curve.load`: the curve that was saved; anything else is refused in words."""

import json

import pytest
import torch

import fastadv
from fastadv.evaluation import Curve


def curve() -> Curve:
    robust = torch.tensor([[True, False], [True, True], [False, False]])
    return Curve(
        model="Net",
        attack="fastadv.pgd(fastadv.Linf(0.1))",
        eps=(0.05, 0.1),
        clean_correct=torch.tensor([True, True, False]),
        robust=robust,
        attacked=(1, 2),
        forwards=(10, 20),
        backwards=(5, 15),
        warnings={"zero_gradient": 1},
        environment={"torch": "2"},
        execution="fastadv.Execution()",
    )


def test_a_curve_is_the_same_again(tmp_path):
    curve().save(tmp_path / "c.json")
    again = Curve.load(tmp_path / "c.json")
    assert again == curve() and hash(again) == hash(curve()) and again.eps == (0.05, 0.1)
    assert again != curve().robust and str(again) == str(curve())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": []}, "eps is not a list of radii"),
        ({"eps": ["0.1", "0.2"]}, "eps is not a list of radii"),
        ({"samples": None}, "it has no samples"),
        ({"samples": {"clean_correct": [1, 0, 1]}}, "samples.clean_correct is not a table"),
        ({"samples": {"clean_correct": [True], "robust": [[True]]}}, "samples.robust is not a"),
        ({"attacked": [1]}, "attacked is not a count for each radius"),
        ({"forwards": [1, 0.5]}, "forwards is not a count for each radius"),
        ({"model": 3}, "model is not a text"),
        ({"warnings": {"a": "b"}}, "warnings is not what a curve has"),
    ],
)
def test_what_is_no_curve_is_refused(tmp_path, change, message):
    (tmp_path / "c.json").write_text(json.dumps({**json.loads(curve().to_json()), **change}))
    with pytest.raises(ValueError, match=f"is not a curve that Curve.save wrote: {message}"):
        Curve.load(tmp_path / "c.json")


def test_other_files_are_refused(tmp_path):
    curve().save(tmp_path / "c.md")
    with pytest.raises(ValueError, match="path must end in .json"):
        Curve.load(tmp_path / "c.md")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="is not a JSON file"):
        Curve.load(tmp_path / "c.json")
    curve().save(tmp_path / "c.json")
    with pytest.raises(ValueError, match="is not a report that Report.save wrote"):
        fastadv.Report.load(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="cannot be written: there is no folder"):
        curve().save(tmp_path / "no" / "c.json")
