"""Who hears, while an attack runs, how far it is: told after every look at the slots."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import numpy as np

from fastadv.engine.ledger import Ledger


class Look(NamedTuple):
    """Of `samples` that are attacked `fallen` need no more steps; of those of the others `made` are
    made, the sum over these samples of the share of each."""

    samples: int
    fallen: int
    made: float

    @property
    def share(self) -> float:
        """Of the work, in [0, 1]."""
        return (self.fallen + self.made) / self.samples if self.samples else 1.0


Listener = Callable[[Look], None]
# not an argument: whoever evaluates an attack of the user's own has only its `run`
_LISTENER: ContextVar[Listener | None] = ContextVar("fastadv.engine.looks", default=None)


@contextlib.contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Inside, in this thread, attacks tell `listener`."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Listener | None:
    return _LISTENER.get()


def tell(
    ledger: Ledger,
    pending: np.ndarray,
    *,
    items: int,
    samples: np.ndarray | None = None,
    shares: np.ndarray | None = None,
) -> None:
    """Tell whoever listens: of each of the `pending` samples `items` items are to be entered;
    samples, shares: of the slots that are busy, how much of their item is done."""
    heard = _LISTENER.get()
    if heard is None:
        return
    made = ledger.entered.astype(np.float64)
    if samples is not None and shares is not None:
        np.add.at(made, samples, shares)
    fallen = ledger.has_fallen[pending]
    left = np.minimum(made[pending][~fallen] / items, 1.0)
    heard(Look(len(pending), int(fallen.sum()), float(left.sum())))


def as_part(number: int, parts: int) -> contextlib.AbstractContextManager[None]:
    """Inside, what is told is of the part `number` of `parts` that are made one after another."""
    outer = _LISTENER.get()
    if outer is None or parts == 1:
        return contextlib.nullcontext()

    def heard(look: Look) -> None:
        others = look.samples - look.fallen
        outer(look._replace(made=(number * others + look.made) / parts))

    return heard_by(heard)
