"""Steps that are recorded and replayed on a CPU: a tape in the place of CUDA's graphs."""

import pytest
from graphs.tape import Tape

from fastadv.attacks.call import preparation


@pytest.fixture
def tapes(monkeypatch):
    """The backends that were made, in place of CUDA's."""
    made = []

    def backend_for(device, cuda_graph):
        if cuda_graph is False:
            return None
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(preparation, "backend_for", backend_for)
    yield made
    preparation.release()
