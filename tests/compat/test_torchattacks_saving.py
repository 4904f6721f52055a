"""save and load of fastadv.compat.torchattacks."""

import math
import os
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastadv
import fastadv.compat.torchattacks as compat

EPS = 8 / 255


@pytest.fixture
def levels(digits) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that are exactly 8-bit."""
    x, y = digits
    return (x * 255).round() / 255, y


def loader(x: torch.Tensor, y: torch.Tensor) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=12)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_saved_data_set_is_what_a_call_returns(normalise, net, levels, tmp_path):
    x, y = levels
    atk, again = compat.PGD(net, steps=3), compat.PGD(net, steps=3)
    if normalise:
        for each in (atk, again):
            each.set_normalization_used([0.3], [0.4])
        x = atk.normalize(x)
    path = tmp_path / "adv.pt"
    accuracy, l2, seconds = atk.save(
        loader(x, y),
        path,
        verbose=False,
        return_verbose=True,
        save_predictions=True,
        save_clean_inputs=True,
    )
    x_adv = torch.cat([again(*batch) for batch in loader(x, y)])
    normalize = {"mean": [0.3], "std": [0.4]} if normalise else None
    rows = compat.PGD.load(
        path, batch_size=len(x), normalize=normalize, load_predictions=True, load_clean_inputs=True
    )
    saved, labels, predictions, clean = next(iter(rows))
    torch.testing.assert_close(saved, x_adv, atol=1e-6, rtol=0)
    torch.testing.assert_close(clean, x, atol=1e-6, rtol=0)
    assert torch.equal(labels, y)
    assert torch.equal(predictions, net(x_adv).argmax(1))
    wrong = predictions != y
    assert accuracy == pytest.approx(100 * float((~wrong).float().mean()))
    delta = (again.inverse_normalize(x_adv - x) - 0.3) if normalise else x_adv - x
    assert l2 == pytest.approx(float(delta[wrong].flatten(1).norm(dim=1).mean()), rel=1e-4)
    assert seconds > 0


@pytest.mark.parametrize("name", ["PGD", "PGDL2"])
def test_bytes_are_rounded_inside_the_ball(name, net, levels, tmp_path):
    x, y = levels
    atk = getattr(compat, name)(net)
    atk.save(
        loader(x, y), tmp_path / "adv.pt", verbose=False, save_type="int", save_clean_inputs=True
    )
    contents = torch.load(tmp_path / "adv.pt", weights_only=True)
    assert contents["adv_inputs"].dtype == contents["clean_inputs"].dtype == torch.uint8
    saved, _, clean = next(iter(atk.load(tmp_path / "adv.pt", load_clean_inputs=True)))
    assert torch.equal(clean, x), "8-bit images survive, torchattacks loses a level of some"
    assert bool(fastadv.contains(atk.threat(), saved, x).all())
    assert float((saved - getattr(compat, name)(net)(x, y)).abs().max()) <= 1 / 255 + 1e-6


def test_figures_of_bytes_are_those_of_the_saved_images(net, levels, tmp_path):
    x, y = levels
    accuracy, _, _ = compat.PGD(net).save(
        loader(x, y),
        tmp_path / "adv.pt",
        verbose=False,
        return_verbose=True,
        save_predictions=True,
        save_type="int",
    )
    rows = compat.PGD.load(tmp_path / "adv.pt", load_predictions=True)
    saved, labels, predictions = next(iter(rows))
    assert torch.equal(net(saved).argmax(1), predictions)
    assert accuracy == pytest.approx(100 * float((predictions == labels).float().mean()))


def test_figures_come_only_when_asked_for(net, digits, capsys):
    x, y = digits
    assert compat.FGSM(net).save(loader(x, y), verbose=False) is None
    assert capsys.readouterr().out == ""
    compat.FGSM(net).save(loader(x, y))
    assert "batch 3/3 | robust accuracy" in capsys.readouterr().out


def test_l2_is_nan_where_no_image_fools_the_model(digits):
    x = digits[0]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        net[1].weight.mul_(1e-3)
        net[1].bias.copy_(torch.tensor([5.0, 0.0]))
    batches = loader(x, torch.zeros(len(x), dtype=torch.int32))
    accuracy, l2, _ = compat.FGSM(net).save(batches, verbose=False, return_verbose=True)
    assert accuracy == 100 and math.isnan(l2)


def test_loaders_without_a_length_are_attacked(net, digits, capsys):
    x, y = digits

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(x, y, strict=True))

    batches = DataLoader(Stream(), batch_size=20)
    accuracy, _, _ = compat.FGSM(net).save(batches, return_verbose=True)
    whole = 100 * float((net(compat.FGSM(net)(x, y)).argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(whole)
    assert "batch 2 |" in capsys.readouterr().out


def test_an_interrupted_save_keeps_the_old_file_whole(net, digits, tmp_path, monkeypatch):
    x, y = digits
    path = tmp_path / "adv.pt"
    compat.FGSM(net).save(loader(x, y), path, verbose=False)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", _fail)
    with pytest.raises(OSError, match="by the test"):
        compat.PGD(net).save(loader(x, y), path, verbose=False)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["adv.pt"]


def _fail(_: int) -> None:
    raise OSError("raised by the test")


def test_loading_executes_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harmed"),))

    torch.save({"adv_inputs": Harmful(), "labels": 0, "save_type": "float"}, tmp_path / "bad.pt")
    with pytest.raises(pickle.UnpicklingError):
        compat.PGD.load(tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


def test_what_was_not_saved_cannot_be_loaded(net, digits, tmp_path):
    compat.FGSM(net).save(loader(*digits), tmp_path / "adv.pt", verbose=False)
    with pytest.raises(ValueError, match="has no .*preds.*save_predictions"):
        compat.PGD.load(tmp_path / "adv.pt", load_predictions=True)


def test_empty_loaders_and_unknown_types_are_refused(net, digits):
    x, y = digits
    with pytest.raises(ValueError, match="data_loader is empty"):
        compat.FGSM(net).save(loader(x[:0], y[:0]))
    with pytest.raises(ValueError, match="save_type must be one of"):
        compat.FGSM(net).save(loader(x, y), save_type="uint8")
    with pytest.raises(ValueError, match="type must be one of"):
        compat.FGSM.to_type(x, "double")


def test_to_type_rounds_to_the_nearest_level_and_back():
    every = torch.arange(256, dtype=torch.uint8)
    as_floats = compat.PGD.to_type(every, "float")
    assert torch.equal(as_floats, every.float() / 255)
    assert torch.equal(compat.PGD.to_type(as_floats, "int"), every)
    assert torch.equal(compat.PGD.to_type(as_floats, "float"), as_floats)
    assert compat.PGD.to_type(torch.tensor([0.9 / 255]), "int").item() == 1
