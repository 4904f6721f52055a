"""What the lanes of a warp compute together: shuffles and reductions."""

import numpy as np

from .memory import EmulationError
from .parser import UnknownPtx

WARP = 32


def shuffled(how: str, values: np.ndarray, amounts: np.ndarray, control: int):
    """(values of the source lanes, whether they are in range); values, amounts: (warps, 32).

    control: the segment mask in bits 8 to 12 and the clamp in bits 0 to 4, as shfl.sync takes them.
    """
    lane = np.arange(WARP)
    segment = control >> 8 & 31
    bound = (lane & segment) | (control & 31 & ~segment)
    amounts = amounts.astype(np.int64) & 31
    if how == "bfly":
        source = lane ^ amounts
    elif how == "up":
        source = lane - amounts
    elif how == "down":
        source = lane + amounts
    elif how == "idx":
        source = (lane & segment) | (amounts & ~segment)
    else:
        raise UnknownPtx(f"shfl.sync.{how}")
    inside = source >= bound if how == "up" else source <= bound
    return np.take_along_axis(values, np.where(inside, source, lane), 1), inside


_REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def reduced(how: str, values: np.ndarray) -> np.ndarray:
    """(warps, 32) -> the same, every lane with its warp's result."""
    result = _REDUCTIONS[how].reduce(values, axis=1, dtype=values.dtype, keepdims=True)
    return np.broadcast_to(result, values.shape)


def matrix_places(rows: np.ndarray, matrix: int) -> np.ndarray:
    """Where each lane's 4 bytes of an 8 x 8 matrix of 16 bits lie; rows: (warps, 32), the address
    of row r of matrix m at lane 8 * m + r, as ldmatrix and stmatrix take them."""
    lane = np.arange(WARP)
    return rows[:, 8 * matrix + lane // 4] + (lane % 4 * 4).astype(rows.dtype)


def demand_whole_warps(lanes: np.ndarray, what: str) -> None:
    """The .sync of an instruction names all lanes of a warp: they must be there."""
    present = np.bincount(lanes // WARP)
    if (present % WARP).any():
        raise EmulationError(f"{what} reached by a part of a warp")
