"""`python -m benchmarks.gpu` from end to end, as a rehearsal on a CPU."""

import pytest
import torch
from forked import ROOT, Forked

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu.section import MODULES, SHARES
from benchmarks.harness import schema


def _forked(command, *, seconds, log, show, variables=None):
    """`gpu_process.run` of a process that has imported torch already."""
    process = Forked(*command[1:])
    printed = "".join(process.communicate(seconds))
    with log.open("a") as file:
        file.write(printed)
    return process.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a rehearsal of every section leaves."""
    out = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu.gpu_process, "run", _forked)
        patched.chdir(ROOT)
        status = gpu.main(["--device", "cpu", "--minutes", "10", "--out", str(out)])
    assert status == 0
    return out


def test_every_section_runs_and_says_so(folder):
    text = (folder / gpu.REPORT).read_text()
    ending = text.rpartition("\nsections\n")[2].splitlines()
    states = {line.split()[0]: line.split(maxsplit=1)[1] for line in ending[1 : 1 + len(SHARES)]}
    assert {name: states[name] for name in MODULES} == dict.fromkeys(MODULES, "done")
    assert states["tests"].endswith("exit status 0") and " 0 passed" not in states["tests"]
    assert states["sanitizer"] == "rehearsed without the tool: exit status 0"


def test_nothing_fails_in_a_rehearsal(folder):
    errors = folder / "errors.txt"
    assert not errors.exists(), errors.read_text()


def test_at_most_eight_files_two_folders_down_are_written(folder):
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) <= 8 and max(len(path.parts) for path in files) <= 3


@pytest.mark.parametrize("section", MODULES)
def test_every_section_leaves_rows_of_one_run(folder, section):
    rows = schema.read_rows(f"gpu_{section}", folder / "results")
    assert rows == schema.newest_run(rows) and rows
    assert str(folder) not in rows[0].environment.command
    assert any(row.provider.startswith("fastadv") for row in rows)


def test_both_precisions_and_every_op_are_measured(folder):
    rows = schema.read_rows("gpu_ops", folder / "results")
    assert {row.dtype for row in rows} == {"float32", "bfloat16"}
    assert len({row.case for row in rows}) >= 30


def test_an_epoch_is_timed_with_its_loader_against_both_loops(folder):
    rows = [
        row
        for row in schema.read_rows("gpu_training", folder / "results")
        if row.case == gpu_bars.EPOCH
    ]
    names = {gpu_bars.ON_DEVICE, gpu_bars.CPU_LOADER, gpu_bars.GRAPHED}
    assert {row.provider for row in rows} == names
    for row in rows:
        assert row.baseline == gpu_bars.ON_DEVICE
        # 50,000 images in minibatches of 128, two of which were timed
        assert row.extra["seconds_per_epoch"] == pytest.approx(390 * row.q50 / 2 / 1e3)


def test_the_table_can_be_printed_again(folder, capsys):
    assert gpu.main(["--only", "table", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "gpu_ops" in out and "kernels of a PGD step" in out and "L-inf step" in out


def test_a_section_without_time_is_skipped_and_named(tmp_path, capsys):
    gpu.main(["--device", "cpu", "--minutes", "0.01", "--only", "ops", "--out", str(tmp_path)])
    assert "ops: skipped: no time left" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_a_section_that_breaks_does_not_stop_the_next(tmp_path, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise OSError("no such tool")

    monkeypatch.setattr(gpu_checks, "tests", broken)
    monkeypatch.setattr(
        gpu_checks, "sanitizer", lambda *args, **kwargs: gpu_checks.Outcome("ran", {"x": 1.0})
    )
    gpu.main(["--device", "cpu", "--only", "tests", "sanitizer", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "tests: FAILED: OSError: no such tool" in out and "sanitizer: ran" in out


@pytest.mark.parametrize(
    "statuses, runs, said",
    [
        ([70, 70, 0], 3, "done, 3 processes: the device was lost"),
        ([-11, 1], 2, "exit status 1, see errors.txt, 2 processes: the device was lost"),
        ([None], 1, "stopped at the time limit"),
        ([70, 70, 70, 0], 3, "exit status 70"),
    ],
)
def test_a_section_that_lost_the_device_goes_on_behind_the_case(
    tmp_path, monkeypatch, capsys, statuses, runs, said
):
    left = list(statuses)
    monkeypatch.setattr(gpu.gpu_process, "run", lambda *args, **kwargs: left.pop(0))
    gpu.main(["--device", "cpu", "--only", "steps", "--out", str(tmp_path)])
    assert len(statuses) - len(left) == runs
    assert said in capsys.readouterr().out


def test_a_data_folder_without_cifar_is_reported(tmp_path, capfd):
    gpu.main(
        ["--device", "cpu", "--only", "autoattack", "--out", str(tmp_path), "--data", str(tmp_path)]
    )
    assert "FileNotFoundError" in (tmp_path / "errors.txt").read_text()
    assert torch.is_grad_enabled()
