"""Choose the interpreter before triton is imported, round its bf16, name the backends."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from fastadv.ops import backend  # noqa: E402

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
