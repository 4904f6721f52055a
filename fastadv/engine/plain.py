"""The plain loop: every sample takes every step; nothing is read back inside the loop."""

from collections.abc import Callable

import numpy as np
import torch

from fastadv.engine import looks
from fastadv.engine.algorithm import SlotAlgorithm, State
from fastadv.engine.ledger import Ledger
from fastadv.engine.stepping import Stepper
from fastadv.engine.work import Work
from fastadv.kernels import slots as columns
from fastadv.ops import doubles

# (samples, iterates) -> which of them fool the user's own model, (k,) bool on the host
Confirm = Callable[[np.ndarray, torch.Tensor], np.ndarray]
# (iterates, faults, rows of them that count, their samples) -> whether to look at further
# gradients; may raise
Inspect = Callable[[torch.Tensor, np.ndarray, np.ndarray, np.ndarray], bool]


def run_plain(
    stepper: Stepper,
    work: Work,
    pending: np.ndarray,
    ledger: Ledger,
    batch_size: int,
    confirm: Confirm | None,
    inspect: Inspect | None,
) -> None:
    """Attack the `pending` samples, `batch_size` at a time, and enter them in `ledger`.

    confirm: asked about every success, None where the user's own model has seen it. Those that it
    denies are attacked further. inspect: shown what the gradients were like, None where nobody
    wants to know.
    """
    algorithm = stepper.algorithm
    for first in range(0, len(pending), batch_size):
        for item in range(algorithm.items):
            chunk = pending[first : first + batch_size]
            chunk = chunk[~ledger.are_settled(chunk, item)]
            if len(chunk) == 0:
                continue
            state = run_chunk(stepper, work, chunk, item, look=inspect is not None)
            if confirm is not None:
                _take_further(algorithm, state, chunk, confirm)
            if algorithm.needs_last:
                algorithm.evaluate(state)
            iterates, losses = algorithm.outcome(state)
            flags, host_losses = read(state.slots, losses)
            if inspect is not None:
                inspect(iterates, flags[:, columns.FAULT], np.arange(len(chunk)), chunk)
            ledger.record(chunk, np.full(len(chunk), item), flags, host_losses, iterates)
            looks.tell(ledger, pending, items=algorithm.items)


def run_chunk(
    stepper: Stepper,
    work: Work,
    samples: np.ndarray,
    item: int,
    *,
    look: bool,
    is_final: bool = False,
) -> State:
    """All steps of one item of `samples`; no host synchronisation. look: at the last gradient, as
    at the first, which may have been taken before any entry had come to a bound. is_final: no row
    of the state will be written once more."""
    device = work.x.device
    whole = len(samples) == len(work)  # ascending and distinct: nothing to gather
    chunk = work if whole else work.take(torch.as_tensor(samples, device=device))
    items = torch.full((len(samples),), item, dtype=torch.int32, device=device)
    if is_final:
        state = stepper.loaded(chunk, items)
    else:
        state = stepper.allocate(chunk, len(samples))
        stepper.algorithm.start(state, None, chunk, items)
    stepper.advance(state, stepper.algorithm.steps, look=look)
    return state


def _take_further(
    algorithm: SlotAlgorithm, state: State, samples: np.ndarray, confirm: Confirm
) -> None:
    """Until every success is confirmed, or seen by the user's own model, or all steps are made."""
    rows, part = np.arange(len(samples)), state
    while len(rows):
        iterates, losses = algorithm.outcome(part)
        flags, _ = read(part.slots, losses)
        claimed = np.flatnonzero(flags[:, columns.SUCCESS_STEP] >= 0)
        if len(claimed) == 0:
            return
        denied = claimed[~confirm(samples[rows[claimed]], _rows(iterates, claimed))]
        part, rows = part.take(_index(denied, iterates)), rows[denied]
        if len(rows) == 0:
            return
        flags = go_on(algorithm, part)
        searched = np.flatnonzero(flags[:, columns.SUCCESS_STEP] < 0)
        for _ in range(
            algorithm.steps - flags[searched, columns.STEP].min(initial=algorithm.steps)
        ):
            algorithm.step(part)
        state.put(_index(rows, iterates), part)
        part, rows = part.take(_index(searched, iterates)), rows[searched]


def _index(rows: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(rows, device=like.device)


def _rows(tensor: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    return tensor.index_select(0, _index(rows, tensor))


def go_on(algorithm: SlotAlgorithm, state: State) -> np.ndarray:
    """The flags of slots that the user's model had denied, once they are under way again."""
    algorithm.go_on(state)
    return read(state.slots, algorithm.outcome(state)[1])[0]


def read(slots: torch.Tensor, losses: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(flags, losses) on the host, in one copy (two from devices without float64): this
    synchronises."""
    if not doubles.has_float64(losses):
        return slots.cpu().numpy(), losses.cpu().numpy().astype(np.float64)
    both = torch.cat([slots.double(), losses.double()[:, None]], 1).cpu().numpy()
    return both[:, :-1].astype(np.int32), both[:, -1]
