"""Choose Triton's interpreter before triton is imported, and name the backends."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# before torch loads MKL: matrix products round alike on every CPU, or FAB's trajectories part from
# those that were stored on another one (two of six, Intel Xeon against AMD EPYC)
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import pytest  # noqa: E402
import torch  # noqa: E402

_ROOT = str(Path(__file__).parents[1])
if _ROOT not in sys.path:
    sys.path.append(_ROOT)  # where `benchmarks` lies

from benchmarks.clamping.rules import RULES, clamp_rule  # noqa: E402

# "sm_90", or "sm_90:7" for warps in a random order: kernels of CPU tensors are compiled for that
# architecture and their PTX is executed; more after a "+": ptx/reporting.py
EMULATED = os.environ.get("FASTADV_EMULATE")
if EMULATED and os.environ.get("TRITON_INTERPRET", "0") != "0":
    raise pytest.UsageError("set FASTADV_EMULATE or TRITON_INTERPRET, not both")

if not EMULATED and not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastadv.ops import backend, compiled  # noqa: E402

if os.environ.get("TRITON_INTERPRET") == "1" and backend.triton_is_installed():
    import interpreter

    interpreter.mend()

if EMULATED:
    from ptx import driver

    driver.install(EMULATED.split("+")[0])

DEVICE = "cuda" if torch.cuda.is_available() and not EMULATED else "cpu"


def pytest_configure(config: pytest.Config) -> None:
    if EMULATED:
        from ptx import reporting

        config.pluginmanager.register(reporting.Reporting(EMULATED.split("+")[1:]))


# minutes, in processes of their own: begun first, by one worker, of whose rest others then take
_LONGEST = ("tests/kernels/", "tests/ptx/test_kernels_as_compiled.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@contextlib.contextmanager
def running(implementation: str) -> Iterator[None]:
    """Ops run "reference", "cpu" (what CPUs run without numba), "compiled" or "triton"; skips what
    cannot run here."""
    if implementation == "triton" and not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    if implementation in ("cpu", "compiled") and DEVICE != "cpu":
        pytest.skip("needs tensors of a CPU")
    if implementation == "compiled" and compiled.why_not():
        pytest.skip(f"needs compiled loops: {compiled.why_not()}")
    is_auto = implementation in ("cpu", "compiled")
    with contextlib.ExitStack() as stack:
        stack.enter_context(backend.use_backend("auto" if is_auto else implementation))
        if implementation == "cpu":
            stack.enter_context(compiled.hidden())
        yield


@pytest.fixture(params=["reference", "compiled", "triton"])
def either_backend(request: pytest.FixtureRequest):
    """Run the test with the eager reference, with compiled loops and with the Triton kernel."""
    with running(request.param):
        yield request.param


@pytest.fixture(params=["reference", "cpu", "compiled", "triton"])
def implementation(request: pytest.FixtureRequest):
    """Run the test with all that an op may run: also with the path of CPUs without numba."""
    with running(request.param):
        yield request.param


@pytest.fixture(params=RULES)
def clamp_rule_in_force(request: pytest.FixtureRequest):
    """Run the test under both rules that torch has had for a clamp's gradient at its bounds."""
    with clamp_rule(request.param):
        yield request.param
