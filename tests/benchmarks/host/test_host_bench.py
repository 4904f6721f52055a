"""The host benchmark on two calls: rows of both ways, and that they reach the driver alike."""

import os
import re
import shutil
import subprocess
import sys

import house
import pytest

from benchmarks.harness import schema, tables

pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("needs a C compiler, for a driver that does nothing")
    folder = tmp_path_factory.mktemp("host")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-m",
        "benchmarks.host",
        "--rounds",
        "2",
        "--ops",
        "linf_step_$|head|graphed",
    ]
    done = subprocess.run(
        [*command, "--results", str(folder)],
        cwd=house.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return schema.read_rows("host", folder)


def test_every_call_is_timed_with_and_without_what_launches_remember(rows):
    found = [(row.case, row.provider) for row in rows]
    assert len(set(found)) == len(found)
    cases = {case for case, _ in found}
    assert {"linf_step_", "apgd_linf_step_", "loss head, tracked"} <= cases
    assert "graphed training step, PreActResNet-18" in cases
    assert {provider for _, provider in found} == {
        "fastadv",
        "through Triton's binder",
        "all facts read at every step",
    }
    assert all(row.unit == "us" and row.equality.tolerance == 0 for row in rows)


def test_the_table_has_a_line_a_call(rows):
    table = tables.host(rows)
    assert len(re.findall(r"^\| (?!-|call)", table, re.MULTILINE)) == len(rows) / 2
