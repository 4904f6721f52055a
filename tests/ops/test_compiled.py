"""Compiled loops: imported late, hidden, kept on the disk, run after a fork and in two threads."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from fastadv import ops
from fastadv.ops import compiled, loops_probe, machine_code

pytestmark = pytest.mark.skipif(bool(compiled.why_not()), reason=compiled.why_not())

SCRIPT = """
import os, sys, torch
from fastadv import ops
assert "numba" not in sys.modules and "llvmlite" not in sys.modules
x = torch.full((2, 3), 0.5)
moved = ops.linf_step(x, x, x, step_size=0.25, eps=0.125)

def step(x):
    return ops.linf_step_(x.clone(), x, x, step_size=0.25, eps=0.125).tolist()

moved = [[0.625] * 3] * 2
assert step(x) == moved
print("numba" in sys.modules, "llvmlite" in sys.modules)
child = os.fork()
if child == 0:  # a loop that is in memory, and one that is not
    os._exit(0 if step(x) == moved and step(x.double()) == moved else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_numba_is_imported_where_something_is_to_be_compiled(tmp_path):
    for numba in ("True", "False"):  # the second process finds what the first has left
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "FASTADV_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == [numba, "True", "0"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def compilations(monkeypatch):
    """One entry for each."""
    from fastadv.ops import loop_compiler

    found, compile = [], loop_compiler.compiled

    def noted(*arguments):
        found.append(arguments)
        return compile(*arguments)

    monkeypatch.setattr(loop_compiler, "compiled", noted)
    return found


def adds():
    """The least loop, as in a new process."""
    values = torch.zeros(3)
    loop = machine_code.loaded("probe", loops_probe.add.function, ("int64", "int64", "float32"))
    loop(values.data_ptr(), 2, 1.5)
    return values.tolist() == [1.5, 1.5, 0.0]


def test_a_file_that_is_not_whole_is_compiled_anew(compilations, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTADV_CACHE_DIR", str(tmp_path / "new" / "folder"))
    assert adds() and adds() and len(compilations) == 1
    (file,) = (tmp_path / "new" / "folder").iterdir()
    whole = file.read_bytes()
    for broken in (whole[:-1], b"", bytes([*whole[:-9], 255 - whole[-9], *whole[-8:]])):
        compilations.clear()
        file.write_bytes(broken)
        assert adds() and adds() and len(compilations) == 1
        assert file.stat().st_size == len(whole)


def test_other_settings_of_numba_are_other_code(compilations, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTADV_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        assert adds()
        machine_code._made_of.cache_clear()
        monkeypatch.setenv("NUMBA_OPT", "2")
    assert len(compilations) == 2
    machine_code._made_of.cache_clear()


def test_a_folder_that_cannot_be_written_costs_nothing_else(compilations, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FASTADV_CACHE_DIR", str(tmp_path / "file"))
    assert adds() and adds() and len(compilations) == 2


def test_where_loops_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTADV_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine_code.folder() == tmp_path / "fastadv"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert machine_code.folder().parts[-2:] == (".cache", "fastadv")


def test_the_switch_is_checked(monkeypatch):
    for value, said in (("1", ""), ("0", "FASTADV_COMPILED=0 hides them")):
        monkeypatch.setenv("FASTADV_COMPILED", value)
        assert compiled.why_not.__wrapped__() == said
    monkeypatch.setenv("FASTADV_COMPILED", "yes")
    with pytest.raises(ValueError, match='must be "0" or "1"; got \'yes\''):
        compiled.why_not.__wrapped__()


def test_a_numba_that_does_not_work_is_not_used(monkeypatch):
    monkeypatch.setattr(loops_probe, "runs", lambda: 1 / 0)
    assert "numba does not work here: ZeroDivisionError" in compiled.why_not.__wrapped__()


def step():
    x = torch.linspace(0, 1, 6000).view(3, 2000)
    return ops.linf_step(x, x, x, step_size=0.25, eps=0.125)


def test_loops_run_in_two_threads():
    expected, found = step(), []
    threads = [
        threading.Thread(target=lambda: found.extend(step() for _ in range(20))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40 and all(torch.equal(one, expected) for one in found)


def test_hidden_loops_do_not_run():
    with compiled.hidden():
        assert not compiled.is_on()
    assert compiled.is_on()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_does_not_wait_for_what_another_thread_was_compiling():
    with machine_code._LOCK:
        child = os.fork()
        if child == 0:
            os._exit(int(machine_code._LOCK.locked()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
