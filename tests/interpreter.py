"""Triton's interpreter in tests: bf16 rounds as hardware does, and operations cost what they must.

`mend` changes triton.runtime.interpreter once a process, before any kernel runs.
"""

import dataclasses
import functools
import inspect
import math

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_convert = interpreter._convert_float
_set_attr = interpreter._LangPatchScope.set_attr
_np_dtype = functools.cache(interpreter._get_np_dtype)
_restore = interpreter._LangPatchScope.restore
_patch_lang = interpreter._patch_lang
_broadcast = TritonSemantic.broadcast_impl_value
_make_block_type = tl.block_type.__init__

_builtins: dict[object, list[tuple[str, object]]] = {}
_patched: set[object] = set()  # the language modules that the launch under way has patched


def mend() -> None:
    """Put the functions below in the place of the interpreter's own."""
    interpreter._convert_float = _convert_rounding_to_bf16
    interpreter._get_np_dtype = _np_dtype_known
    interpreter._patch_builtin = _patch_builtin_known
    interpreter._patch_lang = _patch_lang_once
    interpreter._LangPatchScope.set_attr = _set_scalar_index
    interpreter._LangPatchScope.restore = _restore_all
    # integers were added up in 64 bits too, for an assertion that no interpreter makes: debug=False
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    tl.block_type.__init__ = _init_block_type
    tl.tensor.__init__ = _init_tensor
    TritonSemantic.broadcast_impl_value = _broadcast_unless_equal


def _convert_rounding_to_bf16(value, from_type, to_type, rounding_mode):
    """The interpreter truncates fp32 to bf16; hardware rounds to nearest, ties to even."""
    if to_type.is_bf16() and from_type.primitive_bitwidth == 32 and rounding_mode is None:
        value = np.ascontiguousarray(value)
        bits = value.view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = np.uint64(0x7FC0)  # a NaN stays one
        return np.where(np.isnan(value.view(np.float32)), quiet, rounded).astype(np.uint16)
    return _convert(value, from_type, to_type, rounding_mode)


def _set_scalar_index(scope, target, name, value):
    """Triton 3.6 converts a (1,) array to an int, which numpy 2.4 refuses."""
    if name == "__index__":
        _set_attr(scope, target, name, lambda tensor: tensor.handle.data.item())
    else:
        _set_attr(scope, target, name, value)


def _np_dtype_known(dtype):
    """Asked at every operation; the interpreter makes a table of all types to answer."""
    scalar = dtype.element_ty if isinstance(dtype, tl.block_type) else dtype
    if isinstance(scalar, tl.pointer_type):  # which has no hash
        return np.dtype(np.uint64)
    return _np_dtype(scalar)


def _patch_builtin_known(package, builder, scope):
    """Patch the builtins of `package`, which are looked for once and not at every launch."""
    if package not in _builtins:
        members = inspect.getmembers(package)
        _builtins[package] = [(n, m) for n, m in members if tl.core.is_builtin(m)]
    for name, member in _builtins[package]:
        interpreter._patch_attr(package, name, member, builder, scope)


def _patch_lang_once(function):
    """Patch once a launch what a function sees of triton.language, not at every call of one.

    That was half of the interpreter's time.
    """
    seen = {m for m in function.__globals__.values() if m is tl or m is tl.core}
    if seen <= _patched:
        return interpreter._LangPatchScope()
    _patched.update(seen)
    return _patch_lang(function)


def _restore_all(scope):
    """The end of a launch: what device functions patched in it is patched again in the next."""
    _patched.clear()
    _restore(scope)


class _Shape:
    """What all tensors of one shape share: a tensor and its type made their own at every operation,
    which was more than half of the interpreter's time."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        known = tl.block_type.__new__(tl.block_type)
        _make_block_type(known, tl.float32, list(lengths))  # refuses what is no shape
        self.lengths, self.numel, self.text = known.shape, known.numel, str(known.shape)
        self.constants = tl.tuple([tl.constexpr(length) for length in lengths])
        self.size = tl.constexpr(math.prod(lengths))
        _known[id(self.lengths)] = self


_known: dict[int, _Shape] = {}  # by the tuple that types of this shape hold: it lives as long
_shape_of = functools.cache(_Shape)
_NO_SHAPE = tl.tuple([])
_ONE = tl.constexpr(1)


def _init_block_type(block_type, element_ty, shape):
    known = _known.get(id(shape)) or _shape_of(tuple(tl.core._unwrap_shape(shape)))
    block_type.element_ty, block_type.known = element_ty, known
    block_type.shape, block_type.numel = known.lengths, known.numel
    block_type.name = f"<{known.text}, {element_ty}>"


def _init_tensor(tensor, handle, type):
    tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
    if type.is_block():
        tensor.shape, tensor.numel = type.known.constants, type.known.size
    else:
        tensor.shape, tensor.numel = _NO_SHAPE, _ONE


def _broadcast_unless_equal(semantic, lhs, rhs):
    if lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape:
        return lhs, rhs
    return _broadcast(semantic, lhs, rhs)
