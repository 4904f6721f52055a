"""The weights that come with the package: their figures, and that loading them changes nothing."""

import inspect
import re

import pytest
import torch

from fastadv.demo import weights as command
from fastadv.demo.networks import EPS
from fastadv.models import digits_net

# another CPU may round the logits of a sample or two to the other side
_ROUNDING = 2 / 360 + 0.0005


@pytest.mark.parametrize("name", ["standard", "fast-at"])
def test_the_figures_of_the_docstring_hold(name):
    text = " ".join((inspect.getdoc(digits_net) or "").split())
    stated = re.search(rf'- "{name}": .*?Clean (\S+) %, PGD-50-10 (\S+) %\.', text)
    assert stated is not None and f"eps = {EPS:g}" in text
    clean, robust = command.accuracies(digits_net(weights=name))
    assert abs(clean - float(stated[1]) / 100) <= _ROUNDING
    assert abs(robust - float(stated[2]) / 100) <= _ROUNDING


def test_trained_networks_are_in_eval_mode_and_the_same_for_every_seed():
    one, other = digits_net(weights="fast-at"), digits_net(7, weights="fast-at")
    assert not any(module.training for module in one.modules())
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in pairs)


def test_loading_draws_no_random_number():
    before = torch.get_rng_state()
    digits_net(weights="standard")
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_name_the_network_is_fresh():
    assert digits_net().training
    fresh, trained = digits_net(), digits_net(weights="standard")
    assert not torch.equal(fresh[0].weight, trained[0].weight)


def test_an_unknown_name_is_refused_with_the_choices():
    message = r"weights must be one of standard, fast-at; got 'trades'\."
    with pytest.raises(ValueError, match=message):
        digits_net(weights="trades")  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [{"width": 8}, {"classes": 4}])
def test_a_network_of_another_size_is_refused(other):
    with pytest.raises(ValueError, match="are of width=16, classes=10; got .* Leave both out"):
        digits_net(weights="standard", **other)


def test_what_the_command_writes_is_what_is_read(tmp_path, monkeypatch, capsys):
    """With networks that are not trained, whose weights the file rounds to float16."""
    made = {f"digits_{name}.npz": lambda x, y, seed: digits_net(seed) for name in ("a", "b")}
    monkeypatch.setattr(command, "_RECIPES", made)
    monkeypatch.setattr(command, "accuracies", lambda net: (1.0, 0.5))
    threads = torch.get_num_threads()
    try:
        command.main(["--out", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    assert {path.name for path in tmp_path.iterdir()} == set(made)
    assert (
        "digits_a.npz, as written: clean 100.0%, PGD-50-10 at 0.18 50.0%" in capsys.readouterr().out
    )
    first = (tmp_path / "digits_a.npz").read_bytes()
    assert first == (tmp_path / "digits_b.npz").read_bytes()  # the same weights, the same bytes
