"""Kernels that are broken on purpose: each must be caught, and its original must pass.

Run by test_kernels_as_compiled.py, in a process where FASTADV_EMULATE is set.
"""

import importlib.util
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch

from fastadv import ops
from fastadv.kernels.fab import nearest
from fastadv.kernels.square import linf as square_linf
from fastadv.kernels.steps import l2, linf
from fastadv.ops.fab.step import fab_nearest_
from ptx import driver, machine
from ptx.memory import Misaligned, OutOfBounds, Unwritten
from ptx.races import Race

sys.path.append(str(Path(__file__).parents[1] / "ops" / "square"))  # where its problems lie

GENERATOR = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _kernels_of_cpu_tensors():
    with ops.use_backend("triton"):
        yield


@pytest.fixture
def launching(monkeypatch, tmp_path):
    """Put `launch` of a rewritten copy of a module in the place of the original's."""

    def rewrite(module, launch: str, old: str = "", new: str = "", nth: int = 0) -> None:
        text = inspect.getsource(module)
        if old:
            parts = text.split(old)
            assert len(parts) > nth + 1, f"{old!r} is gone from {module.__name__}"
            text = old.join(parts[: nth + 1]) + new + old.join(parts[nth + 1 :])
        name = f"{module.__name__}_rewritten"
        path = tmp_path / f"{name.rsplit('.', 1)[-1]}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(name, path)
        other = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, other)
        spec.loader.exec_module(other)
        monkeypatch.setattr(module, launch, getattr(other, launch))

    return rewrite


def images(*shape):
    return [torch.rand(shape, generator=GENERATOR) for _ in range(3)]


def linf_step(*shape):
    x_adv, grad, x = images(*shape)
    return ops.linf_step(x_adv, grad - 0.5, x, step_size=0.01, eps=0.03)


def fab_nearest():
    """The second class takes the row over."""
    grad, other, _ = images(2, 1000)
    ratio = torch.full((2,), torch.inf)
    difference, labels = torch.ones(2), torch.tensor([0, 0])
    for candidate in (1, 2):
        fab_nearest_(
            grad,
            difference,
            ratio,
            other / candidate,
            difference * 0.1,
            labels,
            candidate,
            norm="l2",
        )


def square_attack():
    from square_problems import linf_problem

    network, run = linf_problem(torch.device("cpu"), width=3)
    run.finish(network)


NEAREST = nearest, "launch_fab_nearest"
SQUARE = square_linf, "launch_square_linf"
LINF = linf, "launch_linf_step"
BARRIER = "tl.debug_barrier()"


def test_the_originals_pass(launching):
    for module, launch in (NEAREST, SQUARE, LINF):
        launching(module, launch)
    fab_nearest()
    square_attack()
    linf_step(3, 1000)
    linf_step(1, 4096)


def test_a_barrier_taken_out_of_fab_nearest(launching):
    launching(*NEAREST, BARRIER, "pass")
    with pytest.raises(Race, match="tensor: lane .* nearest_rewritten.py"):
        fab_nearest()


@pytest.mark.parametrize("nth", [0, 2])
def test_a_barrier_taken_out_of_square_linf(launching, nth):
    launching(*SQUARE, BARRIER, "pass", nth)
    with pytest.raises(Race, match="tensor: lane .* linf_rewritten.py"):
        square_attack()


def test_two_windows_of_square_linf_share_pixels(launching):
    """Equal values are no race, but are counted: the barrier between the two leaves none."""

    def equal_writes():
        before = len(driver.launches)
        square_attack()
        return sum(launch.same_values for launch in driver.launches[before:])

    assert equal_writes() == 0
    launching(*SQUARE, BARRIER, "pass", 1)
    assert equal_writes() > 0


def test_a_mask_one_element_too_long(launching):
    launching(*LINF, "mask = start + offset < D", "mask = start + offset < D + 1")
    with pytest.raises(OutOfBounds, match="linf_rewritten.py"):
        linf_step(3, 1000)


def test_a_vector_access_where_none_may_be(launching):
    load = "x = tl.load(x_ptr + base + offset)"
    launching(*LINF, load, "x = tl.load(x_ptr + base + tl.multiple_of(offset + 1, 8))")
    with pytest.raises(Misaligned, match="16 bytes"):
        linf_step(1, 4096)


def test_two_ctas_write_one_element(launching):
    start = "start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK"
    launching(*LINF, start, start + " // 2")
    with pytest.raises(Race, match="CTA . writes what CTA . touches"):
        linf_step(1, 4096)


@pytest.mark.parametrize("mutated", [False, True])
def test_shared_memory_that_nothing_wrote_is_read(launching, monkeypatch, mutated):
    load = machine.load

    def without_a_store(ptx):
        return load(re.sub(r"(@%p\d+ )?st\.shared[^;]*;", "", ptx, count=1) if mutated else ptx)

    monkeypatch.setattr(machine, "load", without_a_store)
    launching(l2, "launch_l2_step")
    x_adv, grad, x = images(2, 1000)
    if not mutated:
        ops.l2_step_(x_adv, grad, x, step_size=0.1, eps=0.5)
        return
    with pytest.raises(Unwritten):
        ops.l2_step_(x_adv, grad, x, step_size=0.1, eps=0.5)
