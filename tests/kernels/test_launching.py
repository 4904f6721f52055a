"""Cached launches: tests of as_launched.py, in a process whose Triton drives an emulated device."""

import os
import subprocess
import sys

import house
import pytest

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")


def test_launches_are_cached_under_keys_as_fine_as_tritons(tmp_path):
    left_out = ("TRITON_INTERPRET", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "FASTADV_BACKEND")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment |= dict(FASTADV_EMULATE="sm_90", TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    done = subprocess.run(
        [*command, "tests/kernels/as_launched.py"],
        cwd=house.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
