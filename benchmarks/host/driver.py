"""Triton's own CUDA driver and launcher, on a libcuda that does nothing; tensors are the CPU's."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from fastadv.ops import backend, registry

_SOURCE = Path(__file__).with_name("libcuda_stub.c")


class StubDriver(CudaDriver):
    """Compiles for sm_90, loads and launches through Triton's C code; nothing runs on a device."""

    def __init__(self, library: Path) -> None:
        os.environ["TRITON_LIBCUDA_PATH"] = str(library.parent)
        # found by its soname when Triton's launcher asks for libcuda.so.1
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.library.stub_launches.restype = self.library.stub_last.restype = ctypes.c_long
        super().__init__()
        self.get_current_device = lambda: 0
        self.set_current_device = lambda device: None
        self.get_current_stream = lambda device: 0
        self.get_device_capability = lambda device: (9, 0)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launches(self) -> int:
        return self.library.stub_launches()

    def last_launch(self) -> list[int]:
        """Function, programs, threads a program and bytes of shared memory of the last launch."""
        return [self.library.stub_last(i) for i in range(4)]


def install() -> StubDriver:
    """Send launches of CPU tensors to a StubDriver, for the rest of this process.

    Raises RuntimeError without a C compiler, or if Triton interprets kernels here.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or backend.interpreting():
        raise RuntimeError("a stub driver needs a C compiler, and a process without interpreter")
    library = Path(tempfile.mkdtemp(prefix="fastadv-stub-")) / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler, *flags, "-o", str(library), str(_SOURCE)], check=True)
    installed = StubDriver(library)
    driver.set_active(installed)
    backend._TRITON_DEVICES = (*backend._TRITON_DEVICES, "cpu")
    for one in registry.implementations().values():
        one.trial.passed.add(torch.device("cpu"))  # or kernels that do nothing would not be trusted
    return installed
