"""What the GPU command is made of: time shares, processes, bars, refusals, tables."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import attacks as gpu_attacks
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import process as gpu_process
from benchmarks.gpu import screen as gpu_screen
from benchmarks.gpu import session as gpu_session
from benchmarks.gpu import tables as gpu_tables
from benchmarks.gpu.budget import Budget
from benchmarks.harness import harness, report, schema
from benchmarks.harness.peers import Unavailable

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_that_is_not_used_goes_to_the_next_section_and_overruns_are_paid_by_it():
    clock = Clock()
    budget = Budget(100 / 0.97, {"a": 1, "b": 2, "c": 1}, clock)
    assert budget.grant("a") == pytest.approx(25)
    clock.now += 5
    assert budget.grant("b") == pytest.approx(70)
    clock.now += 90
    assert budget.grant("c") == pytest.approx(5)
    clock.now += 3
    assert budget.grant("c") == 0


def test_a_late_process_is_interrupted_and_its_output_kept(tmp_path):
    code = (
        "import time\nprint('begun')\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('summary')"
    )
    began = time.monotonic()
    status = gpu_process.run(
        [sys.executable, "-c", code], seconds=2, log=tmp_path / "log", show=False
    )
    assert status is None and time.monotonic() - began < 8
    assert (tmp_path / "log").read_text() == "begun\nsummary\n"


def test_a_process_that_ignores_the_interrupt_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_process, "_MERCY", 0.5)
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    run = gpu_process.run([sys.executable, "-c", code], seconds=1, log=tmp_path / "l", show=False)
    assert run is None and time.monotonic() - began < 10


def test_a_section_that_dies_gives_its_status_and_variables_are_set(tmp_path):
    code = "import os, sys; print(os.environ['A'], os.environ.get('HOME')); sys.exit(70)"
    status = gpu_process.run(
        [sys.executable, "-c", code],
        seconds=20,
        log=tmp_path / "log",
        show=False,
        variables={"A": "1", "HOME": None},
    )
    assert status == gpu_session.DEVICE_LOST
    assert (tmp_path / "log").read_text() == "1 None\n"


def test_a_case_that_ended_a_process_is_not_begun_again(session):
    assert session.may_begin("one") and session.may_begin("two")
    again = gpu_session.Session(session.plan)
    assert not again.may_begin("one") and not again.may_begin("two") and again.may_begin("three")


def test_a_case_that_takes_too_long_is_named_and_not_run(session, capsys):
    assert not session.may_begin("PGD-50", seconds=1000)
    assert "not run, no time left: PGD-50 (about 1000.0 s" in capsys.readouterr().out


def test_an_error_costs_one_case_and_leaves_its_traceback(session, capsys):
    with session.guarded("case"):
        raise RuntimeError("bad")
    with session.guarded("peer"):
        raise Unavailable("peer is not installed")
    assert session.errors == 1
    text = (session.out / gpu_session.ERRORS).read_text()
    assert "=== ops: case" in text and "RuntimeError: bad" in text and "peer" not in text
    out = capsys.readouterr().out
    assert "FAILED case: RuntimeError: bad" in out
    assert "without peer: peer is not installed" in out


def test_a_lost_device_ends_the_process(session, monkeypatch):
    def lost(device=None):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    session.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(SystemExit) as ended, session.guarded("kernel"):
        raise RuntimeError("first")
    assert ended.value.code == gpu_session.DEVICE_LOST
    assert "the device is lost" in (session.out / gpu_session.ERRORS).read_text()


def _described() -> harness.Case:
    return harness.Case("gpu_ops", "case", (1,), "float32", 1, "a call", "nothing", "base")


def _zero(name: str, output: torch.Tensor) -> schema.Equality:
    return schema.Equality(float(output.abs().max()), 0.5, "difference", "zero")


def test_providers_that_raise_or_are_wrong_have_no_row_and_the_others_have(session):
    def broken() -> torch.Tensor:
        raise NotImplementedError("not yet")

    runs = {"base": broken, "right": lambda: torch.zeros(1), "wrong": lambda: torch.ones(1)}
    rows = session.measure(_described(), runs, _zero, harness.Timing(2))
    assert [(row.provider, row.baseline) for row in rows] == [("right", "right")]
    assert session.errors == 1  # a wrong result; what is not there yet is no error


def test_rounds_end_with_the_time_but_one_is_always_kept():
    def slow() -> torch.Tensor:
        time.sleep(0.02)
        return torch.zeros(1)

    times = harness.time_interleaved(
        {"slow": slow}, rounds=1000, warmup=1, clock=harness.cpu_clock, seconds=0.1
    )
    assert 1 <= len(times["slow"]) < 10
    few = harness.time_interleaved(
        {"slow": slow}, rounds=5, warmup=2, clock=harness.cpu_clock, seconds=0.0
    )
    assert len(few["slow"]) == 1


def test_the_host_clock_is_the_mean_of_many_calls():
    calls = []
    clock = harness.host_clock(CPU, calls=7)
    assert 0 < clock(lambda: calls.append(1)) < 0.01 and len(calls) == 7


def test_time_over_bare_passes_is_of_the_same_precision(with_changes):
    def row(provider: str, q50: float) -> schema.Row:
        return with_changes(provider=provider, q20=q50, q50=q50, q80=q50)

    fast, slow = "fastadv bf16 graph channels_last, all steps", "fastadv fp32, all steps"
    rows = [
        row("bare passes fp32", 10.0),
        row("bare passes bf16", 4.0),
        row(slow, 15.0),
        row(fast, 5.0),
        row("fastadv fp32", 7.0),
    ]
    told = {r.provider: r.extra for r in gpu_attacks.with_overheads(rows)}
    assert told[slow] == {"over_bare_percent": 50.0} and told[fast] == {"over_bare_percent": 25.0}
    assert told["fastadv fp32"] == {}


_CELLS = {
    "gpu-ops": "| PGD-10 digits_net | 80 %, 1.5x |",
    "gpu-attacks": "| 2 (1 to 3) | 1.50x | – | – | 1e-09 (1e-06) |",
    "gpu-autoattack": "| 2 | 1.50x | 100.0 % | 50.0 % | 0 / 0 |",
    "gpu-training": "| 2.5 | – | 1.50x | – | 1e-09 (1e-06) |",
    "gpu-steps": "| 2.00 | 0.00 | – | – |",
}


def test_every_gpu_table_is_tested():
    assert set(_CELLS) == {name for name in report.TABLES if name.startswith("gpu-")}


@pytest.mark.parametrize("name", _CELLS)
def test_every_gpu_table_is_written_from_rows(name, with_changes, tmp_path):
    suite, _ = report.TABLES[name]
    extra = {"missed": 0.0, "beyond": 0.0, "ms_per_minibatch": 2.5, "copies": 0.0}
    bandwidth = schema.Bandwidth(100, 50.0, 80.0)
    made = with_changes(suite=suite, extra=extra, bandwidth=bandwidth, provider="fastadv (triton)")
    schema.append_rows([made], tmp_path / "results")
    readme = tmp_path / "x.md"
    readme.write_text(f"<!-- benchmark:{name} -->\nold\n<!-- /benchmark -->\n")
    arguments = ["--readme", str(readme), "--results", str(tmp_path / "results")]
    report.main(arguments)
    assert _CELLS[name] in readme.read_text() and "old" not in readme.read_text()
    report.main([*arguments, "--check"])


def test_the_ops_chart_has_a_bar_an_op(with_changes):
    made = with_changes(provider="fastadv (triton)", bandwidth=schema.Bandwidth(100, 50.0, 80.0))
    chart = gpu_tables.ops_chart([made])
    assert chart.count("<rect") == 2 and made.case in chart and "8x1x8x8" in chart


def test_the_plain_table_is_what_is_drawn_without_rich(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_screen, "Console", None)
    screen = gpu_screen.Screen(tmp_path / "report.txt")
    screen.cells("title", ["a", "bb"], [["long", "1"]])
    assert capsys.readouterr().out == "title\na     bb\nlong  1\n"
    assert (tmp_path / "report.txt").read_text() == "title\na     bb\nlong  1\n"


def test_the_files_that_a_gpu_run_tests_are_there():
    assert [path for path in gpu_checks.TESTS if not (gpu_process.ROOT / path).exists()] == []


def test_a_missing_sanitizer_is_said(tmp_path):
    found = gpu_checks.sanitizer(tmp_path, 5, on_gpu=True, find=lambda name: None)
    assert found.state == "not run: compute-sanitizer is not installed" and not found.numbers


def test_the_sanitizer_is_run_twice_and_its_errors_counted(tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho '========= ERROR SUMMARY: 3 errors'\nexit 9\n")
    tool.chmod(0o755)
    found = gpu_checks.sanitizer(tmp_path, 20, on_gpu=True, find=lambda name: str(tool))
    assert found.numbers == {"memcheck errors": 3.0, "racecheck errors": 3.0}
    assert found.state.startswith("memcheck: 3 errors, exit status 9; racecheck: 3 errors")


def test_a_plan_travels_as_json(tmp_path, session):
    session.plan.write(tmp_path / "plan.json")
    assert gpu_session.Plan.read(Path(tmp_path / "plan.json")) == session.plan
    assert json.loads((tmp_path / "plan.json").read_text())["section"] == "ops"
