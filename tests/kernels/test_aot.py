"""Every kernel compiles for four targets without a GPU: no stack, no spills, wide accesses."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import house
import pytest

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")

MODULES = house.aot_modules(house.ROOT)
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """What ahead_of_time.py prints, in one process: a start costs as much as 5 compilations."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("ahead_of_time.py"), *MODULES],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def named(row: dict) -> str:
    return ", ".join(f"{name}: {value}" for name, value in row.items() if name != "values")


def test_every_module_compiles_for_every_target(compiled):
    for module in MODULES:
        assert {row["target"] for row in compiled if row["module"] == module} == TARGETS


def test_every_target_meets_every_value_of_every_parameter(compiled):
    met = defaultdict(set)
    for row in compiled:
        met[row["target"]] |= {tuple(value) for value in row["values"]}
    assert len(met["sm_90"]) > 500
    assert {target: met["sm_90"] - met[target] for target in TARGETS} == dict.fromkeys(
        TARGETS, set()
    )


def test_no_kernel_uses_stack_or_spills(compiled):
    assert [named(row) for row in compiled if row["stack_bytes"] != 0] == []


def test_vectorised_kernels_access_128_bits_at_a_time(compiled):
    wide = [row for row in compiled if row["vectorised"] and row["target"] == "sm_90"]
    assert len(wide) > 40
    assert [named(row) for row in wide if not row["wide_loads"] or not row["wide_stores"]] == []


def test_offsets_of_rows_are_computed_in_64_bits(compiled):
    # beyond 2^31 elements row * size overflows 32 bits
    assert [named(row) for row in compiled if row["long_products"] == 0] == []


def test_registers_leave_room_for_two_blocks_a_multiprocessor(compiled):
    # 65,536 registers on sm_90: above 128 a thread, a second block of 8 warps does not fit
    mine = [row for row in compiled if row["target"] == "sm_90"]
    assert [named(row) for row in mine if row["registers"] > 128] == []
