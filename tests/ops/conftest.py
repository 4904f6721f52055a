"""Counts kernel launches."""

import contextlib

import pytest


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
