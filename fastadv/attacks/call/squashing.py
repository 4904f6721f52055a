"""Outputs that are no logits, noticed: probabilities, or squashed by a sigmoid or a tanh."""

import torch

from fastadv import diagnostics
from fastadv.attacks.call.extremes import extremes
from fastadv.ops import layout

# beside the bits of `fastadv.kernels.slots` in what a call reads of all samples; of no kernel
FAULT_PROBABILITIES = 1 << 16
FAULT_SQUASHED = 1 << 17

_SUM = 1e-3  # what rounding may leave the sum of a row from 1
_SHARE = 10  # one in so many outputs at an end
_END = 0.01
# how far outputs reach at least, up, and of a tanh down as well: logits of random weights and few
# classes may all lie a little above 0 (0.12 was the most), distances in [-1, 0]
_REACH = 0.5


def signs(logits: torch.Tensor) -> torch.Tensor:
    """(3,) int64, on the device: rows with NaN; 1 if the outputs, (n, C) or (n,), n > 0, are
    probabilities; 1 if they are squashed.

    Probabilities lie in [0, 1], and every row sums to 1. Squashed are others that all lie in [0, 1]
    or in [-1, 1], one in ten or more within 0.01 of an end; but not if they are all the same, or do
    not reach 0.5, and -0.5 where some are negative.
    """
    rows = logits.detach().to(layout.compute_dtype(logits)).reshape(len(logits), -1)
    low, high = torch.aminmax(rows)
    in_unit, in_both = (low >= 0) & (high <= 1), (low >= -1) & (high <= 1)
    probabilities = in_unit & ((rows.sum(1) - 1).abs() < _SUM).all()
    near_unit = ((rows - 0.5).abs() >= 0.5 - _END).sum() * _SHARE >= rows.numel()
    near_both = (rows.abs() >= 1 - _END).sum() * _SHARE >= rows.numel()
    squashed = in_unit & near_unit | in_both & near_both & (low <= -_REACH)
    squashed &= ~probabilities & (high >= _REACH) & (low < high)
    return torch.stack([rows.isnan().any(1).sum(), probabilities, squashed])


def warn_of_outputs(outputs: torch.Tensor, *, are_logits: bool = True) -> int:
    """Warn of outputs that should be logits and are not; how many rows have NaN. Synchronises once.

    are_logits: (n, C) is asked for; an objective may well be of probabilities, of any shape.
    """
    if len(outputs) == 0 or _are_plain(outputs):
        return 0
    nan, probabilities, squashed = signs(outputs).tolist()
    if are_logits:
        diagnostics.warn("probabilities", probabilities * len(outputs), len(outputs))
        diagnostics.warn("squashed", squashed * len(outputs), len(outputs))
    return nan


def _are_plain(outputs: torch.Tensor) -> bool:
    """Whether `signs` would be 0, as is clear at once of most logits; asked on a CPU only, which
    need not be waited for."""
    if outputs.device.type != "cpu":
        return False
    low, high = extremes(outputs)  # both NaN where one of the outputs is
    reaches = low <= -_REACH and high >= _REACH
    return low < -1 or high > 1 or (low < 0 and not reaches)


def marked(faults: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
    """faults, (n,) int32, with the bits above where the first outputs, of some of the samples, show
    it; no synchronisation. first: None where the outputs were looked at before."""
    if first is None or len(first) == 0 or _are_plain(first):
        return faults
    _, probabilities, squashed = signs(first)
    return faults | (probabilities * FAULT_PROBABILITIES + squashed * FAULT_SQUASHED).int()
