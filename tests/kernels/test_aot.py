"""Every kernel compiles for four targets without a GPU: no stack, no spills, wide accesses."""

import json
import os
import subprocess
import sys

import house
import pytest

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")

MODULES = house.aot_modules(house.ROOT)
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")

# an interpreted kernel cannot be compiled: another process, without TRITON_INTERPRET
_COMPILE = """
import importlib, json, sys
from fastadv.kernels import aot
for module in sys.argv[1:]:
    for case in importlib.import_module("fastadv.kernels." + module).aot_cases():
        for target in aot.TARGETS:
            resources = aot.compile_case(case, target)._asdict()
            print(json.dumps([module, case.name, case.vectorised, target, resources]))
"""


@pytest.fixture(scope="module", params=MODULES)
def compiled(request: pytest.FixtureRequest) -> list:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE, request.param],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for module, case, _, target, resources in rows:
        print(f"{module}.{case} {target}: {resources}")
    return rows


def test_every_case_compiles_for_every_target(compiled):
    assert {row[3] for row in compiled} == set(TARGETS)


def test_no_kernel_uses_stack_or_spills(compiled):
    assert [row for row in compiled if row[4]["stack_bytes"] != 0] == []


def test_vectorised_kernels_access_128_bits_at_a_time(compiled):
    for module, case, vectorised, target, resources in compiled:
        if vectorised and target == "sm_90":
            assert resources["wide_loads"] and resources["wide_stores"], (module, case, resources)


def test_offsets_of_rows_are_computed_in_64_bits(compiled):
    # beyond 2^31 elements row * size overflows 32 bits
    assert [row for row in compiled if row[4]["long_products"] == 0] == []


def test_registers_leave_room_for_two_blocks_a_multiprocessor(compiled):
    # 65,536 registers on sm_90: above 128 a thread, a second block of 8 warps does not fit
    assert [r for r in compiled if r[3] == "sm_90" and r[4]["registers"] > 128] == []
