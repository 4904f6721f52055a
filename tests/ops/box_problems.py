"""Boxes of samples, in which some elements are held, and others have units of their own."""

import torch

from fastadv.ops.steps.box import bounds_of, packed, unit_of


def drawn(like: torch.Tensor, *, units: bool, ball: float | None = None, seed: int = 3):
    """(lower, upper, unit) of each element of `like`, in its compute dtype: a third is held where
    it is, a third bounded more closely. ball: a radius that is part of the box, by units."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

    def draw():
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like.device)

    x = like.to(dtype)
    kind, unit = draw(), (0.5 + draw()).to(dtype)
    lower = torch.where(kind < 0.67, (x - 0.02).clamp(0, 1), torch.zeros_like(x))
    upper = torch.where(kind < 0.67, (x + 0.03).clamp(0, 1), torch.ones_like(x))
    if ball is not None:
        reach = unit * ball if units else ball
        lower, upper = torch.maximum(lower, x - reach), torch.minimum(upper, x + reach)
    held = kind < 0.33
    lower, upper = torch.where(held, x, lower), torch.where(held, x, upper)
    return lower, upper, torch.where(held, 1.0, unit) if units else None


def box_of(like: torch.Tensor, *, units: bool, ball: float | None = None, seed: int = 3):
    """The same as ops take it."""
    return packed(*drawn(like, units=units, ball=ball, seed=seed), like)


def planes_of(box, x):
    """(lower, upper, unit, held) in the shape of x; unit: 1 where there are none."""
    lower, upper = bounds_of(box, x)
    unit = unit_of(box, x)
    return lower, upper, torch.ones_like(lower) if unit is None else unit, lower >= upper
