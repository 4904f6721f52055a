"""Runs a test with each implementation of an op; counts kernel launches."""

import contextlib

import pytest

from fastadv.ops import backend


@pytest.fixture(params=["reference", "cpu", "triton"])
def implementation(request, device):
    """Run the test with the eager reference, the path that CPUs run by default, and the kernel."""
    if request.param == "triton" and not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    if request.param == "cpu" and device.type != "cpu":
        pytest.skip("needs tensors of a CPU")
    with backend.use_backend("auto" if request.param == "cpu" else request.param):
        yield request.param


@pytest.fixture
def count_launches():
    """A context whose value lists the kernels launched inside it."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels import launching

    @contextlib.contextmanager
    def counting():
        launches = []

        def noted(kernel):
            launches.append(kernel)
            return contextlib.nullcontext()

        with launching.observed(noted):
            yield launches

    return counting
