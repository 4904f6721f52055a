"""Counts what a piece of code dispatches: ops, kernel launches, bytes, reads by the host."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastadv.ops import backend

_OURS = "fastadv"
# allocate or rename, but run no kernel; views are recognised by their schema
_NO_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "set_",
    "lift_fresh",
    "_unsafe_view",
}
_WRITE_ONLY = {"copy_", "fill_", "zero_", "uniform_", "normal_", "random_", "bernoulli_"}
_INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}


class Tally(TorchDispatchMode):
    """While entered, counts dispatched ops; nested in no other Tally.

    ops: seen at depth 0, one of our ops being one. launches: Triton launches, and every ATen op
    that runs a kernel, also inside our ops. nbytes: tensors read and written by those ATen ops; of
    an interpreted Triton kernel the lanes it loads and stores; NaN after a launch on a device,
    where accesses cannot be seen. data_dependent: ops whose result or its shape the host must know.
    names: ops at depth 0 and, indented by "> ", inside ours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops = 0
        self.launches = 0
        self.triton_launches = 0
        self.nbytes = 0.0
        self.data_dependent = 0
        self.names: Counter[str] = Counter()
        self._inside_op = False
        self._inside_launch = False
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> "Tally":
        # at depth 0 only: __torch_dispatch__ enters again to see inside our ops
        if not self._inside_op:
            self._patches = contextlib.ExitStack()
            self._patches.enter_context(_watched_launches(self))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if not self._inside_op:
            self._patches.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._inside_launch:
            return func(*args, **kwargs)
        if func.namespace == _OURS:
            return self._enter_op(func, args, kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if not _is_view(func) and name not in _NO_KERNEL:
            self.ops += not self._inside_op
            self.names["> " * self._inside_op + name] += 1
            self.launches += 1
            self.nbytes += _bytes(func, name, args, kwargs, result)
        self.data_dependent += _is_data_dependent(func, name, args)
        return result

    def _enter_op(self, func: Any, args: tuple, kwargs: dict) -> Any:
        if self._inside_op:
            raise RuntimeError(f"{func} is called inside another fastadv op")
        self.ops += 1
        self.names[str(func._schema.name)] += 1
        key = "CUDA" if args[0].device.type == "cuda" else "CPU"
        self._inside_op = True
        try:
            with self:  # straight to the implementation, whose own ops are then seen
                keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
                return func.redispatch(keys, *args, **kwargs)
        finally:
            self._inside_op = False

    @contextlib.contextmanager
    def launch(self, *, visible: bool) -> Iterator[None]:
        """One Triton launch; what the interpreter dispatches to run it is not counted."""
        self.launches += 1
        self.triton_launches += 1
        if not visible:
            self.nbytes = float("nan")
        self._inside_launch = True
        try:
            yield
        finally:
            self._inside_launch = False


@contextlib.contextmanager
def _watched_launches(tally: Tally) -> Iterator[None]:
    """Report Triton launches, and the interpreter's loads and stores, to `tally`."""
    if not backend.triton_is_installed() or not (backend.interpreting() or _has_gpu()):
        yield
        return
    from triton.runtime import interpreter

    from fastadv.kernels import launching

    def accessed(original: Callable, mask_position: int) -> Callable:
        def call(self: Any, ptrs: Any, *args: Any) -> Any:
            lanes = int(args[mask_position - 1].data.sum())
            tally.nbytes += lanes * ptrs.get_element_ty().primitive_bitwidth // 8
            return original(self, ptrs, *args)

        return call

    builder = interpreter.InterpreterBuilder
    visible = backend.interpreting()
    with contextlib.ExitStack() as patches:
        patches.enter_context(launching.observed(lambda kernel: tally.launch(visible=visible)))
        for name, replacement in (
            ("create_masked_load", accessed(builder.create_masked_load, 1)),
            ("create_masked_store", accessed(builder.create_masked_store, 2)),
        ):
            patches.enter_context(mock.patch.object(builder, name, replacement))
        yield


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _is_view(func: Any) -> bool:
    aliases = [r.alias_info for r in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _is_data_dependent(func: Any, name: str, args: tuple) -> bool:
    if name in _INDEXING:  # a boolean mask is a nonzero() in disguise
        return any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in args[1]
        )
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags)


def _bytes(func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> int:
    """Bytes of the distinct tensors read plus those written."""
    written, read = {}, {}
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(value):
            if is_written:
                written[_identity(tensor)] = tensor
            if not is_written or not (name in _WRITE_ONLY or argument.kwarg_only):
                read[_identity(tensor)] = tensor
    for tensor in _tensors(result):
        written[_identity(tensor)] = tensor
    return sum(map(_size, read.values())) + sum(map(_size, written.values()))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _identity(tensor: torch.Tensor) -> tuple:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _size(tensor: torch.Tensor) -> int:
    """Bytes that are there: an expanded dimension is read from memory once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
