"""What every launch, and every ahead-of-time case, asks of the compiler beside its warps."""

import functools
import os
from typing import Any

import triton

# Registers a thread, at most: two blocks of 8 warps fit a multiprocessor. Left alone, the ptxas of
# Triton 3.6.0, 3.8.0 and 3.9.0 keeps some kernels at 64 or below for the sake of occupancy, and
# spills (3, 15 and 20 of 528 compilations), although none needs a stack from 120 registers on. That
# of 3.7.1 spills nowhere, and takes up to 47 registers less (square_l1) where it is left alone.
REGISTERS = 128
_SPILLS = not triton.__version__.startswith("3.7.")


def options_for(backend: str) -> dict[str, Any]:
    """Of a target's backend, "cuda" or "hip", which has no option for registers; "" is the
    interpreter's. No fused multiply-add: the eager references round after the product."""
    capped = backend == "cuda" and _SPILLS
    return {"enable_fp_fusion": False, **({"maxnreg": REGISTERS} if capped else {})}


@functools.cache
def launch_options() -> dict[str, Any]:
    """Of the device that kernels run on."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return options_for("")
    return options_for(triton.runtime.driver.active.get_current_target().backend)
