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


class Variant:
    """A kernel with its warps and constants, and what was compiled for the calls that it met.

    Constants come in the order of the kernel's signature, behind all arguments, or its calls have
    no key: `run` takes every argument by position.
    """

    def __init__(self, kernel: Any, num_warps: int, **constants: Any) -> None:
        self.kernel, self.num_warps, self.constants = kernel, num_warps, constants
        self._values = tuple(constants.values())
        self.is_keyed = False
        if type(kernel) is JITFunction:
            arguments = [p for p in kernel.params if not p.is_constexpr]
            behind = kernel.params[len(arguments) :]
            self.is_keyed = [*constants] == [p.name for p in behind if p.is_constexpr]
            self._specialised = tuple(not p.do_not_specialize for p in arguments)
        self._by_types: dict[tuple[type, ...], _Alike] = {}

    def launch(self, programs: int, arguments: tuple) -> None:
        """Launch `programs` programs, with the arguments by position."""
        if not _observers:
            self._launch(programs, arguments)
            return
        with contextlib.ExitStack() as watching:
            for observer in _observers:
                watching.enter_context(observer(self.kernel.fn.__name__))
            self._launch(programs, arguments)

    def find(self, arguments: tuple) -> tuple[dict[tuple, _Compiled], tuple] | None:
        """(what was compiled, key): calls find the same only if Triton specialises them alike.

        They differ by the types of arguments (1 == True); by the dtypes of tensors, which must all
        be aligned to 16 bytes; by the width of integers and, where the kernel specialises on them,
        by whether they are one and whether 16 divides them; by device and driver. None: this call
        cannot be keyed.
        """
        types = tuple(map(type, arguments))
        alike = self._by_types.get(types)
        if alike is None:
            alike = self._by_types.setdefault(types, _Alike(_reader(types, self._specialised), {}))
        read = alike.read(*arguments)
        if read is None:
            return None
        active = driver.active
        return alike.compiled, (read, active.get_current_device(), active)

    def _launch(self, programs: int, arguments: tuple) -> None:
        place = None
        if self.is_keyed and not _is_altered(self.kernel):
            place = self.find(arguments)
            if place is not None:
                compiled, key = place
                found = compiled.get(key)
                if found is not None:
                    run, function, metadata = found
                    _, device, active = key
                    stream = active.get_current_stream(device)
                    run(
                        programs, 1, 1, stream, function, metadata, None, None, None,
                        *arguments, *self._values,
                    )  # fmt: skip
                    return
        options = dict(num_warps=self.num_warps, **launch_options())
        result = self.kernel[(programs,)](*arguments, **self.constants, **options)
        if place is not None and type(result) is CompiledKernel and _is_nvidia():
            compiled, key = place
            compiled[key] = _Compiled(result.run, result.function, result.packed_metadata)


def _reader(types: tuple[type, ...], specialised: tuple[bool, ...]) -> Callable[..., tuple | None]:
    """What `Variant.find` reads of arguments of these types, as a function of them.

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
            terms.append(f"32 if {-(2**31)} <= a{i} < {2**31} else width(a{i})")
        elif kind not in (float, bool, type(None)):
            usable.append("False")
    usable.append(f"not ({' | '.join(addresses)}) & 15")
    names = ", ".join(f"a{i}" for i in range(len(types)))
    source = f"lambda {names}: ({', '.join(terms)},) if {' and '.join(usable)} else None"
    return eval(source, {"width": _width})


def _width(value: int) -> int:
    """Of an integer that is no i32, and that Triton passes without looking at it: i64 or u64."""
    return 64 if -(2**63) <= value < 2**63 else 65


_variants: dict[tuple, Variant] = {}
_latest: dict[int, tuple[tuple, Variant | None]] = {}  # of a kernel, by its id; the last key


def launch(kernel, programs, arguments, *, num_warps, **constants):
    """Launch `programs` programs of `kernel`, with its arguments by position and its constants in
    the order of its signature: as the Variant for the names, values and types of constants."""
    values = (*constants.values(),)
    # an id stays the kernel's while its variants are kept; its own hash takes a lock
    key = (id(kernel), num_warps, *constants, *values, *map(type, values))
    latest, variant = _latest.get(id(kernel), _NONE)
    if variant is None or key != latest:  # compared first: hashes of Triton's dtypes take longer
        variant = _variants.get(key)
        if variant is None:
            variant = _variants.setdefault(key, Variant(kernel, num_warps, **constants))
        _latest[id(kernel)] = key, variant
    variant.launch(programs, arguments)


_NONE = (), None


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
