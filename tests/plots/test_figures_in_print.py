"""Figures in one column of a paper: letters that can be read, colours told apart, nothing cut."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

import fastadv
from fastadv import plots
from fastadv.evaluation import Curve, Report
from fastadv.values import in_255ths

pytest.importorskip("matplotlib", reason="needs matplotlib")

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LONG = "L-infinity PGD with 20 steps, 2 restarts and step size 2/255, eps = 0.18, n = 360, seed 0"


def sheet(n: int, names: list[str] | None = None):
    draw = torch.Generator().manual_seed(0)
    x, logits = torch.rand(n, 3, 4, 4, generator=draw), torch.eye(10)[torch.arange(n) % 10] * 5
    y = torch.arange(n) % 10
    return plots.example_sheet(x, 1 - x, y, logits, logits.roll(1, 1), title=LONG, labels=names)


def curve(eps=(2 / 255, 8 / 255), norm="linf") -> Curve:
    count = len(eps)
    return Curve(
        model="Net",
        attack="fastadv.pgd(fastadv.Linf(0.03137254901960784), steps=3)",
        eps=tuple(eps),
        clean_correct=torch.tensor([True, True, True, False]),
        robust=torch.tensor(
            [[True] * count, [True] * (count - 1) + [False], *[[False] * count] * 2]
        ),
        attacked=(1,) * count,
        forwards=(10,) * count,
        backwards=(5,) * count,
        warnings={},
        environment={},
        norm=norm,
    )


def report(stages: bool) -> Report:
    x = torch.linspace(0, 1, 12)[:, None, None, None]
    y, threat = (x.flatten() > 0.5).long(), fastadv.Linf(0.1)

    def model(x):
        return torch.cat([0.45 - x, x - 0.45], 1).flatten(1)

    attacks = [fastadv.bim(threat, steps=2), fastadv.square(threat, queries=2)]
    ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
    return fastadv.evaluate(model, (x, y), ensemble if stages else attacks[0], progress=False)


FIGURES = {
    "accuracies": lambda: plots.accuracy_against_eps(
        [0.0, 0.1, 0.2],
        {name: [1.0, 0.5, 0.0] for name in NAMES[:6]},
        intervals={name: [(0.9, 1.0), (0.4, 0.6), (0.0, 0.1)] for name in NAMES[:6]},
        title=LONG,
        mark=0.1,
    ),
    "curve": lambda: curve().plot(name="standard", beside={"Fast-AT": curve()}),
    "bars": lambda: report(stages=True).plot(title=LONG),
    "sheet": lambda: sheet(10),
    "sheet of long names": lambda: sheet(9, NAMES),
    "restarts": lambda: plots.restart_losses(
        {"one": torch.rand(4, 9), "two": torch.rand(4, 9)}, title=LONG
    ),
}


@pytest.fixture(params=FIGURES, scope="module")
def figure(request):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = FIGURES[request.param]()
    FigureCanvasAgg(drawn).draw()
    return drawn


def visible(figure, kind):
    return [one for one in figure.findobj(kind) if one.get_visible()]


def test_it_is_a_column_wide_and_no_letters_are_smaller_than_seven_points(figure):
    from matplotlib.text import Text

    assert figure.get_size_inches()[0] * 25.4 == pytest.approx(84)
    sizes = [text.get_fontsize() for text in visible(figure, Text) if text.get_text()]
    assert len(sizes) > 5 and min(sizes) >= 7


def test_titles_and_labels_lie_in_the_figure(figure):
    texts = [figure._suptitle] if figure._suptitle else []
    for axes in figure.axes:
        if axes.get_visible():
            texts += [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += axes.get_legend().get_texts() if axes.get_legend() else []
    width, height = figure.canvas.get_width_height()
    for text in (text for text in texts if text.get_text()):
        box = text.get_window_extent()
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, text


def test_lines_and_bars_have_colours_that_all_tell_apart(figure):
    from matplotlib.colors import to_hex
    from matplotlib.lines import Line2D

    with_markers = [
        line for line in visible(figure, Line2D) if line.get_marker() in tuple("os^DvP")
    ]
    bars = [bar for axes in figure.axes for box in axes.containers for bar in box]
    found = {to_hex(line.get_color()).upper() for line in with_markers}
    found |= {to_hex(bar.get_facecolor()).upper() for bar in bars}
    assert found <= OKABE_ITO


def test_curves_differ_by_more_than_colour_and_their_markers_are_whole():
    figure = FIGURES["accuracies"]()
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_marker() in tuple("os^DvP")]
    assert len({line.get_marker() for line in lines}) == len(lines) == 6
    assert len({(line.get_linestyle(), line.get_color()) for line in lines}) == 6
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for line in lines:
        assert not line.get_clip_on()
        assert left < min(line.get_xdata()) and max(line.get_xdata()) < right
        assert low < 0 and high > 100


def test_right_and_wrong_are_not_red_and_green():
    figure = sheet(3)
    clean, adversarial = figure.axes[0], figure.axes[6]
    assert clean.get_title() == "label 0" and clean.get_xlabel().startswith("0, ")
    assert {clean.xaxis.label.get_color(), adversarial.xaxis.label.get_color()} <= OKABE_ITO
    assert {"#0072B2", "#D55E00"} == {
        clean.xaxis.label.get_color(),
        adversarial.xaxis.label.get_color(),
    }


def test_a_curve_begins_at_eps_zero_with_the_clean_accuracy():
    for eps in ((2 / 255, 8 / 255), (0.0, 2 / 255, 8 / 255)):
        drawn = curve(eps)
        (axes,) = drawn.plot().axes
        assert list(axes.lines[0].get_xdata()) == [0.0, 2 / 255, 8 / 255]
        first = 100 * (drawn.robust_accuracy[0] if eps[0] == 0 else 0.75)
        assert list(axes.lines[0].get_ydata())[0] == first
        assert axes.get_legend() is None  # one curve, without a name


def test_radii_in_255ths_are_ticks_in_255ths_and_the_attack_is_named():
    (axes,) = curve().plot().axes
    ticks = [axes.xaxis.get_major_formatter()(value, 0) for value in (0.0, 2 / 255, 8 / 255)]
    assert ticks == ["0", "2/255", "8/255"]
    assert "L-infinity" in axes.get_xlabel()
    title = " ".join(axes.get_title(loc="left").split())
    assert title.startswith("fastadv.pgd(fastadv.Linf(eps), steps=3), n = 4")
    (axes,) = curve((0.1, 0.2)).plot(title="mine").axes
    assert axes.get_title(loc="left").startswith("mine")
    assert "/255" not in str(axes.xaxis.get_major_formatter()(0.1, 0))


def test_curves_of_one_norm_only_stand_beside_each_other():
    with pytest.raises(ValueError, match="curves of one norm go into one figure; got a: linf, b: "):
        curve().plot(name="a", beside={"b": curve(norm="l2")})
    figure = curve().plot(name="a", beside={"b": curve((0.1,))}, mark=8 / 255)
    (axes,) = figure.axes
    assert [len(line.get_xdata()) for line in axes.lines[:2]] == [3, 2]
    assert [text.get_text() for text in axes.texts] == ["eps = 8/255"]


@pytest.mark.parametrize("stages", [False, True])
def test_a_report_is_bars_of_accuracy_from_clean_on(stages):
    found = report(stages)
    (axes,) = found.plot().axes
    widths = [bar.get_width() for box in axes.containers for bar in box]
    left = list(found.accuracies) if stages else [found.robust_accuracy]
    assert widths == [100 * share for share in (found.clean_accuracy, *left)]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == (
        ["clean", "after BIM", "after SQUARE"] if stages else ["clean", "under attack"]
    )
    assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] >= 100
    assert axes.figure.get_suptitle() == "L-infinity, eps = 0.1, n = 12"


def test_a_sheet_takes_names_of_classes_under_either_word():
    long = sheet(9, NAMES)
    assert len(long.axes) == 27 + 1 and long.axes[0].get_title() == "label\nairplane"
    assert long.axes[6].get_xlabel() == "automobile,\n94 %"  # below the adversarial image
    assert len(sheet(10).axes) == 30 + 1  # twice five samples
    x, y, logits = torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), torch.zeros(1, 2)
    common = dict(title="t", labels=["a", "b"])
    with pytest.raises(ValueError, match="labels and class_names are the same: give one of them"):
        plots.example_sheet(x, x, y, logits, logits, class_names=["a", "b"], **common)
    with pytest.raises(ValueError, match="labels must name the 2 classes .*; got 1"):
        plots.example_sheet(x, x, y, logits, logits, title="t", labels=["a"])
    with pytest.raises(ValueError, match="there are no examples to draw"):
        plots.example_sheet(x[:0], x[:0], y[:0], logits[:0], logits[:0], **common)


def test_files_are_pictures_by_suffix(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    for name in ("c.png", "c.svg", "c.PDF"):
        curve().plot(tmp_path / name)
    assert (tmp_path / "c.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    assert root.get("width") == pytest.approx("238.110236pt")  # 84 mm
    written = (tmp_path / "c.PDF").read_bytes()
    assert written.startswith(b"%PDF") and b"/Type3" not in written
    report(False).plot(tmp_path / "r.svg")
    assert dict(matplotlib.rcParams) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.PDF", "c.png", "c.svg", "r.svg"]


@pytest.mark.parametrize("draw", [lambda p: curve().plot(p), lambda p: report(False).plot(p)])
def test_other_files_are_refused(tmp_path, draw):
    with pytest.raises(ValueError, match=r"path must end in .png, .svg or .pdf; got .*c\.jpg"):
        draw(tmp_path / "c.jpg")
    with pytest.raises(FileNotFoundError, match="cannot be written: there is no folder"):
        draw(tmp_path / "no" / "c.png")


@pytest.mark.parametrize(
    ("radius", "said"),
    [
        (8 / 255, "8/255"),
        (float(torch.tensor(8 / 255)), "8/255"),
        (0.0314, "0.0314"),
        (0.2, "0.2"),  # 51/255
        (0.3, "0.3"),
        (0.0, "0"),
        (1.0, "1"),
        (128 / 255, "128/255"),
        (12.0, "12"),
        (0.5, "0.5"),
        (1e-9, "1e-09"),
        (float("inf"), "inf"),
    ],
)
def test_radii_are_read_in_255ths_where_they_are(radius, said):
    assert in_255ths(radius) == said
