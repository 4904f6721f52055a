"""Counts kernel launches, compiled or interpreted."""

import contextlib

import pytest


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
