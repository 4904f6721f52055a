"""Lowers the limit of long rows, so that small ones take their kernels."""

import pytest


@pytest.fixture
def short_l1_rows(monkeypatch):
    """Rows above 64 elements take the kernel for long rows, in chunks of 128."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l1 as kernels

    monkeypatch.setattr(kernels, "ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "LONG_ROW", (128, 4))


@pytest.fixture
def short_l2_rows(monkeypatch):
    """Rows above 64 elements take the kernels for long rows, in chunks of 128."""
    pytest.importorskip("triton", reason="needs triton, which is installed on Linux only")
    from fastadv.kernels.steps import l2 as kernels

    monkeypatch.setattr(kernels, "ROW_LIMIT", 64)
    monkeypatch.setattr(kernels, "CHUNK", 128)
    return kernels
