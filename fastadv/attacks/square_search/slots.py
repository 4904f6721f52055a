"""The Square Attack as a slot algorithm: random search, several proposals at a time."""

from collections.abc import Hashable
from typing import Any

import torch

from fastadv.attacks.square_search.state import SquareState
from fastadv.elements import common_bounds
from fastadv.engine.state import put_rows
from fastadv.engine.work import Work
from fastadv.kernels import slots as columns
from fastadv.ops import layout
from fastadv.ops.heads import loss_head as heads
from fastadv.ops.square import linf as square
from fastadv.ops.square import lp as square_lp
from fastadv.ops.square.start import square_start
from fastadv.ops.square.table import SquareTable, square_table
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

_MOVES = {
    "linf": square.square_linf_,
    "l2": square_lp.square_l2_,
    "l1": square_lp.square_l1_,
}
_SETTLED = 1000  # queries after which few proposals are accepted, so that looking ahead pays
_REVIEW = 64  # steps between two looks at whether there is room to look ahead
_CPU_ROOM = 32  # rows below which a CPU's forward is mostly overhead
_CPU_AHEAD = 4  # proposals of a slot that share the cost of a step beside the model


class SquareSlots:
    """Accept what raises the margin loss; see `fastadv.square`. room: rows that a batch may have.

    A proposal depends on outcomes only through the accepted ones before it. So K of them may be
    evaluated at once where the batch has room: what follows an accepted one is discarded, and
    counted in `oracle.discarded`; and those that change nothing need no forward at all.
    """

    stride = 16  # of thousands
    needs_last = False

    def __init__(
        self,
        oracle: Oracle,
        threat: ThreatModel,
        *,
        queries: int,
        restarts: int,
        p_init: float,
        rescale: bool,
        seed: int,
        first_step: int,
        room: int,
    ) -> None:
        self.oracle = oracle
        self.threat = threat
        self.queries = queries
        self.steps: int = queries + 1
        self.items = restarts
        self.p_init = p_init
        self.rescale = rescale
        self.seed = seed
        self.first_step = first_step
        self.room = room
        self._table: SquareTable | None = None

    def allocate(self, work: Work, batch: int) -> SquareState:
        x, device = work.x, work.x.device
        if self.first_step > 0:
            raise ValueError(
                "the Square Attack moves windows only, so that x_init must lie in the ball and in "
                "bounds: project it first"
            )
        if self._table is None:
            self._table = square_table(
                self.queries,
                x.shape[1:],
                norm=self.threat.norm,
                p_init=self.p_init,
                seed=self.seed,
                restarts=self.items,
                rescale=self.rescale,
                device=device,
            )

        def vector(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(batch, dtype=dtype, device=device)

        return SquareState(
            x=layout.dense_like(x, batch),
            x_best=layout.dense_like(x, batch),
            labels=vector(torch.int64),
            eps=vector(work.eps.dtype),
            sample_ids=vector(torch.int64),
            best_loss=vector(work.eps.dtype),
            restarts=vector(torch.int32),
            wasted=vector(torch.int32),
            slots=torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=device),
            queries=torch.zeros(batch, 1, dtype=torch.int32, device=device),
            x_new=layout.dense_like(x, batch),
            labels_new=vector(torch.int64),
            y=None if work.y is None else work.y.new_empty((batch, *work.y.shape[1:])),
            extra=tuple(layout.dense_like(rows, batch) for rows in work.extra),
        )

    def start(
        self, state: SquareState, rows: torch.Tensor | None, work: Work, items: torch.Tensor
    ) -> None:
        start = work.x_init
        if start is None:
            start = square_start(
                work.x,
                eps=work.eps,
                bounds=common_bounds(self.threat),
                norm=self.threat.norm,
                seed=self.seed,
                sample_ids=work.sample_ids,
                draw=items,
            )
        put_rows(state.x, rows, work.x)
        put_rows(state.x_best, rows, start)
        put_rows(state.labels, rows, work.labels)
        if state.y is not None and work.y is not None:
            put_rows(state.y, rows, work.y)
        for own, given in zip(state.extra, work.extra, strict=True):
            put_rows(own, rows, given)
        put_rows(state.eps, rows, work.eps)
        put_rows(state.sample_ids, rows, work.sample_ids)
        put_rows(state.best_loss, rows, torch.full_like(work.eps, -torch.inf))
        put_rows(state.restarts, rows, items.int())
        fresh = state.slots.new_zeros(len(work), columns.WIDTH)
        fresh[:, columns.SUCCESS_STEP], fresh[:, columns.ACTIVE] = -1, 1
        put_rows(state.slots, rows, fresh)
        waiting = state.queries.new_full((len(work), state.lookahead), self.queries)
        waiting[:, 0] = -1  # the start itself
        put_rows(state.queries, rows, waiting)
        if rows is None:
            rows = torch.arange(len(state), device=work.x.device)
        proposals = state.proposals(rows)
        state.x_new.index_copy_(0, proposals, start.repeat_interleave(state.lookahead, 0))
        state.labels_new[proposals] = work.labels.repeat_interleave(state.lookahead)
        state.is_over = False

    def step(self, state: SquareState) -> None:
        state.age += 1
        if state.age % _REVIEW == 0:
            self._review_sync(state)
        if state.is_over:
            return
        self._move(state, *self._judged(state, self._outputs(state)))

    def _outputs(self, state: SquareState) -> torch.Tensor:
        """What the model returns for every proposal."""
        given = (state.x_new, *map(state.of_proposals, state.extra))
        parts = zip(*(rows.split(self.room) for rows in given), strict=True)
        outputs = [self.oracle.search_logits(part, tuple(extra)) for part, *extra in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _judged(
        self, state: SquareState, outputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, prediction) of every proposal."""
        judge, loss = self.oracle.judge, state.best_loss.new_empty(len(outputs))
        if judge.loss.objective is not None:
            assert state.y is not None, "an objective has been given y"
            y = state.of_proposals(state.y)
            loss.copy_(judge.loss.objective.losses(outputs, y))
            return loss, judge.readable(outputs, y).argmax(1)
        prediction = torch.empty_like(state.labels_new)
        correct = torch.empty_like(state.labels_new, dtype=torch.bool)
        heads.loss_head_(
            outputs,
            state.labels_new,
            None,
            None,
            loss,
            None,
            prediction,
            correct,
            None,
            None,
            "margin",
            0.0,
            0,
            0,
            False,
            0,
            False,
        )
        return loss, prediction

    def _move(self, state: SquareState, loss: torch.Tensor, prediction: torch.Tensor) -> None:
        assert self._table is not None
        options: dict[str, Any] = dict(
            loss=loss,
            prediction=prediction,
            labels=state.labels,
            best_loss=state.best_loss,
            queries=state.queries,
            wasted=state.wasted,
            slots=state.slots,
            restarts=state.restarts,
            table=self._table,
            eps=state.eps,
            bounds=common_bounds(self.threat),
        )
        if self.threat.norm != "linf":
            options.update(sample_ids=state.sample_ids, seed=self.seed)
        _MOVES[self.threat.norm](state.x_new, state.x_best, state.x, **options)

    def _review_sync(self, state: SquareState) -> None:
        """Evaluate more proposals of each slot at a time, if the batch has room for them; none
        where every slot has ended, which the plain loop does not see."""
        active = state.slots[:, columns.ACTIVE] != 0
        state.is_over = not bool(active.any())
        if state.is_over:
            return
        count = self.room // len(state)
        if state.x.device.type == "cpu":
            count = max(min(self.room, _CPU_ROOM) // len(state), _CPU_AHEAD)
        if count < 2 * state.lookahead:
            return
        if bool((active & (state.slots[:, columns.STEP] < _SETTLED)).any()):
            return
        state.replace_proposals(
            state.queries.new_empty(len(state), count),
            layout.dense_like(state.x, len(state) * count),
            state.labels.repeat_interleave(count),
        )
        self._propose(state)

    def _propose(self, state: SquareState) -> None:
        """Make the proposals from query STEP on, as if those before it had just been rejected."""
        state.queries.fill_(self.queries)
        state.queries[:, 0] = state.slots[:, columns.STEP] - 1
        state.x_new.copy_(state.x_best.repeat_interleave(state.lookahead, 0))
        worst = state.best_loss.new_full((len(state.x_new),), -torch.inf)
        self._move(state, worst, state.labels_new)

    def variant(self, state: SquareState) -> Hashable | None:
        looks = (state.age + 1) % _REVIEW == 0 or state.is_over
        return None if looks else state.generation

    def go_on(self, state: SquareState) -> None:
        """From the denied point, which stays the best: what is accepted next is worth more still,
        until the user's model agrees."""
        state.slots[:, columns.SUCCESS_STEP] = -1
        state.slots[:, columns.ACTIVE] = 1
        self._propose(state)

    def renew(self, state: SquareState) -> None:
        """One proposal a slot again."""
        if state.single is not None:
            state.queries, state.x_new, state.labels_new = state.single
            state.single, state.generation = None, 0
        state.wasted.zero_()
        state.age, state.is_over = 0, False

    def evaluate(self, state: SquareState) -> None:
        raise AssertionError("every proposal is evaluated before its slot ends")

    def outcome(self, state: SquareState) -> tuple[torch.Tensor, torch.Tensor]:
        self.oracle.discarded = self.oracle.discarded + state.wasted.sum()
        state.wasted.zero_()
        return state.x_best, state.best_loss
