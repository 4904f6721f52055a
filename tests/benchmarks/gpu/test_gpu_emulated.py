"""What the GPU run watches every kernel by, over an emulated device that checks its accesses."""

import json
import os
import subprocess
import sys

import house
import pytest

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")

# as the sanitizer runs it; the device's name is all that differs
_EXERCISE = f"""
import json
import sys

sys.path.append({str(house.ROOT / "tests")!r})
from ptx import driver

driver.install("sm_90")
import torch
from benchmarks.gpu import ops

ops.exercise(torch.device("cpu"))
print(json.dumps(sorted({{launch.kernel for launch in driver.launches}})))
"""


def test_every_kernel_is_run_on_odd_shapes_and_right():
    left_out = ("TRITON_INTERPRET", "FASTADV_EMULATE", "PYTHONWARNINGS")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", _EXERCISE],
        cwd=house.ROOT,
        env=environment | dict(FASTADV_BACKEND="triton"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    first, *_, last = done.stdout.splitlines()
    assert first.startswith("triton")
    assert json.loads(last) == sorted(house.kernels(house.ROOT))
