"""The tensors of the slots: one row a slot, whatever sample is in it."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Protocol, TypeVar

import torch

from fastadv.engine.work import Work
from fastadv.kernels import slots as columns
from fastadv.ops import layout

_State = TypeVar("_State")


@dataclass
class SlotState:
    """State of B slots. x, x_adv, x_best, momentum, model_input: (B, ...); the rest starts with B.

    slots: (B, 5) int32, columns in `fastadv.kernels.slots`. `leaf` is what the model is fed.
    grad_logits is made when the first logits are seen. unprobed: rows were loaded whose first
    gradient has not been looked at. y, extra: as in `Work`. box: where elements may go, (B, 2, D)
    or (B, 3, D) as in `fastadv.ops.steps.box`, None where all are alike. sparsity: (B,), the share
    of the D elements that an L1 step moves, where it is not alike in all samples.
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
    y: torch.Tensor | None = None
    extra: tuple[torch.Tensor, ...] = ()
    box: torch.Tensor | None = None
    sparsity: torch.Tensor | None = None

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
            y=rows(work.y),
            box=None if work.region is None else work.region.empty_box(x, batch),
            extra=tuple(layout.dense_like(tensor, batch) for tensor in work.extra),
        )

    @classmethod
    def sharing(
        cls, work: Work, start: torch.Tensor, *, momentum: bool, model_input: bool
    ) -> "SlotState":
        """The slots of all of `work` at their start iterates, without best ones. What steps only
        read is work's own: no other sample may be put into these slots."""
        x, n = work.x, len(work)
        if layout.dense_format(x) is None:  # which every step would make dense again
            x = layout.dense_like(x, n).copy_(x)
        dtype = layout.compute_dtype(x)
        return cls(
            x=x,
            x_adv=layout.dense_like(x, n).copy_(start),
            labels=work.labels,
            targets=work.targets,
            reference=work.reference,
            eps=work.eps,
            step_size=work.step_size,
            slots=_fresh(n, x),
            loss=torch.zeros(n, dtype=dtype, device=x.device),
            prediction=torch.empty_like(work.labels),
            correct=torch.empty_like(work.labels, dtype=torch.bool),
            best_loss=None,
            x_best=None,
            momentum=torch.zeros_like(x, dtype=dtype) if momentum else None,
            model_input=layout.dense_like(x, n) if model_input else None,
            y=work.y,
            box=None if work.region is None else work.region.box(x, work.eps),
            extra=work.extra,
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
        for name in ("labels", "targets", "reference", "eps", "step_size", "y"):
            self._put(name, rows, getattr(work, name))
        for own, tensor in zip(self.extra, work.extra, strict=True):
            put_rows(own, rows, tensor)
        if self.box is not None and work.region is not None:
            put_rows(self.box, rows, work.region.box(work.x, work.eps, like=self.x))
        if self.best_loss is not None:
            self._put("best_loss", rows, self.loss.new_full((len(work),), float("-inf")))
            self._put("x_best", rows, best)
        if self.momentum is not None:
            self._put("momentum", rows, torch.zeros_like(start, dtype=self.momentum.dtype))
        self._put("slots", rows, _fresh(len(work), self.slots))
        self.unprobed = True

    def _put(self, name: str, rows: torch.Tensor | None, values: torch.Tensor | None) -> None:
        buffer = getattr(self, name)
        if buffer is not None and values is not None:
            put_rows(buffer, rows, values)

    def take(self, rows: torch.Tensor) -> "SlotState":
        """A state of its own with `rows` of this one."""
        return take_fields(self, rows)

    def put(self, rows: torch.Tensor, state: "SlotState") -> None:
        """Write the slots of `state` into `rows`: what `take` gave, back."""
        put_fields(self, rows, state)

    def accepts(self, state: "SlotState") -> bool:
        return same_shapes(self, state)

    def read(self) -> tuple[int, ...]:
        return (int(self.unprobed),)

    def write(self, values: tuple[int, ...]) -> None:
        self.unprobed = bool(values[0])

    def look_again(self) -> None:
        """Let the next step look at its gradient as the first one after a load does."""
        self.unprobed = True

    def revive(self) -> None:
        """Make slots active again whose success was none. What their iterate is worth will be asked
        of another model: it becomes the best one, having been the closest to a success."""
        self.slots[:, columns.SUCCESS_STEP] = -1
        self.slots[:, columns.ACTIVE] = 1
        if self.best_loss is not None:
            self.best_loss.fill_(-torch.inf)

    def rows(self, part: slice) -> "SlotState":
        """A view of consecutive slots."""
        views = {
            field.name: value.detach()[part]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        extra = tuple(tensor[part] for tensor in self.extra)
        return replace(self, **{**views, "grad_logits": None, "extra": extra})


def _fresh(rows: int, like: torch.Tensor) -> torch.Tensor:
    """Slots that have not made a step, beside `like`."""
    slots = like.new_zeros((rows, columns.WIDTH), dtype=torch.int32)
    slots[:, columns.SUCCESS_STEP] = -1
    slots[:, columns.ACTIVE] = 1
    return slots


class ExtendedState(Protocol):
    """A dataclass of slots that has a `SlotState`, common, and tensors of its own."""

    common: SlotState

    def __len__(self) -> int:
        return len(self.common)

    @property
    def slots(self) -> torch.Tensor:
        return self.common.slots

    def take(self: "_State", rows: torch.Tensor) -> "_State":
        """A state of its own with `rows` of this one."""
        return take_fields(self, rows)

    def put(self, rows: torch.Tensor, state: object) -> None:
        """Write the slots of `state` into `rows`: what `take` gave, back."""
        put_fields(self, rows, state)

    def accepts(self, state: object) -> bool:
        return same_shapes(self, state)

    def look_again(self) -> None:
        self.common.look_again()

    def read(self) -> tuple[int, ...]:
        return self.common.read()

    def write(self, values: tuple[int, ...]) -> None:
        self.common.write(values)


def put_rows(buffer: torch.Tensor, rows: torch.Tensor | None, values: torch.Tensor) -> None:
    """buffer[rows] = values; None: all rows."""
    if rows is None:
        buffer.copy_(values)
    else:
        buffer.index_copy_(0, rows, values)


def take_fields(state: _State, rows: torch.Tensor) -> _State:
    """A copy of the dataclass `state` with `rows` of its tensors and of the states in it."""
    taken = {}
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, torch.Tensor):
            taken[field.name] = layout.gather_rows(value, rows)
        elif field.name == "extra":
            taken[field.name] = tuple(layout.gather_rows(tensor, rows) for tensor in value)
        elif isinstance(value, SlotState):
            taken[field.name] = value.take(rows)
    return replace(state, **taken)  # type: ignore[type-var]


def put_fields(state: object, rows: torch.Tensor, part: object) -> None:
    """The inverse of `take_fields`: the tensors of the dataclass `part` into `rows` of `state`."""
    for field in fields(state):  # type: ignore[arg-type]
        value, new = getattr(state, field.name), getattr(part, field.name)
        if field.name == "grad_logits":  # overwritten at every step, in the dtype of the model
            continue
        if isinstance(value, torch.Tensor):
            value.detach().index_copy_(0, rows, new.detach())
        elif field.name == "extra":
            for own, tensor in zip(value, new, strict=True):
                own.index_copy_(0, rows, tensor)
        elif isinstance(value, SlotState):
            value.put(rows, new)


def named_tensors(state: object) -> dict[str, torch.Tensor]:
    """The tensors of the dataclass `state` and of those in it, by their fields' names."""
    named: dict[str, torch.Tensor] = {}
    for field in fields(state):  # type: ignore[arg-type]
        value = getattr(state, field.name)
        if isinstance(value, torch.Tensor):
            named[field.name] = value
        elif field.name == "extra":
            named |= {f"{field.name}[{k}]": tensor for k, tensor in enumerate(value)}
        elif is_dataclass(value):
            named.update(named_tensors(value))
    return named


def same_shapes(state: object, other: object) -> bool:
    """Whether two dataclasses of one type hold tensors of the same shapes."""
    for field in fields(state):  # type: ignore[arg-type]
        value, new = getattr(state, field.name), getattr(other, field.name)
        if field.name == "grad_logits":
            continue
        if field.name == "extra":
            if [rows.shape for rows in value] != [rows.shape for rows in new]:
                return False
            continue
        if isinstance(value, SlotState) and not same_shapes(value, new):
            return False
        if isinstance(value, torch.Tensor) != isinstance(new, torch.Tensor):
            return False
        if isinstance(value, torch.Tensor) and value.shape != new.shape:
            return False
    return True
