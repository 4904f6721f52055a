"""One thread, and a spy on the second look that finds a clamp."""

import pytest
import torch

from fastadv.oracle import clamping as vocabulary


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def looks(monkeypatch):
    """What every second look found."""
    found = []
    look = vocabulary.lost_at_bounds

    def spied(*given):
        found.append(look(*given))
        return found[-1]

    monkeypatch.setattr(vocabulary, "lost_at_bounds", spied)
    return found
