"""Pickled dictionaries of numpy arrays, read without giving the pickle anything to run."""

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_INTEGER_CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


class _StandIn:
    """What a global of the pickle resolves to: callable on our terms, without state to overwrite.

    numpy's own objects are not handed out: the state of a real dtype carries flags that decide
    whether raw bytes are taken for object pointers, and `_codecs.encode` reaches every codec.
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]):
        self._build = build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a global")


class _Dtype:
    """An integer dtype as pickled: numpy.dtype(code, align, copy), then its state."""

    def __init__(self, code: str | bytes, align: Any = False, copy: Any = True):
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"
        if self.code not in _INTEGER_CODES:
            raise pickle.UnpicklingError(
                f"it holds an array of dtype {code!r}, and only integers are admitted"
            )

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("|", "<", ">", "="):
            raise pickle.UnpicklingError(f"it holds a dtype of byte order {order!r}")
        self.order = order

    def decode(self, raw: bytes) -> np.ndarray:
        return np.frombuffer(raw, dtype=np.dtype(self.order + self.code))


class _Array:
    """An array as pickled: _reconstruct(ndarray, (0,), b"b"), then its state."""

    def __init__(self, subtype: Any, shape: Any, code: Any):
        if subtype is not _NDARRAY:
            raise pickle.UnpicklingError("it holds an array of a subclass of numpy.ndarray")
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if type(dtype) is not _Dtype or type(raw) is not bytes:
            raise pickle.UnpicklingError("it holds an array whose state is not a dtype and bytes")
        flat = dtype.decode(raw)
        if math.prod(shape) != flat.size or any(size < 0 for size in shape):
            raise pickle.UnpicklingError(
                f"it holds an array of shape {shape} and {flat.size} values"
            )
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _not_callable(*_: Any) -> None:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


def _scalar(dtype: _Dtype, raw: bytes) -> int:
    return int(dtype.decode(raw).item())


def _latin1(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 written by Python 3 store bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes with {encoding!r}, and only latin1 is admitted")
    return text.encode("latin1")


_NDARRAY = _StandIn(_not_callable)
_GLOBALS = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _StandIn(_Dtype),
    ("_codecs", "encode"): _StandIn(_latin1),
    # numpy 1 and Python 2 write the first module, numpy 2 the second
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_Array),
    ("numpy._core.multiarray", "_reconstruct"): _StandIn(_Array),
    ("numpy.core.multiarray", "scalar"): _StandIn(_scalar),
    ("numpy._core.multiarray", "scalar"): _StandIn(_scalar),
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _GLOBALS[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is not part of a numpy array, "
                "and nothing of it was run"
            ) from None


def read_array_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A pickled dictionary of integer arrays and plain Python values; no code of the file is run.

    Keys that are bytes (Python 2) come back as str, values that are arrays as read-only ndarrays,
    numpy integers as int. Raises ValueError if the file is truncated, has trailing bytes, asks for
    any global but those of numpy arrays, or is not a dictionary.
    """
    path = Path(path)
    with path.open("rb") as file:
        try:
            tree = _ArrayUnpickler(file, encoding="bytes").load()
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ValueError(
                f"{path} is not a pickle of numpy arrays: {str(error) or type(error).__name__}. "
                "Download it again, and do not open this copy with pickle."
            ) from error
        trailing = len(file.read())
    if trailing:
        raise ValueError(
            f"{path} has {trailing} trailing bytes after its pickle. Download it again."
        )
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold a pickled dictionary; got {type(tree).__name__}.")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): (
            value.value if isinstance(value, _Array) else value
        )
        for key, value in tree.items()
    }
