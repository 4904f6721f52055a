"""The adversarial examples that a report keeps and shows: which, and of what."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from toy_models import mixed_problem, threat_of

import fastadv
from fastadv.data import load_digits
from fastadv.evaluation import Report, evaluate, together
from fastadv.evaluation.examples import MOST
from fastadv.evaluation.png import encoded, size_of
from fastadv.models import digits_net

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
SAMPLES = 24


def decoded(content: bytes) -> torch.Tensor:
    """(C, H, W) bytes, by another reader."""
    image = Image.open(io.BytesIO(content))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def in_bytes(images: torch.Tensor) -> torch.Tensor:
    return (255 * images).round().to(torch.uint8)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits("test")
    return digits_net(weights="standard"), x[:SAMPLES], y[:SAMPLES]


@pytest.fixture(scope="module")
def attack():
    return fastadv.pgd(fastadv.Linf(0.18), steps=5, seed=3)


@pytest.fixture(scope="module")
def report(digits, attack):
    model, x, y = digits
    return evaluate(model, (x, y), attack, batch_size=2)  # blocks of 16


def test_they_are_the_first_that_broke_and_decode_to_what_was_attacked(report, digits, attack):
    model, x, y = digits
    result = attack.run(model, x, y)
    broken = (result.success & (result.clean_prediction == y)).nonzero()[:, 0].tolist()
    assert len(broken) > MOST and [one.index for one in report.examples] == broken[:MOST]
    for one in report.examples:
        k = one.index
        assert (one.label, one.prediction) == (int(y[k]), int(result.prediction[k]))
        assert torch.equal(decoded(one.original), in_bytes(x[k]))
        assert torch.equal(decoded(one.adversarial), in_bytes(result.x_adv[k]))
        change = result.x_adv[k] - x[k]
        strengthened = in_bytes(0.5 + 0.5 * change / change.abs().amax())
        assert torch.equal(decoded(one.change), strengthened)
        assert bool((strengthened[change == 0] == 128).all()) and bool((change == 0).any())


def test_they_do_not_depend_on_how_samples_are_batched(report, digits, attack):
    model, x, y = digits
    for size in (1, SAMPLES):
        assert evaluate(model, (x, y), attack, batch_size=size).examples == report.examples


@pytest.mark.parametrize("channels", [1, 3])
def test_files_are_read_by_others(channels):
    draw = torch.Generator().manual_seed(channels)
    image = torch.randint(0, 256, (channels, 5, 7), generator=draw, dtype=torch.uint8)
    content = encoded(image)
    assert torch.equal(decoded(content), image) and size_of(content) == (7, 5)


def test_large_images_are_averaged_down_and_other_bounds_are_scaled():
    x = torch.zeros(1, 1, 300, 520)
    x[0, 0, 150:] = 2.0
    threat = fastadv.Linf(0.5, bounds=(-2.0, 2.0))

    def model(x):
        mean = x.mean((1, 2, 3))
        return torch.stack([mean - 0.99, 0.99 - mean], 1)

    found = evaluate(model, (x, torch.tensor([0])), fastadv.bim(threat, steps=2), progress=False)
    (one,) = found.examples
    assert size_of(one.original) == (174, 100) and (one.label, one.prediction) == (0, 1)
    original, adversarial = decoded(one.original), decoded(one.adversarial)
    assert original[0, 0, 0] == 128 and original[0, 99, 0] == 255  # 0 and 2 of -2 to 2
    assert adversarial[0, 0, 0] == 96 and adversarial[0, 99, 0] == 223


def test_what_is_no_image_is_not_shown():
    flat = mixed_problem(12, shape=(6,))
    attack = fastadv.bim(threat_of("linf"), steps=3)
    report = evaluate(flat.model, (flat.x, flat.y), attack)
    assert report.examples == () and int((report.clean_correct & report.success).sum()) > 0
    images = mixed_problem(12)
    free = fastadv.bim(fastadv.Linf(0.06, bounds=None), steps=3)
    assert evaluate(images.model, (images.x, images.y), free).examples == ()
    judged = replace(attack, loss=fastadv.objectives.soft())
    shares = torch.nn.functional.one_hot(images.y, 5).float()
    found = evaluate(images.model, (images.x, shares), judged)
    assert found.examples == () and bool(found.success.any())
    assert "<img" not in found.to_html()


def test_a_saved_report_keeps_them(report, tmp_path):
    report.save(tmp_path / "r.json")
    loaded = Report.load(tmp_path / "r.json")
    assert loaded == report and loaded.examples == report.examples
    assert loaded.to_html() == report.to_html()
    without = replace(report, examples=())
    assert without != report and "<img" not in without.to_html()


@pytest.mark.parametrize(
    ("norm", "eps", "said"),
    [
        ("linf", 8 / 255, "which may change every value of a sample by up to 8/255."),
        ("l2", 0.5, "a sample by a distance of up to 0.5 in L2 (Euclidean)."),
        ("l1", 2.0, "a sample by up to 2 in L1 (the sum of all changes)."),
        ("l0", 3.0, "up to 3 entries or pixels of a sample (L0)."),
    ],
)
def test_every_norm_is_said_in_words_and_loaded(report, tmp_path, norm, eps, said):
    other = replace(report, norm=norm, eps=eps)
    assert said in other.to_html()
    other.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(original="?"), "original of an example is no base64"),
        (dict(change=None), "change of an example is no base64"),
        (dict(adversarial=base64.b64encode(b"GIF89a").decode()), "adversarial .* is no PNG"),
        (dict(index=1.5), "index of an example is 1.5"),
        (dict(more=1), "an example has other fields than index, label"),
    ],
)
def test_other_examples_are_refused(report, tmp_path, change, said):
    content = json.loads(report.to_json())
    content["examples"][1].update(change)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"is not a report that Report.save wrote: {said}"):
        Report.load(tmp_path / "r.json")


def test_reports_without_them_are_loaded(report, tmp_path):
    content = json.loads(report.to_json())
    del content["examples"], content["date"]
    (tmp_path / "r.json").write_text(json.dumps(content))
    loaded = Report.load(tmp_path / "r.json")
    assert loaded.examples == () and loaded.date == "" and "Begun" not in loaded.to_html()
    (tmp_path / "r.json").write_text(json.dumps({**content, "examples": {}}))
    with pytest.raises(ValueError, match="examples is not a list"):
        Report.load(tmp_path / "r.json")


class Pictures(HTMLParser):
    """The pictures of a page and what stands below them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []
        self.captions: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))
        else:
            self._open.append(tag)
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "figcaption" in self._open:
            self.captions[-1] += data


def test_a_page_shows_them_before_and_after_and_loads_nothing(report):
    for text in (report.to_html(), report._repr_html_()):
        page = Pictures(text)
        start = "data:image/png;base64,"
        shown = [str(one["src"]).removeprefix(start) for one in page.found]
        expected = [picture for one in report.examples for picture in one[3:]]
        assert [base64.b64decode(one, validate=True) for one in shown] == expected
        assert all(one["alt"] and one["class"] == "pixels" for one in page.found)
        assert page.captions == [
            f"sample {one.index}: class {one.label}, taken for {one.prediction}"
            for one in report.examples
        ]
        assert "src=" not in re.sub(r'src="data:image/png;base64,[\w+/=]*"', "", text)
        broken = int((report.clean_correct & report.success).sum())
        assert f"The first 8 of {broken} samples that the model had right" in text
    assert "matplotlib" not in report.to_html()


def test_a_report_is_dated_when_it_was_begun_and_stays_so(digits, attack, tmp_path, monkeypatch):
    model, x, y = digits
    times = iter(["2026-01-02 03:04 UTC", "2027-01-01 00:00 UTC"])
    monkeypatch.setattr(together, "now", lambda: next(times))
    for _ in range(2):
        again = evaluate(model, (x[:3], y[:3]), attack, checkpoint=tmp_path / "c.pt")
        assert again.date == "2026-01-02 03:04 UTC"
        assert '<p class="soft">Begun 2026-01-02 03:04 UTC</p>' in again.to_html()
        assert "| begun | 2026-01-02 03:04 UTC |" in again.to_markdown()


def test_now_is_a_date(report):
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", report.date)
