"""What tests of recorded steps share."""

import pytest
from graphs.tape import Tape

from fastadv.training import graphed_step as recording


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """Every `graphed` records on it."""
    tape = Tape()
    monkeypatch.setattr(recording, "backend_for", lambda device, cuda_graph: tape)
    return tape
