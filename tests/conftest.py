"""Choose the interpreter before triton is imported, round its bf16, name the backends."""

import os
import sys
from pathlib import Path

# before torch loads MKL: matrix products round alike on every CPU, or FAB's trajectories part from
# those that were stored on another one (two of six, Intel Xeon against AMD EPYC)
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

_ROOT = str(Path(__file__).parents[1])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)  # where `benchmarks` lies

from benchmarks.clamping.rules import RULES, clamp_rule  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastadv.ops import backend  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1" and backend.triton_is_installed():
    from triton.runtime import interpreter

    _convert = interpreter._convert_float

    def _convert_rounding_to_bf16(value, from_type, to_type, rounding_mode):
        """The interpreter truncates fp32 to bf16; hardware rounds to nearest, ties to even."""
        if to_type.is_bf16() and from_type.primitive_bitwidth == 32 and rounding_mode is None:
            value = np.ascontiguousarray(value)
            bits = value.view(np.uint32).astype(np.uint64)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            quiet = np.uint64(0x7FC0)  # a NaN stays one
            return np.where(np.isnan(value.view(np.float32)), quiet, rounded).astype(np.uint16)
        return _convert(value, from_type, to_type, rounding_mode)

    interpreter._convert_float = _convert_rounding_to_bf16

    _set_attr = interpreter._LangPatchScope.set_attr

    def _set_scalar_index(scope, target, name, value):
        """Triton 3.6 converts a (1,) array to an int, which numpy 2.4 refuses."""
        if name == "__index__":
            _set_attr(scope, target, name, lambda tensor: tensor.handle.data.item())
        else:
            _set_attr(scope, target, name, value)

    interpreter._LangPatchScope.set_attr = _set_scalar_index

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture(params=["reference", "triton"])
def either_backend(request: pytest.FixtureRequest):
    """Run the test once with the eager reference and once with the Triton kernel."""
    if request.param == "triton" and not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    with backend.use_backend(request.param):
        yield request.param


@pytest.fixture(params=RULES)
def clamp_rule_in_force(request: pytest.FixtureRequest):
    """Run the test under both rules that torch has had for a clamp's gradient at its bounds."""
    with clamp_rule(request.param):
        yield request.param
