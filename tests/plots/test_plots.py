"""Figures: what is drawn where, and no trace in pyplot."""

import sys

import pytest
import torch

from fastadv import plots

pytest.importorskip("matplotlib", reason="needs matplotlib")


def pixels(figure) -> torch.Tensor:
    """(H, W, 3) bytes of the rendered figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8).view(
        *reversed(canvas.get_width_height()), 4
    )[..., :3]


def test_curves_are_the_accuracies_in_percent():
    figure = plots.accuracy_against_eps(
        [0.0, 0.1, 0.2],
        {"a": [1.0, 0.5, 0.0], "b": [0.9, 0.8, 0.7]},
        title="PGD",
        mark=0.1,
        intervals={"a": [(0.9, 1.0)] * 3, "b": [(0.5, 0.9)] * 3},
    )
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["a"].get_xdata().tolist() == [0.0, 0.1, 0.2]
    assert list(lines["a"].get_ydata()) == [100.0, 50.0, 0.0]
    assert lines["b"].get_ydata()[2] == pytest.approx(70.0)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert "eps" in axes.get_xlabel() and "(%)" in axes.get_ylabel()
    assert axes.get_title(loc="left").startswith("PGD")
    assert len(axes.collections) == 2  # the bands


def test_the_sheet_shows_images_differences_and_predictions():
    x = torch.zeros(2, 1, 4, 4)
    x_adv = x.clone()
    x_adv[0, 0, 1, 2] = 0.25
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    figure = plots.example_sheet(
        x, x_adv, torch.tensor([0, 1]), logits, -logits, title="t", class_names=["cat", "dog"]
    )
    clean, change, adversarial = figure.axes[0], figure.axes[2], figure.axes[4]
    assert change.images[0].get_array()[1, 2] == 0.25
    assert change.images[0].get_clim() == (-0.25, 0.25)
    assert adversarial.images[0].get_array()[1, 2] == 0.25
    assert clean.get_xlabel() == "cat, 99 %" and adversarial.get_xlabel() == "dog, 99 %"
    assert clean.xaxis.label.get_color() != adversarial.xaxis.label.get_color()
    assert [figure.axes[k].get_ylabel() for k in (0, 2, 4)] == [
        "clean",
        "perturbation",
        "adversarial",
    ]


def test_the_sheet_takes_colour_images_and_no_perturbation():
    x = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    figure = plots.example_sheet(
        x, x, torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2), title="t"
    )
    assert figure.axes[0].images[0].get_array().shape == (5, 5, 3)
    assert float(pixels(figure).float().std()) > 1


def test_every_restart_is_a_line_and_a_count_in_the_histogram():
    runs = torch.linspace(0, 2, 60).view(5, 12)
    figure = plots.restart_losses({"one": runs, "two": runs * 2}, title="t")
    lines, histogram = figure.axes[0], figure.axes[1]
    assert len(lines.lines) == 5
    assert list(lines.lines[3].get_ydata()) == runs[3].double().tolist()
    assert sum(bar.get_width() for bar in histogram.patches) == 5
    assert "0.37 to 2.00" in histogram.get_title(loc="left")
    assert figure.axes[2].get_xlabel() == "PGD step" and "nats" in lines.get_ylabel()
    assert [axes.get_ylim() for axes in figure.axes] == [(0.0, pytest.approx(4.2))] * 4
    assert lines.get_shared_y_axes().joined(*figure.axes[1:3])


def test_constant_losses_are_drawn():
    figure = plots.restart_losses({"flat": torch.zeros(3, 4)}, title="t")
    assert float(pixels(figure).float().std()) > 1


def test_pyplot_is_not_imported_nor_the_backend_chosen():
    import matplotlib

    before = dict(matplotlib.rcParams)
    was_imported = "matplotlib.pyplot" in sys.modules
    figure = plots.accuracy_against_eps([0.0, 1.0], {"a": [1.0, 0.0]}, title="t")
    assert float(pixels(figure).float().std()) > 1
    assert ("matplotlib.pyplot" in sys.modules) == was_imported
    assert dict(matplotlib.rcParams) == before


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match='pip install "matplotlib>=3.8"'):
        plots.accuracy_against_eps([0.0], {"a": [1.0]}, title="t")
