"""Launches through Triton's JIT: keys of calls, and which calls are run again without its binder.

Run by test_launching.py, in a process where FASTADV_EMULATE is set.
"""

import contextlib
import functools
import importlib
import itertools
import random

import house
import pytest
import torch
import triton.language as tl
from triton import knobs
from triton.runtime.jit import JITFunction, compute_cache_key

from fastadv import ops
from fastadv.kernels import launching
from fastadv.kernels.heads import loss_head
from fastadv.kernels.steps.linf import linf_step_kernel
from fastadv.ops import backend

KERNELS = {
    name: kernel
    for module in house.aot_modules(house.ROOT)
    for name, kernel in vars(importlib.import_module(f"fastadv.kernels.{module}")).items()
    if isinstance(kernel, JITFunction) and name.endswith("_kernel")
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.uint8)
TENSORS = [torch.zeros(64, dtype=dtype) for dtype in DTYPES]
POINTERS = [None, *TENSORS, torch.nn.Parameter(TENSORS[0]), TENSORS[0][4:]]
UNALIGNED = [TENSORS[0][n:] for n in (1, 2)]
EDGES = (2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**40, -(2**40), 2**63 - 16, 2**63)
INTEGERS = [0, 1, 2, 15, 16, 17, 32, -1, -16, True, False]
CONSTANTS_OF_STEP = {p.name: False for p in linf_step_kernel.params if p.is_constexpr}
CONSTANTS = [True, False, 0, 1, 2, 1.0, 128, "linf", "l2", None, tl.float32, tl.float64]


def drawn(draw: random.Random, parameter):
    """A value for a parameter; one in fifty is one that may leave a call without a key."""
    is_odd = draw.random() < 0.02
    if parameter.is_constexpr:
        return draw.choice(CONSTANTS)
    if parameter.name.endswith("_ptr"):
        return draw.choice(UNALIGNED if is_odd else POINTERS)
    if parameter.annotation_type:
        return draw.choice([0.0, 1.0, 0.5])
    is_odd |= parameter.do_not_specialize  # these have a key whatever their width
    return draw.choice(EDGES if is_odd else INTEGERS)


def calls(kernel: JITFunction, count: int, seed: int):
    """(arguments, constants, warps) of random calls, most of which are near another one."""
    draw = random.Random(seed)
    parameters = kernel.params
    values, warps = [], 4
    for i in range(count):
        if i % 20 == 0:
            values = [drawn(draw, p) for p in parameters]
        changed = draw.choice(range(len(values) + 1))
        if changed == len(values):
            warps = draw.choice((1, 4))
        else:
            values = [*values]
            values[changed] = drawn(draw, parameters[changed])
        named = zip(parameters, values, strict=True)
        constants = {p.name: v for p, v in named if p.is_constexpr}
        yield tuple(values[: len(values) - len(constants)]), constants, warps


def tritons_key(kernel: JITFunction, arguments, constants, warps) -> str:
    """The key under which Triton keeps what it compiles for such a call."""
    *_, binder = kernel.device_caches[0]
    _, specialization, options = binder(*arguments, **constants, num_warps=warps)
    return compute_cache_key({}, specialization, options)


def variant_of(kernel: JITFunction, constants, warps: int) -> launching.Variant:
    """What `launch` launches for constants and warps."""
    launched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching.Variant, "launch", lambda self, *_: launched.append(self))
        launching.launch(kernel, 1, (), num_warps=warps, **constants)
    return launched[0]


@functools.cache
def keys(name: str) -> list[tuple]:
    """(types of arguments, what was read, variant, constants and warps, Triton's key) of random
    calls that have a key."""
    kernel, found = KERNELS[name], []
    for arguments, constants, warps in calls(kernel, 800, seed=len(kernel.params)):
        variant = variant_of(kernel, constants, warps)
        place = variant.find(arguments)
        if place is not None:
            kinds, values = tuple(map(type, arguments)), (*constants.values(), warps)
            tritons = tritons_key(kernel, arguments, constants, warps)
            found.append((kinds, place[1], variant, values, tritons))
    return found


def shared(found: list[tuple], *parts: int) -> int:
    """How many of our keys, made of these parts, stand for more than one of Triton's."""
    tritons = {}
    for key in found:
        tritons.setdefault(tuple(key[i] for i in parts), set()).add(key[-1])
    return sum(len(others) > 1 for others in tritons.values())


@pytest.mark.parametrize("name", KERNELS)
def test_calls_that_triton_tells_apart_share_no_key(name):
    found = keys(name)
    assert len({key[-1] for key in found}) > 20
    assert shared(found, 0, 1, 2) == 0
    assert shared(found, 0, 2) and shared(found, 0, 1)  # the calls are near enough to tell


def test_types_are_part_of_a_key():
    found = [key for name in KERNELS for key in keys(name)]
    assert shared(found, 0, 1, 3)  # without the types of constants
    assert shared(found, 1, 2)  # without those of arguments


def test_variants_of_a_head_are_told_apart():
    """It puts constants together only where it has not been called like this before."""
    seen = []
    labels, rows = torch.zeros(4, dtype=torch.int64), torch.zeros(4)
    tensors = torch.zeros(4, 5), labels, None, None, rows, None, labels, rows > 0, None, None
    rules = list(itertools.product(("cross_entropy", "margin", "dlr"), (1, True, False)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching.Variant, "launch", lambda self, *_: seen.append(self))
        for kind, early in 2 * rules:
            loss_head.launch_loss_head(*tensors, kind, 0.0, 0, 0, early, 0, False)
    assert len(set(seen)) == len(rules) and seen[: len(rules)] == seen[len(rules) :]
    for variant, (kind, early) in zip(seen, 2 * rules, strict=True):
        assert variant.constants["KIND"] == kind
        assert variant.constants["STOP_EARLY"] is early


def unkeyed(**changed):
    """A call of the L-infinity kernel with some arguments changed: whether it has no key."""
    x = torch.zeros(64)
    arguments = dict(zip(linf_step_kernel.arg_names, [x] * 11 + [0.0] * 4 + [64, 1], strict=False))
    values = tuple((arguments | changed).values())
    return variant_of(linf_step_kernel, CONSTANTS_OF_STEP, 4).find(values) is None


def test_calls_without_a_key():
    assert not unkeyed()
    assert unkeyed(out_ptr=torch.zeros(65)[1:])
    assert unkeyed(D=2**31)
    assert unkeyed(D="64")


def test_constants_in_another_order_are_left_to_triton():
    assert variant_of(linf_step_kernel, CONSTANTS_OF_STEP, 4).is_keyed
    reordered = dict(reversed(CONSTANTS_OF_STEP.items()))
    assert not variant_of(linf_step_kernel, reordered, 4).is_keyed
    few = dict(list(CONSTANTS_OF_STEP.items())[1:])
    assert not variant_of(linf_step_kernel, few, 4).is_keyed


@pytest.fixture
def by_triton(monkeypatch):
    """Names of the kernels that went through Triton's binder."""
    names = []

    def run(self, *args, _run=JITFunction.run, **kwargs):
        names.append(self.fn.__name__)
        return _run(self, *args, **kwargs)

    monkeypatch.setattr(JITFunction, "run", run)
    with backend.use_backend("triton"):
        yield names


def step(offset: int = 0, size: int = 48) -> torch.Tensor:
    """One L-infinity step on a tensor that starts `offset` elements into its memory."""
    numbers = torch.arange(2 * size + offset).float().remainder(7) / 7
    x = numbers[offset:].view(2, size)
    x_adv = numbers.clone()[offset:].view(2, size)
    return ops.linf_step_(x_adv, x - 0.5, x, step_size=0.1, eps=0.2)


def test_a_call_like_another_one_runs_without_the_binder(by_triton):
    first = step()
    by_triton.clear()
    assert torch.equal(step(), first)
    assert by_triton == []
    with backend.use_backend("reference"):
        assert torch.equal(step(), first)


def test_what_was_compiled_for_aligned_tensors_is_not_run_on_others(by_triton):
    step()
    by_triton.clear()
    with backend.use_backend("reference"):
        expected = step(offset=1)
    assert torch.equal(step(offset=1), expected)
    assert by_triton == ["linf_step_kernel"]


def test_launch_hooks_still_run(by_triton):
    step()
    by_triton.clear()
    called = []

    def entered(metadata):
        called.append("in")

    def left(metadata):
        called.append("out")

    runtime = knobs.runtime
    runtime.launch_enter_hook.add(entered)
    runtime.launch_exit_hook.add(left)
    try:
        step()
    finally:
        runtime.launch_enter_hook.remove(entered)
        runtime.launch_exit_hook.remove(left)
    assert called == ["in", "out"]
    assert by_triton == ["linf_step_kernel"]
    step()
    assert (len(called), by_triton) == (2, ["linf_step_kernel"])


def test_hooks_before_a_run_still_run(by_triton, monkeypatch):
    step()
    by_triton.clear()
    called = []
    monkeypatch.setattr(linf_step_kernel, "pre_run_hooks", [lambda *_, **__: called.append(1)])
    step()
    assert called == [1]


def test_observers_see_both_kinds_of_launches(by_triton):
    seen = []

    @contextlib.contextmanager
    def noted(kernel):
        seen.append(kernel)
        yield

    step()
    by_triton.clear()
    with launching.observed(noted):
        step()
        step(offset=1)
    step()
    assert seen == ["linf_step_kernel"] * 2
    assert by_triton == ["linf_step_kernel"]


def test_another_driver_is_asked_anew(by_triton):
    from ptx.driver import EmulatedDriver
    from triton.runtime import driver

    step()
    by_triton.clear()
    before = driver.active
    driver.set_active(EmulatedDriver())
    try:
        step()
    finally:
        driver.set_active(before)
    assert by_triton == ["linf_step_kernel"]
    step()
    assert by_triton == ["linf_step_kernel"]
