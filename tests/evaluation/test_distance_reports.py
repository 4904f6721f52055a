"""Evaluations without a radius: distances, their quantiles, the curve that follows, their files."""

import json
import math

import pytest
import torch
from torch import nn

import fastadv
from fastadv.evaluation.proportions import wilson_interval


def _line():
    """Class 1 above 0.5."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.5, -0.5]))
    return model


X = torch.tensor([[0.1], [0.45], [0.6], [0.95]])
Y = torch.tensor([0, 0, 1, 0])  # the last one is wrong as it is


class _Wall(nn.Module):
    """As `_line`, but nothing changes the class of what has a second entry of 1."""

    def __init__(self):
        super().__init__()
        self.line = _line()

    def forward(self, x):
        return (
            self.line(x[:, :1]) * (1 - x[:, 1:].round()) + torch.tensor([1.0, 0]) * x[:, 1:].round()
        )


def _evaluated(x, y, attack, model=None) -> fastadv.DistanceReport:
    report = fastadv.evaluate(model or _line(), (x, y), attack)
    assert isinstance(report, fastadv.DistanceReport)
    return report


@pytest.fixture(params=["l2", "linf"])
def report(request):
    threat = {"l2": fastadv.L2, "linf": fastadv.Linf}[request.param]()
    return _evaluated(X, Y, fastadv.fab(threat, steps=20))


@pytest.fixture
def walled():
    x = torch.tensor([[0.1, 1.0], [0.4, 0.0], [0.3, 0.0]])
    attack = fastadv.fab(fastadv.L2(bounds=None), steps=5)
    with pytest.warns(fastadv.AttackWarning, match="gradient"):
        return _evaluated(x, torch.zeros(3, dtype=torch.int64), attack, _Wall())


def test_every_distance_is_that_of_the_boundary(report):
    assert report.eps is None
    assert report.distance.tolist() == pytest.approx([0.4, 0.05, 0.1, 0], rel=1e-2)
    assert report.distance[3] == 0 and report.clean_accuracy == 0.75
    assert not report.robust.any()


def test_quantiles_are_distances_of_samples_that_are_right(report):
    near, middle, far = sorted(report.distance[:3].tolist())
    assert report.quantiles((1 / 3, 0.5, 2 / 3, 1)) == (near, middle, middle, far)
    assert report.median == middle
    assert report.quantiles() == (near, near, middle, far, far)
    for level in (0, 1.5, -1):
        with pytest.raises(ValueError, match=r"levels must lie in \(0, 1\]"):
            report.quantiles((level,))


def test_ranks_are_not_rounded_up():
    found = torch.arange(1, 31, dtype=torch.float64)
    attack = fastadv.fab(fastadv.L2(), steps=1)
    report = _evaluated(X[:1].repeat(30, 1), torch.zeros(30).long(), attack)
    object.__setattr__(report, "distance", found)
    assert report.quantiles((0.1, 0.7)) == (3, 21)


def test_accuracy_at_a_radius_counts_what_lies_farther(report):
    own = float(report.distance[1])
    assert report.accuracy_at(0) == 0.75 and report.accuracy_at(own) == 0.5
    assert report.accuracy_at(math.nextafter(own, 0)) == 0.75 and report.accuracy_at(1) == 0


def test_the_curve_is_that_of_the_distances_and_its_passes_are_made_once(report):
    radii = [0.2, 0.02, 0.07]
    curve = report.curve(radii)
    assert curve.eps == (0.02, 0.07, 0.2) and curve.robust_accuracy == (0.75, 0.5, 0.25)
    assert curve.robust[:, 2].tolist() == [True, False, False, False]
    assert curve.confidence_intervals[1] == wilson_interval(2, 4)
    assert curve.forwards == (0, 0, report.forwards) and curve.attacked == (0, 0, 3)
    assert curve.norm == report.norm and curve.relative_cost == 1
    whole = report.curve()
    assert whole.eps[0] == 0 and whole.eps[-1] == float(report.distance.max())
    assert whole.robust_accuracy == tuple(map(report.accuracy_at, whole.eps))
    with pytest.raises(ValueError, match="an infinite one is given alone"):
        report.curve([0.1, math.inf])


def test_robustness_curve_of_an_attack_without_a_radius_runs_it_once(report):
    calls = []
    model = _line()
    model.register_forward_hook(lambda *_: calls.append(1))
    attack = fastadv.fab(getattr(fastadv, "L2" if report.norm == "l2" else "Linf")(), steps=20)
    curve = fastadv.robustness_curve(model, (X, Y), attack, eps=[0.02, 0.07, 0.2])
    once = len(calls)
    fastadv.evaluate(model, (X, Y), attack)
    assert len(calls) == 2 * once
    assert torch.equal(curve.robust, report.curve([0.02, 0.07, 0.2]).robust)


def test_what_is_never_found_is_infinitely_far(walled):
    assert walled.distance.isinf().tolist() == [True, False, False]
    assert walled.robust.tolist() == [True, False, False]
    assert walled.quantiles((0.5, 1)) == (float(walled.distance[1:].max()), math.inf)
    assert walled.curve().eps[-1] == float(walled.distance[1:].max())
    assert walled.accuracy_at(1e9) == 1 / 3
    assert "never" in walled.to_markdown() and "nothing found for" in walled.to_html()


def test_files_give_the_report_back(report, walled, tmp_path):
    for found in (report, walled):
        found.save(tmp_path / "distances.json")
        assert fastadv.DistanceReport.load(tmp_path / "distances.json") == found
        told = json.loads((tmp_path / "distances.json").read_text())
        assert told["distance_quantiles"]["0.5"] == found.median
        assert told["samples"]["distance"] == [
            d if math.isfinite(d) else "inf" for d in found.distance.tolist()
        ]
    (tmp_path / "other.json").write_text(
        fastadv.evaluate(_line(), (X, Y), fastadv.pgd(fastadv.Linf(0.01), steps=1)).to_json()
    )
    with pytest.raises(ValueError, match=r"a report at a radius: fastadv.Report.load reads it"):
        fastadv.DistanceReport.load(tmp_path / "other.json")


def test_pages_say_how_far(report):
    median = f"{report.median:.4g}"
    for text in (report.to_markdown(), report.to_html(), str(report), repr(report)):
        assert median in text
    assert f"<h1>median distance {median} in" in report.to_html()
    assert "robust accuracy</th>" not in report.to_html()


def test_a_model_that_gets_nothing_right_has_no_distances():
    report = _evaluated(X, 1 - Y, fastadv.fab(fastadv.L2(), steps=2))
    wrong = _evaluated(X[:2], Y[:2] + 1, fastadv.fab(fastadv.L2(), steps=2))
    assert report.clean_accuracy == 0.25
    assert math.isnan(wrong.median) and wrong.distance.tolist() == [0, 0]
    assert "median distance none" in wrong.to_html() and wrong.curve().eps == (0.0,)
    assert json.loads(wrong.to_json())["distance_quantiles"]["0.5"] == "nan"


def test_an_evaluation_that_is_interrupted_goes_on_to_the_same_bits(tmp_path):
    x = torch.linspace(0.01, 0.99, 40)[:, None]
    y = (x[:, 0] > 0.5).long()
    attack = fastadv.fab(fastadv.L2(), steps=10)
    whole = fastadv.evaluate(_line(), (x, y), attack, batch_size=2)

    def stop(status):
        if status.done >= 16:
            raise KeyboardInterrupt

    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        fastadv.evaluate(_line(), (x, y), attack, batch_size=2, checkpoint=file, progress=stop)
    assert file.exists()
    resumed = fastadv.evaluate(_line(), (x, y), attack, batch_size=2, checkpoint=file)
    assert torch.equal(resumed.distance, whole.distance) and resumed.forwards == whole.forwards


def test_the_figure_steps_down_at_every_distance(report, walled, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    figure = report.plot(tmp_path / "distances.svg", name="one", beside={"other": report})
    line = figure.axes[0].lines[0]
    radii, shown = (list(map(float, part)) for part in line.get_data())
    expected = sorted(report.distance[:3].tolist())
    assert radii == [0, *expected, expected[-1]] and line.get_drawstyle() == "steps-post"
    assert shown == [75, 50, 25, 0, 0]
    assert (tmp_path / "distances.svg").stat().st_size > 0
    assert walled.plot().axes[0].lines[0].get_ydata()[-1] == pytest.approx(100 / 3)
    if report.norm != walled.norm:
        with pytest.raises(ValueError, match="one norm"):
            report.plot(beside={"other": walled})
