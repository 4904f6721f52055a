"""Registers an op, its schema and its implementations, and chooses one of them at each call.

An op has an eager reference, which defines it, a Triton launch, and where it pays faster paths for
plain tensors of the CPU, tested against the reference: one in numpy or torch (`cpu`), and loops
that numba compiles (`compiled`), which go first where numba is there. The reference dispatches to
nothing: it calls no op of this library and asks for no backend (tested). A launch is compared with
it at the first call on a device (`trial`).

A compiled path is a function with the op's name, in a module that is imported by name at the first
call that takes it, and holds its loops (see `loops`). It takes the op's arguments by position; the
first is float32 or float64. What it does not take it refuses by NotImplemented, before it writes
anything: then the call takes the path that it would without numba. The op's wrapper has checked the
tensors and made them dense and alike, as for kernels; what else a loop needs (the dtype of other
tensors, contiguous rows) the function looks at.
"""

import functools
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, TypeVar

import torch

from fastadv.ops import backend
from fastadv.ops.trial import Trial

_T = TypeVar("_T")
# define/impl dispatch in about 2 us a call; the custom_op decorators cost 18 to 50 us
_LIBRARY = torch.library.Library("fastadv", "DEF")
_LITTLE_ENDIAN = sys.byteorder == "little"  # CPU paths look at words as halves of longer ones
SINGLE_AND_DOUBLE = frozenset((torch.float32, torch.float64))


class Implementations(NamedTuple):
    """What an op may run; each takes the arguments of its schema by position."""

    reference: Callable[..., Any]
    cpu: Callable[..., Any] | None
    launch: Callable[..., Any]
    trial: Trial
    compiled: Callable[..., Any] | None
    module: str | None  # of the compiled path


_IMPLEMENTATIONS: dict[str, Implementations] = {}


def implementations() -> Mapping[str, Implementations]:
    """What each registered op may run, by its name: what tests compare."""
    return MappingProxyType(_IMPLEMENTATIONS)


def fallen_back(device: torch.device) -> tuple[str, ...]:
    """The ops whose kernel has failed its trial on `device`, so that their reference runs."""
    return tuple(sorted(n for n, one in _IMPLEMENTATIONS.items() if device in one.trial.failed))


@functools.cache
def kernels(module: str) -> ModuleType:
    """fastadv.kernels.<module>, imported at its first launch: triton is there on Linux only, and an
    import inside a function takes a microsecond of every call."""
    return importlib.import_module(f"fastadv.kernels.{module}")


@functools.cache
def loops_of(module: str, name: str) -> Callable[..., Any]:
    """The compiled path of the op `name`, in fastadv.ops.<module>, imported at its first call."""
    return getattr(importlib.import_module(f"fastadv.ops.{module}"), name)


def takes_cpu_path(
    tensor: torch.Tensor, dtypes: frozenset[torch.dtype] | None = SINGLE_AND_DOUBLE
) -> bool:
    """Whether a CPU path may run: a plain tensor of the CPU in one of `dtypes` (None: in any),
    outside of any tracing, and the backend "reference" is not chosen."""
    return (
        type(tensor) is torch.Tensor
        and not torch.compiler.is_compiling()
        and tensor.device.type == "cpu"
        and (dtypes is None or tensor.dtype in dtypes)
        and _LITTLE_ENDIAN
        and not backend.is_reference_chosen()
    )


def choose(tensor: torch.Tensor, *, reference: _T, cpu: _T) -> _T:
    """One of two, as an op would whose first argument is `tensor`, in any dtype.

    For functions that are no ops, because no kernel replaces them: Philox's draws.
    """
    return cpu if takes_cpu_path(tensor, None) else reference


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    launch: Callable[..., Any],
    cpu: Callable[..., Any] | None = None,
    cpu_dtypes: frozenset[torch.dtype] | None = SINGLE_AND_DOUBLE,
    compiled: str | None = None,
    fake: Callable[..., Any] | None = None,
    shared: Sequence[str] = (),
    tolerance: float = 0.0,
    tolerance_with: Mapping[str, float] = MappingProxyType({}),
) -> Callable[..., Any]:
    """Define `fastadv::<schema>` and return its overload.

    The first argument decides the device. `reference`, `cpu` and `launch` take every argument by
    position: schemas have no defaults, which the dispatcher would drop. cpu: a faster path where
    the first argument is a plain tensor of the CPU in one of `cpu_dtypes` (None: in any). compiled:
    the module below fastadv.ops whose function of the op's name is a compiled path. `fake` may be
    left out by ops that only mutate. shared: the tensors that are no rows of samples but belong to
    all of them, and are only read. tolerance: what implementations may differ by where they add up
    in different orders, of values up to 1 and of samples of at most 192 elements; 0.0 where all
    give the same bits. tolerance_with: the same of calls that give an argument.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload = getattr(torch.ops.fastadv, name).default
    written = [
        i
        for i, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    parameters = [argument.name for argument in overload._schema.arguments]
    trial = Trial(
        name,
        parameters,
        reference=reference,
        launch=launch,
        shared=shared,
        tolerance=tolerance,
        tolerance_with=tolerance_with,
    )
    passed = trial.passed

    def implementation(*args: Any) -> Any:
        first = args[0]
        device = first.device
        if backend.runs_triton(device):
            if not backend.is_current(device):
                with backend.on_device_of(first):
                    return implementation(*args)
            if device not in passed and not unrecorded(is_trusted, args):
                return unrecorded(reference, args)
            result = launch(*args)
        elif compiled is not None and takes_cpu_path(first) and backend.runs_compiled():
            result = by_loops(*args)
        elif cpu is not None and takes_cpu_path(first, cpu_dtypes):
            result = unrecorded(cpu, args)
        else:
            return unrecorded(reference, args)  # in torch, which bumps versions by itself
        # tell autograd of tensors that were written behind its back: by a kernel, numpy or a loop
        torch.autograd.graph.increment_version([args[i] for i in written if args[i] is not None])
        return result

    def by_loops(*args: Any) -> Any:
        """The compiled path, or what runs in its place where it does not take these arguments."""
        result = loops_of(compiled, name)(*args)  # type: ignore[arg-type]
        return unrecorded(cpu or reference, args) if result is NotImplemented else result

    def is_trusted(*args: Any) -> bool:
        return trial.trusts(args, insists=backend.is_triton_chosen())

    def unrecorded(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A kernel records no graph, so neither may what runs in its place."""
        with torch._C._AutoDispatchBelowAutograd():
            return run(*args)

    loops = None if compiled is None else by_loops
    _IMPLEMENTATIONS[name] = Implementations(reference, cpu, launch, trial, loops, compiled)
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastadv::{name}", fake or _no_output, lib=_LIBRARY)
    return overload


def _no_output(*args: Any) -> None:
    return None
