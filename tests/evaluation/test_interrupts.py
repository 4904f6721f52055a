"""Ctrl-C and kill -9: nothing that was finished is lost; Ctrl-C says how to go on."""

import signal
import time

import ensemble_runs
import forked
import pytest
import torch
from ensemble_runs import BATCH, ensemble, problem, without_times
from torch import nn

import fastadv
from fastadv.evaluation import Status, evaluate


class Pressed(nn.Module):
    """Ctrl-C at a call, in a model with BatchNorm and Dropout that is being trained."""

    def __init__(self, at: int):
        super().__init__()
        self.net = problem().model
        self.more = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.at = at

    def forward(self, x):
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt
        return self.more(self.net(x))


@pytest.mark.parametrize("at", [1, 30, 100])
def test_ctrl_c_leaves_the_model_as_it_was(at):
    p = problem()
    model = Pressed(at).train()
    model.net.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(model, (p.x, p.y), ensemble(), batch_size=BATCH)
    assert caught.value.__notes__ == [
        "evaluation interrupted: no checkpoint was given, so nothing is kept"
    ]
    assert all(module.training for module in model.modules())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["net.bias"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and torch.is_grad_enabled()


def test_ctrl_c_keeps_the_attacks_that_are_finished(tmp_path):
    """A real SIGINT inside an attack of the second block; the rest is done here."""
    path, out = tmp_path / "c.pt", tmp_path / "report.json"
    with forked.Forked(ensemble_runs.__file__, path, out, 0.02) as process:
        deadline = time.monotonic() + 100
        saved = None
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            saved = torch.load(path, weights_only=True) if path.exists() else None
            if saved and saved["unfinished"] and len(saved["columns"]["ids"]):
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode != 0 and not out.exists()
    lines = err.splitlines()
    assert lines[-2:] == [
        "KeyboardInterrupt",
        "evaluation interrupted: all finished blocks, and all finished attacks of an ensemble, are "
        f"in the checkpoint {path}: the same call goes on from there, with any number of processes",
    ]
    saved = torch.load(path, weights_only=True)
    (begun,) = saved["unfinished"]
    done = len(saved["columns"]["ids"])
    p, running = problem(), list[Status]()
    model = ensemble_runs.Slow(p.model, 0.0)
    report = evaluate(
        model, (p.x, p.y), ensemble(), batch_size=BATCH, checkpoint=path, progress=running.append
    )
    names = ["APGD-CE", "APGD-T", "FAB-T", "SQUARE", ""]
    assert (running[0].done, running[0].attack) == (done, names[len(begun["stages"])])
    expected = evaluate(model, (p.x, p.y), ensemble(), batch_size=BATCH)
    assert without_times(report.to_json()) == without_times(expected.to_json())


def test_ctrl_c_names_the_checkpoint_also_before_there_is_one(tmp_path):
    p = problem()
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate(
            Pressed(1), (p.x, p.y), fastadv.bim(fastadv.Linf(0.1)), checkpoint=tmp_path / "c.pt"
        )
    assert f"in the checkpoint {tmp_path / 'c.pt'}: the same call" in caught.value.__notes__[0]
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys, time
import torch
import fastadv
from fastadv.data import load_digits
from fastadv.evaluation import evaluate
from fastadv.models import digits_net

torch.set_num_threads(1)
path, report, slow = sys.argv[1], sys.argv[2], sys.argv[3] == "slow"

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = digits_net(3)
    def forward(self, x):
        time.sleep(0.02 * slow)
        return self.net(x)

x, y = load_digits("test")
attack = fastadv.pgd(fastadv.Linf(0.1), steps=4, restarts=2, seed=1)
evaluate(Net(), (x[:80], y[:80]), attack, batch_size=2, checkpoint=path or None).save(report)
"""


def test_kill_nine_and_resume_equals_uninterrupted(tmp_path):
    script = tmp_path / "evaluation.py"
    script.write_text(SCRIPT)
    path = tmp_path / "progress.pt"
    with forked.Forked(script, path, tmp_path / "killed.json", "slow") as process:
        deadline = time.monotonic() + 100
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed.json").exists()
    saved = torch.load(path, weights_only=True)
    assert 0 < len(saved["columns"]["success"]) < 80 and saved["total"] is None

    forked.run(script, path, tmp_path / "resumed.json", "fast")
    forked.run(script, "", tmp_path / "whole.json", "fast")
    resumed, whole = (
        without_times((tmp_path / name).read_text()) for name in ("resumed.json", "whole.json")
    )
    assert resumed == whole
