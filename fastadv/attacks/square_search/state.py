"""The slots of the Square Attack: each with the proposals that are evaluated at once."""

import itertools
from dataclasses import dataclass, replace

import torch

from fastadv.engine.state import put_fields, same_shapes, take_fields
from fastadv.ops import layout

_GENERATION = itertools.count(1)


@dataclass
class SquareState:
    """B slots with K proposals each. x_new: (B * K, C, H, W), row b * K + k is for slot b.

    queries: (B, K) int32, which query each proposal is. restarts, wasted: (B,) int32, the latter
    since the last `outcome`. labels_new: (B * K,) the labels again. age: steps made. generation: a
    number of its own for every set of proposal tensors. single: those for one proposal a slot,
    while others are in their place. y, extra: as in `Work`, a row a slot. The rest as in
    `fastadv.ops.square.linf.square_linf_`.
    """

    x: torch.Tensor
    x_best: torch.Tensor
    labels: torch.Tensor
    eps: torch.Tensor
    sample_ids: torch.Tensor
    best_loss: torch.Tensor
    restarts: torch.Tensor
    wasted: torch.Tensor
    slots: torch.Tensor
    queries: torch.Tensor
    x_new: torch.Tensor
    labels_new: torch.Tensor
    age: int = 0
    is_over: bool = False  # no slot is active
    generation: int = 0
    single: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    y: torch.Tensor | None = None
    extra: tuple[torch.Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def lookahead(self) -> int:
        return self.queries.shape[1]

    def take(self, rows: torch.Tensor) -> "SquareState":
        proposals = self.proposals(rows)
        alike = replace(self, x_new=self.x, labels_new=self.labels)  # one row a slot
        return replace(
            take_fields(alike, rows),
            x_new=layout.gather_rows(self.x_new, proposals),
            labels_new=self.labels_new[proposals],
            single=None,
            generation=next(_GENERATION),
        )

    def put(self, rows: torch.Tensor, state: "SquareState") -> None:
        """Write the slots of `state` into `rows`: what `take` gave, back."""
        alike = replace(state, x_new=state.x, labels_new=state.labels)
        put_fields(replace(self, x_new=self.x, labels_new=self.labels), rows, alike)
        proposals = self.proposals(rows)
        self.x_new.index_copy_(0, proposals, state.x_new)
        self.labels_new.index_copy_(0, proposals, state.labels_new)

    def accepts(self, state: "SquareState") -> bool:
        return same_shapes(self, state)

    def look_again(self) -> None:
        """There is no gradient to look at."""

    def read(self) -> tuple[int, ...]:
        return self.age, int(self.is_over)

    def write(self, values: tuple[int, ...]) -> None:
        self.age, self.is_over = values[0], bool(values[1])

    def proposals(self, rows: torch.Tensor) -> torch.Tensor:
        """Which rows of x_new are those of the slots `rows`."""
        ahead = torch.arange(self.lookahead, device=rows.device)
        return (rows[:, None] * self.lookahead + ahead).flatten()

    def of_proposals(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows`, one a slot, for each of its proposals."""
        return rows if self.lookahead == 1 else rows.repeat_interleave(self.lookahead, 0)

    def replace_proposals(
        self, queries: torch.Tensor, x_new: torch.Tensor, labels_new: torch.Tensor
    ) -> None:
        if self.single is None and self.lookahead == 1:
            self.single = self.queries, self.x_new, self.labels_new
        self.queries, self.x_new, self.labels_new = queries, x_new, labels_new
        self.generation = next(_GENERATION)
