"""What the engine asks of an attack: a state machine whose whole state is one row a slot."""

from typing import Protocol

import torch

from fastadv.engine.state import SlotState
from fastadv.engine.work import Work


class SlotAlgorithm(Protocol):
    """An attack as a per-slot state machine: `step` advances every active slot by one step.

    steps: the number of steps of a slot. restarts: work items a sample. ranks_restarts: the loss of
    the last iterate is needed, to choose among restarts or for the best iterate.
    """

    steps: int
    restarts: int

    @property
    def ranks_restarts(self) -> bool: ...

    def allocate(self, work: Work, batch: int) -> SlotState:
        """State for `batch` slots of samples like those of `work`; contents undefined."""
        ...

    def start(
        self, state: SlotState, rows: torch.Tensor | None, work: Work, restarts: torch.Tensor
    ) -> None:
        """Load one item a row of `work` into `rows` (None: all slots) at its random start."""
        ...

    def step(self, state: SlotState) -> None:
        """One step of every active slot: forward, loss head, backward, fused step."""
        ...

    def evaluate(self, state: SlotState) -> None:
        """Loss, prediction and success of the current iterates, without a gradient."""
        ...

    def outcome(self, state: SlotState) -> tuple[torch.Tensor, torch.Tensor]:
        """(iterates, losses) that a finished slot stands for: the current ones, or the best."""
        ...
