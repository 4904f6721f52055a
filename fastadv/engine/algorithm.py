"""What the engine asks of an attack: a state machine whose whole state is one row a slot."""

from collections.abc import Hashable
from typing import Any, Protocol

import torch

from fastadv.engine.work import Work


class Slots(Protocol):
    """What the engine asks of a state: the slot table, its length, rows of it, and what of it is
    kept on the host."""

    slots: torch.Tensor

    def __len__(self) -> int: ...

    def take(self, rows: torch.Tensor) -> "Slots":
        """A state of its own with `rows` of this one."""
        ...

    def put(self, rows: torch.Tensor, state: Any) -> None:
        """Write the slots of `state`, which `take` gave, into `rows`."""
        ...

    def accepts(self, state: Any) -> bool:
        """Whether `put` can write all of `state`: their tensors have the same shapes."""
        ...

    def look_again(self) -> None:
        """Let the next step look at its gradient as the first one after a load does."""
        ...

    def read(self) -> tuple[int, ...]:
        """The counts on the host that a step changes, and a replayed one must change likewise."""
        ...

    def write(self, values: tuple[int, ...]) -> None: ...


State = Any  # a `Slots`: each algorithm has a type of its own and gets back what it allocated


class SlotAlgorithm(Protocol):
    """An attack as a per-slot state machine: `step` advances every active slot by one step.

    steps: the most steps of a slot. items: work items a sample, its restarts or targets in the
    order in which they count. stride: steps between two looks at which slots are finished, which
    synchronise: a finished slot idles half of them; on a GPU up to four times as many, see
    `fastadv.engine.pace`. needs_last: an iterate reached by the last step is evaluated too.
    oracle: a `fastadv.oracle.gradient.Oracle`, which is above this floor.
    """

    oracle: Any
    steps: int
    items: int
    stride: int

    @property
    def needs_last(self) -> bool: ...

    def allocate(self, work: Work, batch: int) -> State:
        """State for `batch` slots of samples like that of `work`; contents undefined."""
        ...

    def start(
        self, state: State, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        """Load the item of number `items` of each row of `work` into `rows` (None: all slots)."""
        ...

    def step(self, state: State) -> None:
        """One step of every active slot: forward, loss head, backward, fused step."""
        ...

    def variant(self, state: State) -> Hashable | None:
        """Steps of one variant do the same to the same tensors: one can be recorded, and replayed
        for the others. None: the next step decides on the host, and is not to be recorded."""
        ...

    def go_on(self, state: State) -> None:
        """Attack slots further whose success the user's model has not confirmed: what would repeat
        the mistake is done by that model."""
        ...

    def renew(self, state: State) -> None:
        """Make a state that earlier samples have left fit to be loaded as a whole."""
        ...

    def evaluate(self, state: State) -> None:
        """Loss, prediction and success of the current iterates, without a gradient."""
        ...

    def outcome(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """(iterates, losses) that a finished slot stands for: the current ones, or the best."""
        ...
