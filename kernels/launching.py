"""The one seam for launches: Triton's ordinary call, or what it compiled for such a call before.

`kernel[grid](...)` binds, specialises and looks up its arguments in about 14 us of host time.
`launch` remembers what that call compiled, under a key at least as fine as Triton's own, and runs
it again. What it cannot key, and launches that something watches or alters, take the ordinary call.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from .compilation import launch_options

Observer = Callable[[str], contextlib.AbstractContextManager[None]]
_observers: list[Observer] = []


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Run every launch inside `observer(name of its kernel)`."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """Launches inside are told to no observer."""
    observers = _observers.copy()
    _observers.clear()
    try:
        yield
    finally:
        _observers[:] = observers


class _Compiled(NamedTuple):
    run: Callable[..., None]
    function: Any
    metadata: Any


class _Alike(NamedTuple):
    """Calls whose arguments have the same types: how to read one, and what was compiled."""

    read: Callable[..., tuple | None]
    compiled: dict[tuple, _Compiled]


class Calls:
    """How calls of a kernel are told apart, and what was compiled for them."""

    def __init__(self, kernel: JITFunction) -> None:
        self.kernel = kernel  # keeps the id alive under which it is known
        arguments = [p for p in kernel.params if not p.is_constexpr]
        self.constants = tuple(p.name for p in kernel.params if p.is_constexpr)
        # `run` takes every argument by position: constants must come last
        assert kernel.params[: len(arguments)] == arguments, kernel
        self.specialised = tuple(not p.do_not_specialize for p in arguments)
        self._by_types: dict[tuple[type, ...], _Alike] = {}

    def find(
        self, arguments: tuple, constants: dict[str, Any], num_warps: int
    ) -> tuple[dict[tuple, _Compiled], tuple] | None:
        """(what was compiled, key): calls find the same only if Triton specialises them alike.

        They differ by the types of arguments and constants (1 == True); by the dtypes of tensors,
        which must all be aligned to 16 bytes; by the width of integers and, where the kernel
        specialises on them, by whether they are one and whether 16 divides them; by constants,
        warps, device and driver. None: this call cannot be keyed.
        """
        if tuple(constants) != self.constants:
            return None
        values = tuple(constants.values())
        types = (*map(type, arguments), *map(type, values))
        alike = self._by_types.get(types)
        if alike is None:
            reader = _reader(types[: len(arguments)], self.specialised)
            alike = self._by_types.setdefault(types, _Alike(reader, {}))
        read = alike.read(*arguments)
        if read is None:
            return None
        active = driver.active
        return alike.compiled, (read, values, num_warps, active.get_current_device(), active)


def _reader(types: tuple[type, ...], specialised: tuple[bool, ...]) -> Callable[..., tuple | None]:
    """What `Calls.find` reads of arguments of these types, as a function of them.

    Made for them: a loop over the arguments would take longer than the launch.
    """
    terms, addresses, usable = [], ["0"], []
    for i, (kind, is_specialised) in enumerate(zip(types, specialised, strict=True)):
        if hasattr(kind, "data_ptr"):  # a tensor; kernels do not import torch
            terms.append(f"a{i}.dtype")
            addresses.append(f"a{i}.data_ptr()")
        elif kind is int and is_specialised:
            terms.append(f"2 if a{i} == 1 else a{i} & 15 == 0")
            usable.append(f"{-(2**31)} <= a{i} < {2**31}")
        elif kind is int:
            terms.append(f"width(a{i})")
        elif kind not in (float, bool, type(None)):
            usable.append("False")
    usable.append(f"not ({' | '.join(addresses)}) & 15")
    names = ", ".join(f"a{i}" for i in range(len(types)))
    source = f"lambda {names}: ({', '.join(terms)},) if {' and '.join(usable)} else None"
    return eval(source, {"width": _width})


def _width(value: int) -> int:
    """Of an integer that Triton passes without looking at it: i32, i64 or u64."""
    if -(2**31) <= value < 2**31:
        return 32
    return 64 if -(2**63) <= value < 2**63 else 65


_known: dict[int, Calls] = {}  # a JITFunction's own hash takes a lock


def calls_of(kernel: JITFunction) -> Calls:
    calls = _known.get(id(kernel))
    return _known.setdefault(id(kernel), Calls(kernel)) if calls is None else calls


def launch(kernel, programs, arguments, *, num_warps, **constants):
    """Launch `programs` programs of `kernel`, with its arguments by position and its constants in
    the order of its signature."""
    if not _observers:
        _launch(kernel, programs, arguments, num_warps, constants)
        return
    with contextlib.ExitStack() as watching:
        for observer in _observers:
            watching.enter_context(observer(kernel.fn.__name__))
        _launch(kernel, programs, arguments, num_warps, constants)


def _launch(kernel, programs, arguments, num_warps, constants):
    place = None
    if type(kernel) is JITFunction and not _is_altered(kernel):
        place = calls_of(kernel).find(arguments, constants, num_warps)
        if place is not None:
            compiled, key = place
            found = compiled.get(key)
            if found is not None:
                run, function, metadata = found
                *_, device, active = key
                stream = active.get_current_stream(device)
                values = key[1]
                run(
                    programs, 1, 1, stream, function, metadata, None, None, None,
                    *arguments, *values,
                )  # fmt: skip
                return
    result = kernel[(programs,)](*arguments, **constants, num_warps=num_warps, **launch_options())
    if place is not None and type(result) is CompiledKernel and _is_nvidia():
        compiled, key = place
        compiled[key] = _Compiled(result.run, result.function, result.packed_metadata)


def _is_nvidia() -> bool:
    return driver.active.get_current_target().backend == "cuda"  # AMD's also look at sizes


def _is_altered(kernel: JITFunction) -> bool:
    """Whether something watches this launch or changes what would be compiled for it."""
    runtime = knobs.runtime
    return bool(
        runtime.debug
        or kernel.debug
        or kernel.pre_run_hooks
        or getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
    )
