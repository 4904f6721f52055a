"""`python -m fastadv evaluate`, alone or by torchrun: shared samples, Ctrl-C, going on."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import ROOT, Forked
from sharded_processes import TORCHRUN

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")

NETS = """
import os
import pathlib
import signal
import time

import torch
from fastadv.models import digits_net

def slow():
    # says which process it is in, and takes PACE seconds a call
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a forked rank has torchrun's
    pathlib.Path("pid" + os.environ.get("RANK", "")).write_text(str(os.getpid()))
    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = digits_net(3)
        def forward(self, x):
            time.sleep(float(os.environ.get("PACE", 0)))
            return self.net(x)
    return Slow()
"""
PGD = ("--attack", "pgd", "--steps", "5", "--restarts", "2", "--batch-size", "1")  # blocks of 8
N = 24


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A current directory with nets_of_command_tests.py and digits.npz."""
    (tmp_path / "nets_of_command_tests.py").write_text(NETS)
    x, y = samples()
    np.savez(tmp_path / "digits.npz", x=x.numpy(), y=y.numpy())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Every fifth is wrong to begin with."""
    torch.set_num_threads(1)
    x = load_digits("test")[0][:N]
    y = digits_net(3)(x).argmax(1)
    y[::5] = (y[::5] + 1) % 10
    return x, y


def command(*more: str) -> list[str]:
    address = "nets_of_command_tests:slow"
    files = ["--data", "digits.npz", "--checkpoint", "c.pt", "--out", "r.json"]
    return ["evaluate", "--model", address, "--eps", "1/10", *files, *more]


# how two processes are started; torchrun's command line for ranks that are new interpreters
ALONE = ("-m", "fastadv")
TWO_FORKED = (*TORCHRUN, "--nproc-per-node", 2, ROOT / "fastadv" / "__main__.py")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *ALONE)


def started(how: tuple, arguments: list[str], *, pace: float = 0.0) -> Forked:
    return Forked(*how, *arguments, variables={"PYTHONPATH": str(ROOT), "PACE": str(pace)})


def ended(process: Forked) -> tuple[int, str, str]:
    out, err = process.communicate()
    assert process.returncode is not None
    return process.returncode, out, err


def test_processes_of_torchrun_share_the_samples_and_one_writes(folder):
    """Two of them: what a third one changes is shown by test_sharded_evaluation.py."""
    code, out, err = ended(started(TWO_FORKED, command("--attack", "bim")))
    assert code == 0, out + err
    assert out.count("robust accuracy") == 1
    expected = fastadv.evaluate(digits_net(3), samples(), fastadv.bim(fastadv.Linf(0.1)))
    read = json.loads((folder / "r.json").read_text())
    for name, column in read["samples"].items():
        assert column == getattr(expected, name).tolist()
    assert (read["n"], read["warnings"]) == (N, expected.warnings)
    assert [path.name for path in folder.glob("*c*.pt")] == ["c.pt"]


def interrupted(folder: Path, how: tuple, pid: str) -> tuple[int, str]:
    """Exit code and errors of an evaluation that Ctrl-C reaches with a block or two finished; pid:
    the file that names the process, or none for the one that was started."""
    process = started(how, command(*PGD), pace=0.03)
    deadline = time.monotonic() + 100
    while not list(folder.glob("c*.pt")) and time.monotonic() < deadline:
        assert process.poll() is None, ended(process)
        time.sleep(0.01)
    os.kill(int((folder / pid).read_text()) if pid else process.pid, signal.SIGINT)
    code, out, err = ended(process)
    assert "robust accuracy" not in out and not (folder / "r.json").exists()
    saved = [torch.load(path, weights_only=True) for path in folder.glob("c*.pt")]
    assert 0 < sum(len(one["columns"]["ids"]) for one in saved) < N
    return code, err


@pytest.mark.parametrize(
    ("how", "pid"),
    [(ALONE, ""), (TWO, ""), (TWO_FORKED, "pid0")],
    ids=["alone", "torchrun", "rank 0"],
)
def test_ctrl_c_ends_all_processes_and_says_where_one_goes_on(folder, how, pid):
    code, err = interrupted(folder, how, pid)
    assert code == 130 if how is ALONE else code != 0
    said = [line for line in err.splitlines() if line.startswith("fastadv: ")]
    assert any(
        line.startswith("fastadv: evaluation interrupted: ") and "the checkpoint c.pt" in line
        for line in said
    ), err
    if how is ALONE:
        assert len(said) == 1 and "Traceback" not in err
    # whoever is alone goes on, also from what several have left
    assert ended(started(ALONE, command(*PGD)))[0] == 0
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=5, restarts=2)
    expected = fastadv.evaluate(digits_net(3), samples(), attack, batch_size=1)
    read = json.loads((folder / "r.json").read_text())["samples"]
    assert 0 < sum(read["robust"]) < N
    for name, column in read.items():
        assert column == getattr(expected, name).tolist()
