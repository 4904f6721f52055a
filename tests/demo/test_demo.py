"""The demo, run once: its two claims, its agreement with the textbook, its figures.

On every fourth test image, and the networks train for a third and a half of their epochs: the
claims hold all the same. Those of the whole demo's networks are tested on the shipped weights.
"""

import io

import pytest
import torch

import fastadv

pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("rich", reason="needs rich")

from rich.console import Console  # noqa: E402

from fastadv import textbook  # noqa: E402
from fastadv.data import load_digits  # noqa: E402
from fastadv.demo import agreement, figures, networks  # noqa: E402
from fastadv.demo import run as demo  # noqa: E402
from fastadv.demo.figures import losses_of_restarts  # noqa: E402
from fastadv.demo.networks import EPS  # noqa: E402
from fastadv.models import digits_net  # noqa: E402


def _every_fourth_test_image(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = load_digits(split)  # type: ignore[arg-type]
    return (x[::4], y[::4]) if split == "test" else (x, y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    console = Console(file=io.StringIO(), width=80)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_digits", _every_fourth_test_image)
        patch.setattr(networks, "_STANDARD_EPOCHS", 10)
        patch.setattr(networks, "_FAST_EPOCHS", 20)
        patch.setattr(networks, "_WARM_UP_EPOCHS", 3)
        patch.setattr(figures, "_CURVE_STEPS", 5)
        result = demo.run_demo(out, seed=1, repeats=1, console=console)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    return result, console.file.getvalue()  # type: ignore[attr-defined]


def test_pgd_50_10_leaves_the_standard_network_at_most_five_percent(finished):
    assert finished[0].robust_accuracy("standard", "PGD-50-10") <= 0.05


def test_pgd_50_10_leaves_the_fast_at_network_at_least_sixty_percent(finished):
    assert finished[0].robust_accuracy("Fast-AT", "PGD-50-10") >= 0.60


def test_both_networks_are_accurate_on_clean_digits(finished):
    assert all(row.report.clean_accuracy > 0.95 and row.report.n == 90 for row in finished[0].rows)


def test_fastadv_is_at_least_as_strong_as_the_textbook(finished):
    """To 2 %: random starts differ, and a saturated softmax rounds differently."""
    for row in finished[0].rows:
        assert row.report.robust_accuracy <= row.textbook_accuracy + 0.02


def test_from_the_same_starts_nearly_all_samples_agree_bit_for_bit(finished):
    """All do but those whose gradient is lost in a saturated softmax on the way."""
    assert [(a.network, a.equal >= 0.9 * a.n) for a in finished[0].agreements] == [
        ("standard", True),
        ("Fast-AT", True),
    ]


def test_samples_that_differ_part_where_gradients_are_nearly_zero_and_the_demo_says_so(finished):
    text = " ".join(finished[1].split())
    for found in finished[0].agreements:
        assert found.largest_gradient < 1e-5 and found.largest_difference <= 2 * EPS + 1e-6
        assert " ".join(str(found).split()) in text
    part = agreement.Agreement("net", 8, 10, 0.045, 0.25, 3e-7)
    assert "on 8 of 10 samples. On the others they part where the gradient is zero" in str(part)
    assert "(the largest such is 3e-07) and rounding decides its sign" in str(part)
    assert "by up to 0.09 (two steps)" in str(part) and "at most 0.36 (twice eps)" in str(part)
    assert str(part).endswith("here by 0.25.")
    assert str(agreement.Agreement("net", 9, 9, 0.1, 0.0, 0.0)).endswith("on 9 of 9 samples.")


def test_the_agreement_is_that_of_ten_steps_at_once():
    x, y = load_digits("test")
    net, threat = digits_net(weights="standard"), fastadv.Linf(EPS)
    found = agreement.agreement("standard", net, x[:60], y[:60], seed=2)
    x_init = fastadv.start_point(threat, x[:60], seed=2)
    attack = fastadv.pgd(threat, steps=10, keep="last", seed=2)
    size = float(attack.effective_step_size)
    ours = attack(net, x[:60], y[:60], x_init=x_init)
    theirs = textbook.pgd(net, x[:60], y[:60], eps=EPS, steps=10, step_size=size, x_init=x_init)
    difference = (ours - theirs).abs().flatten(1).amax(1)
    assert found.equal == int((difference == 0).sum()) and found.step_size == size
    assert found.largest_difference == float(difference.max())


def test_the_table_states_what_defines_its_numbers(finished):
    result, text = finished
    for part in ("n = 90", f"eps = {EPS:g}", "seed 1", "50 steps and 10 restarts", "median of 1"):
        assert part in " ".join(text.split())
    row = result.rows[-1]
    line = [line for line in text.splitlines() if line.startswith(" Fast-AT")][-1]
    assert f"{100 * row.report.robust_accuracy:.1f}" in line
    assert f"{row.ratio:.1f}x" in line
    assert "\u2026" not in text  # nothing is cut off at 80 columns


def test_the_figures_open_and_are_not_blank(finished):
    import matplotlib.image

    paths = finished[0].figures
    assert [path.name for path in paths] == ["accuracy_vs_eps.png", "examples.png", "restarts.png"]
    for path in paths:
        image = torch.from_numpy(matplotlib.image.imread(path)).float()
        assert min(image.shape[:2]) > 400
        ink = (image[..., :3] < 0.9).any(-1)
        # ink in every quarter of the picture
        for half in ink.chunk(2, 0):
            for quarter in half.chunk(2, 1):
                assert 0.002 < float(quarter.float().mean()) < 0.9


def test_losses_of_restarts_follow_pgd(finished):
    """The loss after the last step is that of fastadv.pgd from the same start."""
    x, y = load_digits("test")
    net, threat = digits_net(2), fastadv.Linf(EPS)
    runs = losses_of_restarts(net, x[5], int(y[5]), seed=3, steps=4, restarts=3)
    rows, ids = x[5:6].expand(3, -1, -1, -1).contiguous(), torch.zeros(3, dtype=torch.int64)
    draws = torch.arange(3, dtype=torch.int32)
    x_init = fastadv.start_point(threat, rows, seed=3, sample_ids=ids, draw=draws)
    attack = fastadv.pgd(threat, steps=4, step_size=EPS / 20, keep="last", seed=3)
    expected = attack.run(net, rows, y[5:6].expand(3), x_init=x_init)
    assert runs.shape == (3, 5)
    torch.testing.assert_close(runs[:, -1], expected.loss)
