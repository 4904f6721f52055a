"""The suite of tuning: rows and tables of each part, at their smallest."""

import pytest
import torch

import fastadv
from benchmarks.harness import report, schema
from benchmarks.tuning import __main__ as suite
from benchmarks.tuning import ensembles, networks, short_attacks, sweep
from fastadv.data import load_digits
from fastadv.models import digits_net


@pytest.fixture(scope="module")
def small():
    """digits_net as it comes, not trained here."""
    model, (x, y) = digits_net(weights="fast-at"), load_digits("test")
    return lambda n: networks.Problem("digits_net", "UCI digits", model, x[:n], y[:n])


def _page(name, folder):
    page = folder / f"{name}.md"
    page.write_text(f"<!-- benchmark:{name} -->\n<!-- /benchmark -->\n")
    report.main(["--readme", str(page), "--results", str(folder)])
    return page.read_text()


def _run(folder, *arguments):
    suite.main([*arguments, "--rounds", "1", "--seconds", "0.3", f"--results={folder}"])


def test_the_choice_stands_beside_the_fastest_of_the_sweep(small, monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "NETWORKS", {"digits_net": small})
    monkeypatch.setattr(sweep, "_SIZES", (8, 32))
    _run(tmp_path, "sweep", "--samples", "16", "--tunings", "1")
    rows = schema.read_rows("tuning", tmp_path)
    assert [row.provider for row in rows] == [sweep.BEST, sweep.DEFAULT, "fastadv.tune, 1"]
    assert rows[0].ratio == 1 and 0 < rows[2].extra["tuned in s"] < 30
    assert "| digits_net |" in _page("tuning", tmp_path)


def test_short_attacks_are_held_to_torchattacks(small, monkeypatch, tmp_path):
    pytest.importorskip("torchattacks")
    monkeypatch.setattr(suite, "_SHORT", {"digits_net": small})
    _run(tmp_path, "attacks", "--samples", "16", "--only", "^FGSM")
    rows = schema.read_rows("tuning_attacks", tmp_path)
    assert [row.provider for row in rows[:3]] == [
        "torchattacks",
        short_attacks.DEFAULT,
        short_attacks.AUTO,
    ]
    assert len(rows) == 3 and rows[2].extra["first call in s"] > 0
    assert "in the geometric mean" in _page("tuning-attacks", tmp_path)


def test_ensembles_are_held_to_the_default(small, environment):
    def make(threat):
        return fastadv.autoattack(threat, "custom", attacks=[fastadv.apgd_ce(threat, steps=3)])

    rows = ensembles.run_problem(small(16), environment, rounds=1, seconds=0.3, make=make)
    assert [row.provider for row in rows] == [ensembles.DEFAULT, ensembles.TUNED]
    assert rows[1].equality.error <= 1 and rows[1].robustness is not None
    assert "tuned in s" in rows[1].extra
    assert "AutoAttack custom, digits_net" in suite.tables.ensembles(rows)


@pytest.mark.parametrize("name", ["SmallViT"])
def test_networks_are_the_same_each_time(name):
    state = torch.get_rng_state()
    one, other = (networks.NETWORKS[name](4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert torch.equal(one.model(one.x), other.model(other.x))
    assert torch.equal(one.y, other.y)
