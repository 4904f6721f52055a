"""A current directory with models and data for `fastadv attack`."""

import sys

import numpy as np
import pytest

from fastadv.data import load_digits
from fastadv.models import digits_net

NETS = """
import torch
from fastadv.models import digits_net

SIZE = 1
network = digits_net(3)

def digits():
    return digits_net(3)

def broken():
    raise RuntimeError("no weights\\nhere")

def number():
    return 3

def for_small_batches():
    class Net(torch.nn.Module):
        def forward(self, x):
            if len(x) > 8:
                raise RuntimeError("too\\nmany")
            return x.flatten(1)[:, :3]
    return Net()

def saturated():
    class Net(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3] * 0
    return Net()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory with nets_of_cli_tests.py, digits.npz of floats and bytes.npz."""
    (tmp_path / "nets_of_cli_tests.py").write_text(NETS)
    x, _ = load_digits("test")
    x = x[:40]
    y = digits_net(3)(x).argmax(1).numpy()
    y[::5] = (y[::5] + 1) % 10  # some are wrong to begin with
    np.savez(tmp_path / "digits.npz", x=x.numpy(), y=y)
    np.savez(tmp_path / "bytes.npz", x=(x * 255).round().byte().numpy(), y=y.astype(np.uint8))
    (tmp_path / "digit.PNG").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets_of_cli_tests", raising=False)
    yield tmp_path
    sys.modules.pop("nets_of_cli_tests", None)
