"""The machine code of loops: on disk, so that a new process compiles nothing, and in memory.

A file is named by a hash over all that its code is made of: the loop and its types; the sources of
all ops and of the constants that they share with kernels, whatever a loop inlines; the versions of
Python, numba and llvmlite, and numba's settings; the processor. Nothing is read under another name,
and a file whose contents are not those that were written is compiled anew. They lie in
FASTADV_CACHE_DIR, else in $XDG_CACHE_HOME/fastadv, else in ~/.cache/fastadv; where nothing can be
written there, each process compiles what it calls.
"""

import ctypes
import functools
import hashlib
import importlib
import importlib.metadata
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fastadv import kernels

_DIGEST = hashlib.sha256().digest_size
_C_TYPES = {"int64": ctypes.c_int64, "float32": ctypes.c_float, "float64": ctypes.c_double}
# numba gives each function a place for its result, and one for an exception that it never raises
_UNREAD = ctypes.create_string_buffer(64)
_LOCK = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_LOCK=threading.Lock()))
_ENGINES: list[Any] = []  # which own the code that is in memory


class Code(NamedTuple):
    """An object file, and the symbol of the loop in it."""

    symbol: str
    data: bytes

    def packed(self) -> bytes:
        body = self.symbol.encode() + b"\0" + self.data
        return hashlib.sha256(body).digest() + body

    @classmethod
    def unpacked(cls, stored: bytes) -> "Code | None":
        """None unless it is whole."""
        digest, body = stored[:_DIGEST], stored[_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        symbol, _, data = body.partition(b"\0")
        return cls(symbol.decode(), data)


def folder() -> Path:
    """Where compiled loops lie; RuntimeError if nobody can say where the home is."""
    if chosen := os.environ.get("FASTADV_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastadv"


def loaded(name: str, function: Callable[..., None], types: tuple[str, ...]) -> Callable[..., Any]:
    """The loop `function`, whose parameters are of `types` ("int64", "float32", "float64")."""
    with _LOCK:  # neither numba's compiler nor LLVM's linker takes two threads at once
        code = _found(name, types)
        if code is None:
            compiler = importlib.import_module("fastadv.ops.loop_compiler")  # it imports numba
            code = Code(*compiler.compiled(function, types))
            _keep(code, name, types)
        at = _address_of(code)
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *(_C_TYPES[one] for one in types)
    )
    unread = ctypes.addressof(_UNREAD)
    return functools.partial(prototype(at), unread, unread)


def _address_of(code: Code) -> int:
    """Where the loop lies once its object file is in memory."""
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(
        binding.parse_assembly(""), _target().create_target_machine(jit=True)
    )
    engine.add_object_file(binding.ObjectFileRef.from_data(code.data))
    engine.finalize_object()
    _ENGINES.append(engine)
    return engine.get_function_address(code.symbol)


@functools.cache
def _target() -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple()


@functools.cache
def _made_of() -> tuple[str, ...]:
    """What the code of every loop depends on."""
    from llvmlite import binding

    sources = hashlib.sha256()
    for root in (Path(__file__).parent, Path(kernels.__path__[0])):
        for path in sorted(root.rglob("*.py")):
            sources.update(repr(path.relative_to(root).parts).encode() + path.read_bytes())
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("NUMBA_"))
    versions = (importlib.metadata.version(one) for one in ("numba", "llvmlite"))
    processor = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    return (
        sources.hexdigest(),
        sys.version,
        *versions,
        *processor,
        binding.get_process_triple(),
        *settings,
    )


def _path(name: str, types: tuple[str, ...]) -> Path:
    key = repr((name, types, _made_of()))
    return folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _found(name: str, types: tuple[str, ...]) -> Code | None:
    try:
        return Code.unpacked(_path(name, types).read_bytes())
    except Exception:  # a cache that is missing or broken costs time only
        return None


def _keep(code: Code, name: str, types: tuple[str, ...]) -> None:
    try:
        path = _path(name, types)
        path.parent.mkdir(parents=True, exist_ok=True)
        number, draft = tempfile.mkstemp(dir=path.parent)
        try:
            with open(number, "wb") as file:
                file.write(code.packed())
            os.replace(draft, path)  # whole, or not there: other processes read meanwhile
        except BaseException:
            os.unlink(draft)
            raise
    except Exception:  # no space, no permission, no home
        return
