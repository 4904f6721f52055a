"""The Square Attack's first query: stripes in L-infinity, a grid of pyramids in L2 and L1."""

import torch

from fastadv.kernels.noise import streams
from fastadv.ops import layout, reduction, rounding
from fastadv.ops.noise import philox
from fastadv.ops.square import accept as square_accept
from fastadv.ops.square.table import NORMS, square_pattern
from fastadv.ops.steps import arguments as step_arguments
from fastadv.ops.steps.l1_projection import project_l1

L1_SHARE = 1.0 - 1e-6  # of eps: the authors' margin for rounding in the L1 projection

_TINY = 1e-12  # the authors' guard against 0/0
_TILES = 5  # a side of the grid


def square_start(
    x: torch.Tensor,
    *,
    eps: float | torch.Tensor,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    norm: str = "linf",
    seed: int,
    sample_ids: torch.Tensor | None = None,
    draw: int | torch.Tensor = 0,
) -> torch.Tensor:
    """The start of the Square Attack: x + delta within bounds, where delta is eps times a random
    sign for each channel and column (L-infinity), or a grid of pyramids (H // 5 pixels
    wide, random signs for each sample, tile and channel) scaled to the norm eps (L2, then
    clamped) or projected onto ball and bounds (L1).

    x: (B, C, H, W), any float dtype and memory format, kept by the result. eps: in input units,
    float or (B,). sample_ids: (B,) integers, 0..B-1 if not given. draw: the restart, an integer or
    (B,). The start is a pure function of (seed, sample id, draw). Raises ValueError unless x are
    images, in L2 and L1 at least 5 pixels high and wide.

    Example: `x_best = square_start(x, eps=8/255, norm="linf", seed=0, sample_ids=index)`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049, section 3; L1: AutoAttack. Unlike there,
    tiles that do not fit the image are left out (theirs raises), and each sample turns its own.
    """
    square_accept.check_images(x)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}; got {norm!r}")
    radius = step_arguments.scalar_or_rows("eps", eps, x)
    lo, hi = step_arguments.check_bounds(bounds)
    if norm != "linf" and min(x.shape[2:]) < _TILES:
        raise ValueError(
            f"Square in {norm} needs images of at least {_TILES} x {_TILES} pixels; got "
            f"{x.shape[2]} x {x.shape[3]}"
        )
    if x.numel() == 0:
        return torch.empty_like(x)
    dtype, batch = layout.compute_dtype(x), x.shape[0]
    ids = torch.arange(batch, device=x.device) if sample_ids is None else sample_ids
    eps_rows = x.new_full((batch,), radius.scalar, dtype=dtype)
    eps_rows = (eps_rows if radius.rows is None else radius.rows).view(-1, 1, 1, 1)
    with torch.no_grad():
        clean = x.to(dtype)
        if norm == "linf":
            drawn = philox.signs(seed, ids, streams.SQUARE_INIT, draw, x.shape[1] * x.shape[3]).to(
                dtype
            )
            delta = eps_rows * drawn.view(batch, x.shape[1], 1, x.shape[3])
        else:
            delta = pyramid_grid(x.shape, norm, *_grid_draws(x, seed, ids, draw)).to(dtype)
        if norm == "l2":
            rows = delta.flatten(1)
            size = rounding.root(reduction.tree_sum(rows * rows))
            delta = delta / (size.view(-1, 1, 1, 1) + _TINY) * eps_rows
        if norm == "l1":
            moved = project_l1(
                clean + delta, clean, eps=eps_rows.flatten() * L1_SHARE, bounds=bounds
            )
        else:
            moved = (clean + delta).clamp(lo, hi)
        return torch.empty_like(x).copy_(moved)


def _tiles(height: int, width: int) -> tuple[int, list[tuple[int, int]]]:
    """(side, corners) of the tiles inside the image: as the authors', whose side is a fifth of the
    height, and of the shorter side where none of theirs fits."""
    for extent in (height, min(height, width)):
        side = extent // _TILES
        start = (extent - side * _TILES) // 2
        rows = [start + i * side for i in range(height // side)]
        columns = [start + i * side for i in range(width // side)]
        corners = [
            (i, j) for i in rows for j in columns if i + side <= height and j + side <= width
        ]
        if corners:
            break
    return side, corners


def _grid_draws(
    x: torch.Tensor, seed: int, ids: torch.Tensor, draw: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signs (B, tiles, C) and transpositions (B, tiles) bool: elements of one draw, in order."""
    tiles, channels = len(_tiles(*x.shape[2:])[1]), x.shape[1]
    drawn = philox.signs(seed, ids, streams.SQUARE_INIT, draw, tiles * (channels + 1))
    signs = drawn[:, : tiles * channels].view(-1, tiles, channels)
    return signs, drawn[:, tiles * channels :] < 0


def pyramid_grid(
    shape: torch.Size, norm: str, signs: torch.Tensor, transposed: torch.Tensor
) -> torch.Tensor:
    """(B, C, H, W) float32: one pyramid a tile. signs: (B, tiles, C), transposed: (B, tiles)."""
    batch, channels, height, width = shape
    side, corners = _tiles(height, width)
    pattern = square_pattern(side, norm).to(signs.device)
    delta = torch.zeros(batch, channels, height, width, device=signs.device)
    for tile, (top, left) in enumerate(corners):
        turned = transposed[:, tile].view(-1, 1, 1)
        shown = torch.where(turned, pattern.T, pattern)[:, None]
        sign = signs[:, tile].view(batch, channels, 1, 1)
        delta[:, :, top : top + side, left : left + side] = shown * sign
    return delta
