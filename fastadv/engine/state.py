"""The tensors of the slots: one row a slot, whatever sample is in it."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from fastadv.engine.work import Work
from fastadv.kernels import slots as columns
from fastadv.ops import layout


@dataclass
class SlotState:
    """State of B slots. x, x_adv, x_best, momentum, model_input: (B, ...); the rest starts with B.

    slots: (B, 5) int32, columns in `fastadv.kernels.slots`. `leaf` is what the model is fed.
    grad_logits is made when the first logits are seen. unprobed: rows were loaded whose first
    gradient has not been looked at.
    """

    x: torch.Tensor
    x_adv: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor | None
    reference: torch.Tensor | None
    eps: torch.Tensor
    step_size: torch.Tensor
    slots: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    correct: torch.Tensor
    best_loss: torch.Tensor | None
    x_best: torch.Tensor | None
    momentum: torch.Tensor | None
    model_input: torch.Tensor | None
    grad_logits: torch.Tensor | None = None
    unprobed: bool = True

    @classmethod
    def empty(
        cls, work: Work, batch: int, *, keep_best: bool, momentum: bool, model_input: bool
    ) -> "SlotState":
        x = work.x
        dtype = layout.compute_dtype(x)

        def rows(like: torch.Tensor | None) -> torch.Tensor | None:
            return None if like is None else like.new_empty((batch, *like.shape[1:]))

        def vector(kind: torch.dtype) -> torch.Tensor:
            return torch.empty(batch, dtype=kind, device=x.device)

        def image(kind: torch.dtype, wanted: bool) -> torch.Tensor | None:
            return layout.dense_like(work.x, batch, kind) if wanted else None

        return cls(
            x=layout.dense_like(work.x, batch),
            x_adv=layout.dense_like(work.x, batch),
            labels=vector(torch.int64),
            targets=rows(work.targets),
            reference=rows(work.reference),
            eps=vector(dtype),
            step_size=vector(dtype),
            slots=torch.empty(batch, columns.WIDTH, dtype=torch.int32, device=x.device),
            loss=torch.zeros(batch, dtype=dtype, device=x.device),
            prediction=vector(torch.int64),
            correct=vector(torch.bool),
            best_loss=torch.zeros(batch, dtype=dtype, device=x.device) if keep_best else None,
            x_best=image(x.dtype, keep_best),
            momentum=image(dtype, momentum),
            model_input=image(x.dtype, model_input),
        )

    def __len__(self) -> int:
        return len(self.x)

    @property
    def leaf(self) -> torch.Tensor:
        return self.x_adv if self.model_input is None else self.model_input

    def load(
        self, rows: torch.Tensor | None, work: Work, start: torch.Tensor, *, best: torch.Tensor
    ) -> None:
        """Put `work` and its start iterates into `rows`, or into all slots (None).

        best: what is kept as the best iterate until one has been evaluated.
        """
        self._put("x", rows, work.x)
        self._put("x_adv", rows, start)
        for name in ("labels", "targets", "reference", "eps", "step_size"):
            self._put(name, rows, getattr(work, name))
        if self.best_loss is not None:
            self._put("best_loss", rows, self.loss.new_full((len(work),), float("-inf")))
            self._put("x_best", rows, best)
        if self.momentum is not None:
            self._put("momentum", rows, torch.zeros_like(start, dtype=self.momentum.dtype))
        fresh = self.slots.new_zeros(len(work), columns.WIDTH)
        fresh[:, columns.SUCCESS_STEP] = -1
        fresh[:, columns.ACTIVE] = 1
        self._put("slots", rows, fresh)
        self.unprobed = True

    def _put(self, name: str, rows: torch.Tensor | None, values: torch.Tensor | None) -> None:
        buffer = getattr(self, name)
        if buffer is not None and values is not None:
            put_rows(buffer, rows, values)

    def take(self, rows: torch.Tensor) -> "SlotState":
        """A state of its own with `rows` of this one."""
        return take_fields(self, rows)


def put_rows(buffer: torch.Tensor, rows: torch.Tensor | None, values: torch.Tensor) -> None:
    """buffer[rows] = values; None: all rows."""
    if rows is None:
        buffer.copy_(values)
    else:
        buffer.index_copy_(0, rows, values)


_State = TypeVar("_State")


def take_fields(state: _State, rows: torch.Tensor) -> _State:
    """A copy of the dataclass `state` with `rows` of its tensors and of the states in it."""
    taken = {}
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, torch.Tensor):
            taken[field.name] = layout.gather_rows(value, rows)
        elif isinstance(value, SlotState):
            taken[field.name] = value.take(rows)
    return replace(state, **taken)  # type: ignore[type-var]
