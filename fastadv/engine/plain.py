"""The plain loop: every sample takes every step; nothing is read back inside the loop."""

import numpy as np
import torch

from fastadv.engine.algorithm import SlotAlgorithm, State
from fastadv.engine.ledger import Ledger
from fastadv.engine.work import Work


def run_plain(
    algorithm: SlotAlgorithm, work: Work, pending: np.ndarray, ledger: Ledger, batch_size: int
) -> None:
    """Attack the `pending` samples, `batch_size` at a time, and enter them in `ledger`."""
    for first in range(0, len(pending), batch_size):
        chunk = pending[first : first + batch_size]
        for item in range(algorithm.items):
            chunk = chunk[[not ledger.is_settled(sample, item) for sample in chunk]]
            if len(chunk) == 0:
                break
            state = run_chunk(algorithm, work, chunk, item)
            if algorithm.needs_last:
                algorithm.evaluate(state)
            iterates, losses = algorithm.outcome(state)
            flags, host_losses = read(state.slots, losses)
            ledger.record(chunk, np.full(len(chunk), item), flags, host_losses, iterates)


def run_chunk(algorithm: SlotAlgorithm, work: Work, samples: np.ndarray, item: int) -> State:
    """All steps of one item of `samples`; no host synchronisation."""
    device = work.x.device
    whole = len(samples) == len(work)  # ascending and distinct: nothing to gather
    chunk = work if whole else work.take(torch.as_tensor(samples, device=device))
    state = algorithm.allocate(chunk, len(samples))
    items = torch.full((len(samples),), item, dtype=torch.int32, device=device)
    algorithm.start(state, None, chunk, items)
    for _ in range(algorithm.steps):
        algorithm.step(state)
    return state


def read(slots: torch.Tensor, losses: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(flags, losses) on the host, in one copy: this synchronises."""
    both = torch.cat([slots.double(), losses.double()[:, None]], 1).cpu().numpy()
    return both[:, :-1].astype(np.int32), both[:, -1]
