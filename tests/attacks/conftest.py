"""Steps that are recorded and replayed on a CPU: a tape in the place of CUDA's graphs."""

import pytest
from graphs.tape import Tape
from members import ATTACKS

from fastadv.attacks.attack import norms_of
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test of a member in a norm that it has not."""
    items[:] = [item for item in items if _has_its_norm(item)]


def _has_its_norm(item: pytest.Item) -> bool:
    told = getattr(item, "callspec", None)
    name, norm = ("", None) if told is None else map(told.params.get, ("name", "norm"))
    return name not in ATTACKS or norm is None or norm in norms_of(name)
