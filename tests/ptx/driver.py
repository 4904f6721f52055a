"""All of it as Triton's driver: launches of CPU tensors take the real JIT path and are executed.

Specialisation on alignment, on ones and on None, the compiler's passes and the arguments' order are
Triton's own; only ptxas and the device are missing.
"""

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import GPUDriver
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from fastadv.ops import backend

from . import machine
from .memory import EmulationError, GlobalMemory

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Launch:
    """What one launch was and took.

    emulated: the choice that it ran under. constants, divisible: the arguments that the kernel was
    specialised on, as their values or as multiples of 16.
    """

    emulated: str
    kernel: str
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    grid: int
    instructions: int
    same_values: int
    seconds: float


launches: list[Launch] = []  # of this process, in order


class _Emulated:
    """What launches are executed as: the choice, its architecture, its order of warps."""

    choice: str
    arch: int
    order: int | None


def install(choice: str) -> None:
    """Execute every launch of this process. choice: "sm_90", or "sm_90:7": warps in the random
    order of seed 7. Raises ValueError for another architecture."""
    _choose(choice)
    CUDABackend.add_stages = _stages_up_to_ptx
    CUDABackend.hash = lambda self: f"executed-{self.target.arch}"  # a cache entry holds no cubin
    driver.set_active(EmulatedDriver())
    backend.interpreting = lambda: True  # CPU tensors may go to kernels


@contextlib.contextmanager
def emulating(choice: str) -> Iterator[None]:
    """Execute launches as another choice says, after `install`."""
    before = _Emulated.choice
    _choose(choice)
    try:
        yield
    finally:
        _choose(before)


def _choose(choice: str) -> None:
    name, _, seed = choice.partition(":")
    if name not in ARCHITECTURES:
        raise ValueError(f"an architecture must be one of {ARCHITECTURES}; got {choice!r}")
    _Emulated.choice, _Emulated.arch = choice, int(name.removeprefix("sm_"))
    _Emulated.order = int(seed) if seed else None


_add_stages = CUDABackend.add_stages


def _stages_up_to_ptx(self, stages, options, *language) -> None:
    """The PTX takes the place of ptxas' binary, so that the launcher is given it."""
    _add_stages(self, stages, options, *language)
    stages["cubin"] = lambda ptx, metadata: ptx.encode()


class EmulatedDriver(GPUDriver):
    """One device an architecture, whose number it bears; its binaries are PTX."""

    def __init__(self) -> None:
        self.utils = _Utilities
        self.launcher_cls = _Launcher
        self.get_current_device = lambda: _Emulated.arch
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: divmod(_Emulated.arch, 10)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", _Emulated.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu

    def get_benchmarker(self):
        raise NotImplementedError("nothing here is a speed on a device")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("no C launcher is built")

    @staticmethod
    def is_active() -> bool:
        return True


class _Utilities:
    @staticmethod
    def load_binary(name: str, kernel: bytes, shared: int, device: int):
        """(module, function, registers, spills, most threads), as Triton wants them."""
        return None, machine.load(bytes(kernel).decode()), 0, 0, 1024

    @staticmethod
    def get_device_properties(device: int) -> dict[str, int]:
        sizes = dict(max_shared_mem=99 * 1024, max_num_regs=65536, multiprocessor_count=132)
        return sizes | dict(warpSize=32, sm_clock_rate=1, mem_clock_rate=1, mem_bus_width=1)


class _Launcher:
    """Runs one specialisation: Triton makes one and calls it at every launch."""

    def __init__(self, src, metadata) -> None:
        self.names = list(src.signature)
        self.types = list(src.signature.values())
        self.kernel, self.shared_bytes = metadata.name, metadata.shared
        named = {
            src.fn.arg_names.index(k) if isinstance(k, str) else k[0]: v
            for k, v in src.constants.items()
        }
        self.constants = {src.fn.arg_names[i]: value for i, value in named.items()}
        self.divisible = tuple(src.fn.arg_names[i] for (i, *_), known in src.attrs.items() if known)

    def __call__(
        self, x, y, z, stream, code, packed, description, enter, leave, *arguments
    ) -> None:
        if (y, z) != (1, 1):
            raise EmulationError(f"a grid of ({x}, {y}, {z}): only the first may exceed 1")
        began = time.process_time()
        if enter is not None:
            enter(description)
        races = machine.race_log(code, x)
        memory = GlobalMemory(races)
        given = [
            _bits(value, kind, memory)
            for value, kind in zip(arguments, self.types, strict=True)
            if kind != "constexpr"
        ]
        names = [name for name, _ in code.program.parameters]
        given += [0] * (len(names) - len(given))  # scratch memory that no kernel of ours asks for
        counts = machine.launch(
            code,
            x,
            dict(zip(names, given, strict=True)),
            memory,
            shared_bytes=self.shared_bytes,
            order=_Emulated.order,
        )
        if leave is not None:
            leave(description)
        launches.append(
            Launch(
                _Emulated.choice,
                self.kernel,
                self.constants,
                self.divisible,
                x,
                counts.instructions,
                counts.same_values,
                time.process_time() - began,
            )
        )


def _bits(value, kind: str, memory: GlobalMemory) -> int:
    """An argument as the bits of its parameter."""
    if isinstance(value, torch.Tensor):
        return _mapped(value, memory)
    if value is None:
        return 0
    if kind in ("fp64", "fp32"):
        wide = kind == "fp64"
        return int.from_bytes(struct.pack("<d" if wide else "<f", float(value)), "little")
    if kind[0] not in "iu" or not kind[1:].isdigit():
        raise EmulationError(f"an argument of type {kind}")
    return int(value) & ((1 << max(8, int(kind[1:]))) - 1)


def _mapped(tensor: torch.Tensor, memory: GlobalMemory) -> int:
    storage = tensor.untyped_storage()
    if tensor.numel() == 0:
        return 0
    bytes_of = torch.tensor([], dtype=torch.uint8).set_(storage).numpy()
    item = tensor.element_size()
    start = tensor.storage_offset() * item
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return memory.map(np.asarray(bytes_of), start, start + (last + 1) * item, item)
