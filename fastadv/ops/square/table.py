"""The queries of the Square Attack as tensors: where each square lies, its signs and patterns."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox

NORMS = ("linf", "l2", "l1")

# of 10,000 queries, and what the share of changed pixels is divided by up to and with each
_STAGES = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_DIVISORS = tuple(2.0**i for i in range(len(_STAGES) + 1))


class SquareTable(NamedTuple):
    """Query q of restart r is row r * queries + q; all samples share the table.

    geometry: (rows, 3) int32 top, left, side; in L2 and L1 (rows, 6) top, left, top2, left2, side,
    transposed. signs: (rows, C) int8, empty in L2 and L1. patterns: the pyramids of the norm, one
    after the other, float32; pattern_start: (rows,) int32, where a query's begins; both empty in
    L-infinity. queries: of one restart.
    """

    geometry: torch.Tensor
    signs: torch.Tensor
    patterns: torch.Tensor
    pattern_start: torch.Tensor
    queries: int


def square_sides(
    queries: int, height: int, width: int, *, norm: str, p_init: float = 0.8, rescale: bool = False
) -> np.ndarray:
    """(queries,) int32: the side of each query's square, from the authors' schedule of p.

    p is p_init, halved after queries 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000; rescale
    counts queries as if there were 10,000. The side is round(sqrt(p * height * width)); in L2 and
    L1 at least 3 and odd; at most the image's shorter side.

    Example: `square_sides(5000, 32, 32, norm="linf")[-1]`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049, section 3 and their code.
    """
    query = np.arange(queries)
    if rescale:
        query = (query / queries * 10000).astype(np.int64)
    sides = []
    for divisor in _DIVISORS:
        side = max(round(math.sqrt(p_init / divisor * height * width)), 1 if norm == "linf" else 3)
        if norm != "linf" and side % 2 == 0:
            side += 1
        sides.append(min(side, height, width))
    stage = np.searchsorted(np.array(_STAGES), query, side="left")
    return np.array(sides, np.int32)[stage]


def _pyramid(height: int, width: int, power: int) -> np.ndarray:
    """Half a pattern: sum over k of 1 / (k + 1)^power on growing squares around the middle."""
    rows, columns = height // 2 + 1, width // 2 + 1
    ring = np.maximum(
        np.abs(np.arange(height) - (rows - 1))[:, None],
        np.abs(np.arange(width) - (columns - 1))[None],
    )
    layers = np.array([1.0 / k**power for k in range(1, max(rows, columns) + 1)])
    tails = np.append(np.cumsum(layers[::-1])[::-1], 0.0)
    return _unit(tails[np.minimum(ring, len(layers))], power)


def _unit(pattern: np.ndarray, power: int) -> np.ndarray:
    size = np.sum(pattern**2) ** 0.5 if power == 2 else np.sum(np.abs(pattern))
    return pattern / size if size > 0 else pattern


def square_pattern(side: int, norm: str) -> torch.Tensor:
    """(side, side) float32: a pyramid above its negative, of L2 or L1 norm 1.

    Example: `square_pattern(5, "l2")`. Source: Andriushchenko et al. 2020, arXiv:1912.00049,
    section 3.3; L1: AutoAttack. Unlike there, sums are float64: the values agree to 2 ULP.
    """
    power = {"l2": 2, "l1": 4}[norm]
    halves = _pyramid(side // 2, side, power), -_pyramid(side - side // 2, side, power)
    return torch.from_numpy(_unit(np.concatenate(halves), power)).float()


def square_table_from(
    uniforms: torch.Tensor,
    shape: Sequence[int],
    *,
    norm: str,
    signs: torch.Tensor | None = None,
    transposed: torch.Tensor | None = None,
    p_init: float = 0.8,
    restarts: int = 1,
    rescale: bool = False,
) -> SquareTable:
    """The table of given draws, which decide everything but the sides.

    uniforms: (rows, 2) floats in [0, 1), top = floor((H - side) * u) and left alike, never the last
    position unless it is 0; in L2 and L1 (rows, 4), two windows. shape: (C, H, W). signs: (rows, C)
    of -1 and 1, L-infinity only. transposed: (rows,) bool, L2 and L1 only. rows = restarts *
    queries. Raises ValueError for a shape that does not fit.

    Example: `square_table_from(torch.rand(9, 2), (1, 8, 8), norm="linf", signs=torch.ones(9, 1))`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049, algorithm 2 and 3.
    """
    channels, height, width = _image_shape(shape)
    rows, device = len(uniforms), uniforms.device
    _check_choices(norm, p_init, restarts)
    wanted = (2, channels) if norm == "linf" else (4, 0)
    given = signs if norm == "linf" else transposed
    if uniforms.shape != (rows, wanted[0]) or given is None or len(given) != rows:
        raise ValueError(
            f"{norm} needs uniforms (rows, {wanted[0]}) and "
            f"{'signs' if norm == 'linf' else 'transposed'} of as many rows; got "
            f"{tuple(uniforms.shape)} and {None if given is None else tuple(given.shape)}"
        )
    if rows % restarts:
        raise ValueError(f"rows must be a multiple of restarts; got {rows} and {restarts}")
    queries = rows // restarts
    sides = square_sides(queries, height, width, norm=norm, p_init=p_init, rescale=rescale)
    side = torch.from_numpy(np.tile(sides, restarts)).to(device)
    room = torch.stack([height - side, width - side] * (wanted[0] // 2), 1)
    corner = (room * uniforms).to(torch.int32)  # int32 * float32: as the authors round
    if norm == "linf":
        assert signs is not None
        if signs.shape != (rows, channels):
            raise ValueError(f"signs must be ({rows}, {channels}); got {tuple(signs.shape)}")
        geometry = torch.cat([corner, side[:, None]], 1)
        none = torch.zeros(0, device=device)
        start = none.to(torch.int32)
        return SquareTable(geometry, signs.to(torch.int8).contiguous(), none, start, queries)
    assert transposed is not None
    turned = transposed.to(torch.int32)
    geometry = torch.cat([corner, side[:, None], turned[:, None]], 1)
    distinct, index = np.unique(sides, return_inverse=True)
    every = [square_pattern(int(s), norm).flatten() for s in distinct]
    first = np.cumsum([0, *(len(p) for p in every)])[:-1].astype(np.int32)
    start = torch.from_numpy(np.tile(first[index], restarts)) if rows else side
    patterns = torch.cat(every) if every else torch.zeros(0)
    signs = torch.zeros(rows, 0, dtype=torch.int8, device=device)
    return SquareTable(geometry, signs, patterns.to(device), start.to(device), queries)


def square_table(
    queries: int,
    shape: Sequence[int],
    *,
    norm: str = "linf",
    p_init: float = 0.8,
    seed: int,
    restarts: int = 1,
    rescale: bool = False,
    device: torch.device | str = "cpu",
) -> SquareTable:
    """Draw every query of the Square Attack at once: they do not depend on any outcome.

    queries: of one restart. shape: (C, H, W), which need not be square. p_init: the share of pixels
    that the first queries change, in (0, 1]. The table is a pure function of the seed, shared by
    all samples. Raises ValueError unless restarts * queries < 2^24.

    Example: `square_table(5000, (3, 32, 32), norm="linf", seed=0)`.
    Source: Andriushchenko et al. 2020, arXiv:1912.00049.
    """
    channels = _image_shape(shape)[0]
    _check_choices(norm, p_init, restarts)
    rows = queries * restarts
    if queries < 0 or rows >= 1 << streams.DRAW_BITS:
        raise ValueError(f"restarts * queries must lie in [0, 2^24); got {restarts} * {queries}")
    draw, sample = torch.arange(rows), torch.zeros(rows, dtype=torch.int64)
    count = 2 if norm == "linf" else 4
    u = philox.uniforms(seed, sample, streams.SQUARE_POSITION, draw, count)
    signs = transposed = None
    if norm == "linf":
        signs = philox.signs(seed, sample, streams.SQUARE_SIGN, draw, channels)
    else:
        transposed = philox.words(seed, sample, streams.SQUARE_CHOICE, draw, 1)[:, 0] & 1
    table = square_table_from(
        u,
        shape,
        norm=norm,
        signs=signs,
        transposed=transposed,
        p_init=p_init,
        restarts=restarts,
        rescale=rescale,
    )
    tensors = (tensor.to(device) for tensor in table[:4])
    return table._replace(**dict(zip(SquareTable._fields, tensors, strict=False)))


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"Square needs images of shape (C, H, W); got {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


def _check_choices(norm: str, p_init: float, restarts: int) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {NORMS}; got {norm!r}")
    if not 0.0 < p_init <= 1.0:
        raise ValueError(f"p_init must lie in (0, 1]; got {p_init}")
    if restarts < 1:
        raise ValueError(f"restarts must be at least 1; got {restarts}")
