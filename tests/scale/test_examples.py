"""The examples train robustly, by the line that they name, and phone nobody."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

# PGD-20-2 at 0.1 after 2 epochs leaves 62.8 to 71.4 % (Fast-AT), 71.1 to 77.5 % (Free-AT, 4
# replays) and 46.9 to 59.7 % (standard) of the 360 test digits, seeds 0 to 4
FLOORS = {"fast": 0.60, "free": 0.68}
MARGIN = 0.05  # of Fast-AT over standard training; 0.18 at the examples' seed

LINES = {
    "accelerate": ("loss = step.loss(model, x, y)", "loss = F.cross_entropy(model(x), y)"),
    "lightning": (
        "return self.step.loss(self.net, x, y)",
        "return F.cross_entropy(self.net(x), y)",
    ),
}

# runs a source as a script, once for each (method, loss line); a connection is refused and noted
_RUNS = """
import json, socket, sys
import torch.nn.functional as F

def refuse(self, address, *more):
    print("connects to", address, file=sys.stderr)
    raise ConnectionRefusedError(address)

socket.socket.connect = socket.socket.connect_ex = refuse
path, runs = sys.argv[1], json.loads(sys.argv[2])
for method, line, replacement in runs:
    source = open(path).read().replace(line, replacement)
    sys.argv = [path, "--method", method, "--epochs", "2"]
    exec(compile(source, path, "exec"), {"__name__": "__main__", "F": F})
"""

_CHECKPOINT = """
import runpy, sys
import lightning, torch
from torch.utils.data import DataLoader, TensorDataset
from fastadv.data import load_digits

FreeModule = runpy.run_path(sys.argv[1])["FreeModule"]
loader = DataLoader(TensorDataset(*(part[:96] for part in load_digits())), batch_size=32)

def fitted(epochs, **more):
    module = FreeModule()
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(module, loader, **more)
    return trainer, module

fitted(1)[0].save_checkpoint(sys.argv[2])
_, whole = fitted(2)
_, resumed = fitted(2, ckpt_path=sys.argv[2], weights_only=True)
assert resumed.step.batches == whole.step.batches == 24, resumed.step.batches
assert whole.step.delta.abs().amax() > 0.09
assert torch.equal(resumed.step.delta, whole.step.delta)
for own, other in zip(resumed.parameters(), whole.parameters(), strict=True):
    assert torch.equal(own, other)
"""


def _run(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    # one process whatever machine runs this; PYTHONPATH: examples are no part of the package
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the optional package {package}")


@pytest.fixture(scope="module", params=["accelerate", "lightning"])
def trained(request: pytest.FixtureRequest, tmp_path_factory) -> tuple[dict[str, float], str]:
    """Robust accuracy of an example's methods, and of its loss line replaced; stderr."""
    _needs(request.param)
    line, standard = LINES[request.param]
    runs = [("fast", line, line), ("free", line, line), ("fast", line, standard)]
    path = EXAMPLES / f"{request.param}_training.py"
    done = _run(_RUNS, path, json.dumps(runs), cwd=tmp_path_factory.mktemp("example"))
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [text for text in done.stdout.splitlines() if text.startswith("clean ")]
    accuracies = [float(text.rpartition(" ")[2]) for text in printed]
    return dict(zip(("fast", "free", "standard"), accuracies, strict=True)), done.stderr


@pytest.mark.parametrize("package", LINES)
def test_an_example_has_one_loss_line_and_names_it(package):
    line, standard = LINES[package]
    source = (EXAMPLES / f"{package}_training.py").read_text()
    head, _, body = source.removeprefix('"""').partition('"""')
    assert f"`{line}`" in head and f"`{standard}`" in head
    assert [text.strip() for text in body.splitlines()].count(line) == 1


@pytest.mark.parametrize("method", FLOORS)
def test_an_example_trains_robustly(trained, method):
    robust, _ = trained
    assert robust[method] >= FLOORS[method]


def test_the_loss_line_is_what_makes_an_example_robust(trained):
    robust, _ = trained
    assert robust["fast"] > robust["standard"] + MARGIN


def test_an_example_phones_nobody(trained):
    _, messages = trained
    assert "connects to" not in messages


def test_a_lightning_checkpoint_keeps_the_free_perturbation(tmp_path):
    _needs("lightning")
    path = EXAMPLES / "lightning_training.py"
    done = _run(_CHECKPOINT, path, tmp_path / "last.ckpt", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
