"""Compiles loops by numba to object files: imported where one is not on the disk yet."""

from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.extending import lower_builtin, overload, register_jitable, type_callable

from fastadv.ops import loop_math, loops

_OPTIONS: Any = dict(
    nogil=True,
    error_model="numpy",
    boundscheck=False,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)
_KNOWN_SYMBOLS = {"exp", "expf", "log", "logf", "sqrt", "sqrtf", "memcpy", "memmove", "memset"}
_known: set[Callable[..., Any]] = set()


@type_callable(loops.pointer)
def _type_of_pointer(context: Any) -> Any:
    def typer(address: Any, like: Any) -> Any:
        return types.CPointer(like.instance_type if isinstance(like, types.NumberClass) else like)

    return typer


@lower_builtin(loops.pointer, types.Integer, types.Any)
def _lower_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


@overload(loop_math.exp, jit_options=_OPTIONS, strict=False)
def _exp(x: Any) -> Any:
    return loop_math.exp_of_float32 if x == types.float32 else loop_math.exp_of_float64


def _check_symbols(library: Any) -> None:
    """RuntimeError where the code calls what is in no library of every process, which would end the
    process as it is loaded: as numba's own helpers, and Intel's vectors of functions."""
    for function in library._final_module.functions:
        if function.is_declaration and not function.name.startswith("llvm."):
            if function.name not in _KNOWN_SYMBOLS:
                raise RuntimeError(f"a loop calls {function.name}")


def compiled(function: Callable[..., None], parameters: tuple[str, ...]) -> tuple[str, bytes]:
    """(symbol, object file) of a loop."""
    for one in loops.INNER:
        if one not in _known:
            register_jitable(**_OPTIONS)(one)
            _known.add(one)
    njit: Any = numba.njit
    dispatcher = njit(**_OPTIONS)(function)
    signature = tuple(getattr(types, one) for one in parameters)
    dispatcher.targetctx.refresh()
    dispatcher.typingctx.refresh()
    result = dispatcher._compiler.compile(signature, types.void)
    _check_symbols(result.library)
    _, kind, (data, _) = result.library.serialize_using_object_code()
    assert kind == "object"
    return result.fndesc.llvm_func_name, data
