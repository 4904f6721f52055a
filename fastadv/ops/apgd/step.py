"""What APGD's steps in L-infinity and L2 share: arguments, checks, bookkeeping in eager torch."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from fastadv.kernels import box as planes
from fastadv.ops import layout
from fastadv.ops.apgd import rows as apgd_rows
from fastadv.ops.apgd.rows import Turn
from fastadv.ops.steps import box as boxes

SCHEMA = (
    "Tensor(a!) x_adv, Tensor(b!) x_previous, Tensor(c!) x_best, Tensor(d!) grad_best, "
    "Tensor grad, Tensor x, Tensor step_size, Tensor eps, float lo, float hi, Tensor slots, "
    "Tensor progress, Tensor? correct, Tensor(e!)? x_hit, Tensor? box"
)


class ApgdStep(NamedTuple):
    """The arguments of SCHEMA, by position."""

    x_adv: torch.Tensor
    x_previous: torch.Tensor
    x_best: torch.Tensor
    grad_best: torch.Tensor
    grad: torch.Tensor
    x: torch.Tensor
    step_size: torch.Tensor
    eps: torch.Tensor
    lo: float
    hi: float
    slots: torch.Tensor
    progress: torch.Tensor
    correct: torch.Tensor | None
    x_hit: torch.Tensor | None
    box: torch.Tensor | None


class Tile(NamedTuple):
    """What a tile's rows move by; (rows, 1) each but for the bounds.

    kept: all ones where there is inertia. share: of the ascent, 1 in a slot's first step. box: of
    the tile's elements, (rows, 2 or 3, columns), in place of the bounds, in L-infinity of the
    radius too.
    """

    step: torch.Tensor
    radius: torch.Tensor
    bounds: tuple[float, float]
    kept: torch.Tensor
    share: torch.Tensor
    box: torch.Tensor | None

    @property
    def unit(self) -> torch.Tensor | None:
        """What each element is measured in, None without units."""
        has_units = self.box is not None and self.box.shape[1] > planes.UNIT
        return self.box[:, planes.UNIT] if has_units else None  # type: ignore[index]

    def clamped_(self, moved: torch.Tensor) -> torch.Tensor:
        """`moved`, in place, within the bounds."""
        if self.box is None:
            return moved.clamp_(*self.bounds)
        return torch.clamp(moved, self.box[:, planes.LOWER], self.box[:, planes.UPPER], out=moved)


# (z, g, x, x_previous, tile) -> the next iterate; z, g and x in the compute dtype, g may be written
Move = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Tile], torch.Tensor]


def step_in_place(op: Callable[..., None], step: ApgdStep) -> None:
    """Check `step`, bring its gradient to x_adv's layout and run `op`."""
    grad = apgd_rows.checked_images(
        step.x_adv,
        step.grad,
        x_previous=step.x_previous,
        x_best=step.x_best,
        grad_best=step.grad_best,
        x=step.x,
        x_hit=step.x_hit,
    )
    apgd_rows.check_state(step.x_adv, step.slots, step.progress)
    apgd_rows.check_rows(step.x, step.progress.dtype, step_size=step.step_size, eps=step.eps)
    apgd_rows.check_hit(step.x, step.correct, step.x_hit)
    if step.box is not None:
        boxes.check_box(step.box, step.x)
    op(*step[:4], grad, *step[5:])


def reference_step(step: ApgdStep, move: Move, *, elements: int, split_rows: bool) -> None:
    """The step in eager torch, tile by tile: `move` gives the next iterate, the rest is alike.

    elements, split_rows: of a tile, as in `apgd_rows.tiles`.
    """
    if step.x_adv.numel() == 0:
        return
    turn = apgd_rows.turn_of(step.slots, step.progress, step.correct)
    images = [apgd_rows.as_rows(t) for t in step[:6]]
    if step.x_hit is not None:
        images.append(apgd_rows.as_rows(step.x_hit))
    step_size, radius = step.step_size[:, None], step.eps[:, None]
    kept = apgd_rows.bit_mask(~turn.first, step_size.dtype)  # x_previous is undefined at first
    share = torch.full_like(step_size, 0.75).masked_fill_(turn.first, 1.0)
    batch, size = images[0].shape
    for rows, columns in apgd_rows.tiles(batch, size, elements, split_rows=split_rows):
        bounds = step.lo, step.hi
        box = None if step.box is None else step.box[rows, :, columns]
        tile = Tile(step_size[rows], radius[rows], bounds, kept[rows], share[rows], box)
        _step_tile(turn.rows(rows), tile, move, [t[rows, columns] for t in images])


def _step_tile(turn: Turn, tile: Tile, move: Move, images: list[torch.Tensor]) -> None:
    """images: x_adv, x_previous, x_best, grad_best, grad, x, and x_hit if there is one."""
    x_adv, x_previous, x_best, grad_best, grad, x, *x_hit = images
    apgd_rows.put(x_best, turn.improved, x_adv)
    apgd_rows.put(grad_best, turn.improved, grad)
    for hits in x_hit:
        assert turn.hit is not None, "checked by step_in_place"
        apgd_rows.put(hits, turn.hit, x_adv)
    assert turn.restore is not None, "turn_of was given the progress"
    dtype = layout.compute_dtype(x_adv)
    start = apgd_rows.pick(turn.restore, x_best, x_adv)
    g = apgd_rows.pick(turn.restore, grad_best, grad).to(dtype)
    moved = move(start.to(dtype), g, x.to(dtype), x_previous, tile)
    apgd_rows.put(x_previous, turn.active, start)
    apgd_rows.put(x_adv, turn.active, moved.to(x_adv.dtype))
