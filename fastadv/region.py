"""Where samples may go, element by element: a mask, radii and bounds of elements, as boxes."""

import math
from dataclasses import dataclass, fields, replace

import torch

from fastadv.elements import Radii, Value, has_elements, of_elements
from fastadv.kernels import box as planes
from fastadv.ops import layout
from fastadv.ops.steps.box import packed


@dataclass(frozen=True)
class Region:
    """Of samples x, (n, ...): tensors of x's dimensions that broadcast to it, n rows or one for
    all, in the dtype that x is computed in; None for what is alike in all elements.

    mask: bool, the elements that may move. eps: radii of elements: in L-infinity each its own, in
    L2 and L1 the ball is ||(x_adv - x) / eps|| <= 1, and an element of radius 0 stays. step_size:
    of elements, in L-infinity. lower, upper: bounds, infinite where there are none.
    """

    norm: str
    mask: torch.Tensor | None
    eps: torch.Tensor | None
    step_size: torch.Tensor | None
    lower: torch.Tensor
    upper: torch.Tensor

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lower, self.upper

    @property
    def has_elements(self) -> bool:
        """Whether radii or bounds are not alike in all elements, the mask apart."""
        return self.eps is not None or max(self.lower.numel(), self.upper.numel()) > 1

    def moves(self, x: torch.Tensor) -> torch.Tensor:
        """(n,) bool: samples of which any element may move."""
        free = self.lower < self.upper
        free = free if self.mask is None else free & self.mask
        free = free if self.eps is None else free & (self.eps > 0)
        return free.expand(x.shape).reshape(len(x), -1).any(1)

    def take(self, samples: torch.Tensor) -> "Region":
        """The region of these samples."""
        taken = {
            field.name: value.index_select(0, samples)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor) and len(value) > 1
        }
        return replace(self, **taken)

    def box(
        self,
        x: torch.Tensor,
        radius: Value,
        *,
        like: torch.Tensor | None = None,
        clamps: bool = True,
    ) -> torch.Tensor:
        """What the steps take, see `fastadv.ops.steps.box`. radius: float or (n,), where elements
        have radii of their own a float in units of these. like: what is stepped, if its layout may
        differ from that of x. clamps: into the bounds."""
        least, most = self._bounds(clamps)
        lower, upper, unit = least, most, self.step_size
        if self.norm == "linf":
            wide = x.to(layout.compute_dtype(x))
            reach = self.eps
            if reach is None:
                is_rows = isinstance(radius, torch.Tensor)
                reach = layout.per_sample(radius, x) if is_rows else radius
            elif isinstance(radius, float) and radius != 1.0:
                reach = reach * radius
            lower = (wide - reach).maximum(least).minimum(most)
            upper = (wide + reach).maximum(least).minimum(most)
        else:
            unit = self.eps
        if self.norm == "l1" and unit is None:
            unit = torch.ones_like(least)
        box = self._held(x, lower, upper, unit, x if like is None else like)
        if self.norm == "l1":  # of unit 0, so that one product masks a gradient and scales it
            box[:, planes.UNIT].masked_fill_(box[:, planes.LOWER] >= box[:, planes.UPPER], 0.0)
        return box

    def masked(self, inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        """`inside` where the mask is, `outside` elsewhere."""
        return inside if self.mask is None else torch.where(self.mask, inside, outside)

    def empty_box(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Of `rows` samples like those of x, uninitialised."""
        units = self.step_size if self.norm == "linf" else self.eps
        has_units = units is not None or self.norm == "l1"
        count = planes.PLANES_WITH_UNITS if has_units else planes.PLANES
        size, dtype = math.prod(x.shape[1:]), layout.compute_dtype(x)
        return torch.empty(rows, count, size, dtype=dtype, device=x.device)

    def start_box(self, x: torch.Tensor, *, clamps: bool) -> torch.Tensor:
        """What random starts take. clamps: into the bounds."""
        return self._held(x, *self._bounds(clamps), self.eps, x)

    def _bounds(self, clamps: bool) -> tuple[torch.Tensor, torch.Tensor]:
        if clamps:
            return self.lower, self.upper
        return torch.full_like(self.lower, -torch.inf), torch.full_like(self.upper, torch.inf)

    def _held(
        self,
        x: torch.Tensor,
        lower: torch.Tensor,
        upper: torch.Tensor,
        unit: torch.Tensor | None,
        like: torch.Tensor,
    ) -> torch.Tensor:
        """The box in which all that may not move is held where it is."""
        moves = self.mask
        if self.eps is not None:
            moves = self.eps > 0 if moves is None else moves & (self.eps > 0)
        if moves is not None:
            lower, upper = torch.where(moves, lower, x), torch.where(moves, upper, x)
        if unit is not None:
            unit = torch.where(unit > 0, unit, 1.0)
        return packed(lower, upper, unit, x, layout.dense_format(like))


def region_of(
    threat: Radii,
    x: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    step_size: Value | None = None,
) -> Region | None:
    """The region of x, (n, ...), None where all elements are alike. Raises ValueError for what
    does not broadcast to x. mask: as `checked_mask` gives it."""
    if mask is None and not has_elements(threat) and not of_elements(step_size):
        return None
    dtype = layout.compute_dtype(x)

    def like_x(name: str, value: object) -> torch.Tensor | None:
        if not isinstance(value, torch.Tensor) or not of_elements(value):
            return None
        check_broadcasts(name, value, x)
        return value.to(x.device, dtype)

    eps, step = like_x("eps", threat.eps), like_x("step_size", step_size)
    if step is not None and threat.norm != "linf":
        raise ValueError(
            f"step_size has one length a sample in {threat.norm.upper()}; got "
            f"{tuple(step.shape)}: give a float, in units of eps where eps is one for each element"
        )
    sides = []
    for name, side in zip(("lo", "hi"), threat.bounds or (-torch.inf, torch.inf), strict=True):
        own = like_x(f"{name} of bounds", side)
        sides.append(x.new_full((1,) * x.ndim, float(side), dtype=dtype) if own is None else own)
    return Region(threat.norm, mask, eps, step, *sides)


def check_broadcasts(name: str, value: torch.Tensor, x: torch.Tensor) -> None:
    """Raises ValueError unless `value` has x's dimensions, or 1 in their place."""
    fits = value.ndim == x.ndim and all(
        a in (1, b) for a, b in zip(value.shape, x.shape, strict=True)
    )
    if not fits:
        a_sample = "" if "bounds" in name else f" or one value a sample, ({len(x)},),"
        raise ValueError(
            f"{name} must be a float{a_sample} or broadcast to x, {tuple(x.shape)}, with a batch "
            f"axis, as {(1, *x.shape[1:])} does; got {tuple(value.shape)}"
        )


def checked_mask(mask: object, x: torch.Tensor) -> torch.Tensor | None:
    """`mask` with the dimensions of x, or None. Raises TypeError for what is no bool tensor,
    ValueError where it does not broadcast to x or lies on another device."""
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True where x may move; got {got}")
    if mask.device != x.device:
        raise ValueError(f"mask must be on the device of x, {x.device}; got {mask.device}")
    whole = mask[(None,) * max(0, x.ndim - mask.ndim)]
    fits = whole.ndim == x.ndim and all(
        a in (1, b) for a, b in zip(whole.shape, x.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"mask must broadcast to x, {tuple(x.shape)}, as {(1, *x.shape[1:])} does; got "
            f"{tuple(mask.shape)}"
        )
    return whole.detach().clone()
