"""Runs of networks that clamp their input: warned of once, and resumed with what was found."""

import shutil
import warnings

import pytest
import torch
from small_runs import assert_same_run, small_data, small_recipe
from torch import nn

from fastadv import models
from fastadv.diagnostics import AttackWarning
from fastadv.recipes import run, train

RUNS = {
    "pgd": small_recipe("pgd", steps=2, epochs=2),
    "free": small_recipe("free", replays=2, epochs=2),
    "yopo": small_recipe("yopo", epochs=2),
    # nothing is learnt: stuck at the second check
    "rescue": small_recipe(
        "pgd",
        steps=2,
        learning_rate=((0.0, 1e-9), (3.0, 1e-9)),
        on_collapse="rollback",
        sentinel_every=0.75,
        rescue_epochs=2,
        rescue_learning_rate=1e-2,
        eps=0.05,
        seed=1,
        batch_size=12,
    ),
}


@pytest.fixture(autouse=True)
def clamping(monkeypatch):
    """Every network that a recipe builds clamps its input."""
    build = models.build

    def build_clamping(*arguments, **more):
        return nn.Sequential(nn.Hardtanh(0.0, 1.0), build(*arguments, **more))

    monkeypatch.setattr(models, "build", build_clamping)


def _clamp_warnings(recipe, out, **more):
    """A run, and how often it said that the network clamps."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(recipe, small_data(), out, progress=False, **more)
    found = [w.message for w in seen if isinstance(w.message, AttackWarning)]
    assert {w.code for w in found} <= {"clamped_input"}
    return len(found)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_warned_of_once_and_resumed_with_the_same_bits(name, tmp_path, monkeypatch):
    whole, snapshots = tmp_path / "whole", []
    save = run.save_run

    def snapshot(*arguments):
        save(*arguments)
        snapshots.append(tmp_path / f"killed{len(snapshots)}")
        shutil.copytree(whole, snapshots[-1])

    monkeypatch.setattr(run, "save_run", snapshot)
    assert _clamp_warnings(RUNS[name], whole, checkpoint_every=2) == 1
    monkeypatch.setattr(run, "save_run", save)
    assert ('"event": "rollback"' in (whole / "log.jsonl").read_text()) == (name == "rescue")
    insets = [torch.load(s / "last.pt", weights_only=True)["step"]["inset"] for s in snapshots]
    assert len(insets) >= 4 and len(set(insets)) == 1 and insets[0] > 0
    for killed in snapshots[:: 8 if name == "rescue" else 3]:
        assert _clamp_warnings(RUNS[name], killed, resume=True) == 0
        assert_same_run(killed, whole)
