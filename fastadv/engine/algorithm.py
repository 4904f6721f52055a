"""What the engine asks of an attack: a state machine whose whole state is one row a slot."""

from typing import Any, Protocol

import torch

from fastadv.engine.work import Work


class Slots(Protocol):
    """What the engine asks of a state: the slot table, its length, and rows of it."""

    slots: torch.Tensor

    def __len__(self) -> int: ...

    def take(self, rows: torch.Tensor) -> "Slots":
        """A state of its own with `rows` of this one."""
        ...


State = Any  # a `Slots`: each algorithm has a type of its own and gets back what it allocated


class SlotAlgorithm(Protocol):
    """An attack as a per-slot state machine: `step` advances every active slot by one step.

    steps: the most steps of a slot. items: work items a sample, its restarts or targets in the
    order in which they count. stride: steps between two looks at which slots are finished, which
    synchronise: a finished slot idles half of them. needs_last: an iterate reached by the last step
    is evaluated too.
    """

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

    def evaluate(self, state: State) -> None:
        """Loss, prediction and success of the current iterates, without a gradient."""
        ...

    def outcome(self, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """(iterates, losses) that a finished slot stands for: the current ones, or the best."""
        ...
