"""What every launch, and every ahead-of-time case, asks of the compiler beside its warps."""

import functools
import os
from typing import Any

import triton

# Registers a thread, at most, on NVIDIA: two blocks of 8 warps fit a multiprocessor. Left alone,
# the ptxas of Triton 3.8 keeps some kernels at 64 or below for the sake of occupancy and spills (15
# of 528 compilations), although all do without a stack from 120 registers on, most from 72.
REGISTERS = 128


def options_for(backend: str) -> dict[str, Any]:
    """Of a target's backend, "cuda" or "hip", which has no option for registers; "" is the
    interpreter's. No fused multiply-add: the eager references round after the product."""
    registers = {"maxnreg": REGISTERS} if backend == "cuda" else {}
    return {"enable_fp_fusion": False, **registers}


@functools.cache
def launch_options() -> dict[str, Any]:
    """Of the device that kernels run on."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return options_for("")
    return options_for(triton.runtime.driver.active.get_current_target().backend)
