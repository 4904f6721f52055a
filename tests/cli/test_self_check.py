"""`fastadv info --check`: every kernel is listed with its largest difference, and wrong ones named.

Kernels run as compiled for sm_90, in a process of their own.
"""

import os
import re
import subprocess
import sys

import house
import pytest
import torch

from fastadv.cli.app import run
from fastadv.ops import backend, compiled, registry
from fastadv.selfcheck import comparison, recording

pytest.importorskip("typer", reason="needs the optional package typer")

OPS = sorted(registry.implementations())
_EMULATED = f"""
import sys

sys.path.append({str(house.ROOT / "tests")!r})
from ptx import driver

driver.install("sm_90")
from fastadv.ops import registry

def nothing(*_, **__):
    pass

def broken(*_, **__):
    raise LookupError("no such\\n instruction")

registry.kernels("steps.select").launch_select_rows = nothing
registry.kernels("apgd.linf").launch_apgd_linf = broken
from fastadv.cli.entry import main

main(["info", "--check"])
"""


def rows(text: str) -> dict[str, tuple[str, ...]]:
    """forms, difference, tolerance, seconds, verdict of every op of a table."""
    found = re.findall(r"^(\w+) +(\d+) +(\S+) +(\S+) +(\S+) +(.*)$", text, re.MULTILINE)
    return {name: tuple(values) for name, *values in found if name in OPS}


def test_kernels_of_a_device_are_listed_and_wrong_ones_named():
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    left_out = ("TRITON_INTERPRET", "FASTADV_BACKEND", "FASTADV_EMULATE")
    done = subprocess.run(
        [sys.executable, "-c", _EMULATED],
        cwd=house.ROOT,
        env={k: v for k, v in os.environ.items() if k not in left_out},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    table = rows(done.stdout.partition("Triton kernels on")[2])
    assert sorted(table) == OPS
    wrong = {name: row[-1] for name, row in table.items() if row[-1] != "right"}
    assert wrong == {
        "apgd_linf_step_": "FAILS: LookupError: no such instruction",
        "select_rows_": "WRONG in destination",
    }
    assert done.stdout.endswith("\nwrong: apgd_linf_step_, select_rows_\n")
    assert float(table["select_rows_"][1]) > 0.01 and float(table["linf_step_"][1]) == 0
    assert {name: float(row[2]) for name, row in table.items() if row[2] != "0"} == {
        name: tolerance
        for name, one in registry.implementations().items()
        if (tolerance := one.trial.tolerance_of([None] * len(one.trial.parameters)))
    }


@pytest.fixture
def no_device(monkeypatch):
    monkeypatch.setattr(backend, "interpreting", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_without_a_gpu_the_cpu_paths_are_checked(no_device, capsys):
    assert run(["info", "--check"]) == 0
    out = capsys.readouterr().out
    assert "no kernel to check: there is no GPU" in out and "Triton kernels on" not in out
    table = rows(out)
    runs = {name: (one.cpu, one.compiled) for name, one in registry.implementations().items()}
    assert set(table) == {name for name, (cpu, loops) in runs.items() if cpu or loops}
    assert {row[-1] for row in table.values()} == {"right"}


def test_a_wrong_cpu_path_is_named(no_device, capsys, monkeypatch):
    known = registry.implementations()["square_lp_"]

    def wrong(*arguments):
        known.cpu(*arguments)
        arguments[0].add_(1.0)

    monkeypatch.setitem(registry._IMPLEMENTATIONS, "square_lp_", known._replace(cpu=wrong))
    with compiled.hidden():
        assert run(["info", "--check"]) == 1
    out = capsys.readouterr().out
    assert rows(out)["square_lp_"][-1] == "WRONG in x_new" and out.endswith("wrong: square_lp_\n")


def test_recording_finds_every_op_and_leaves_random_numbers_alone():
    before = torch.get_rng_state()
    assert sorted(recording.calls_of_attacks((3, 5, 7), torch.device("cpu"))) == OPS
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interpreter_counts_as_a_device(no_device, monkeypatch):
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    on_cpus = ["cpu"] if compiled.why_not() else ["cpu", "compiled"]
    assert [target.kind for target in comparison.targets()] == on_cpus
    monkeypatch.setattr(backend, "interpreting", lambda: True)
    assert [target.kind for target in comparison.targets()] == [*on_cpus, "kernel"]
