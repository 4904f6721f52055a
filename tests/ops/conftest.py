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
def count_launches(monkeypatch):
    """A context whose value lists the kernels launched inside it."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    @contextlib.contextmanager
    def counting():
        launches = []
        with monkeypatch.context() as patch:
            for function in (InterpretedFunction, JITFunction):

                def run(self, *args, _run=function.run, **kwargs):
                    launches.append(self.fn.__name__)
                    return _run(self, *args, **kwargs)

                patch.setattr(function, "run", run)
            yield launches

    return counting
