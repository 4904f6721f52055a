"""Columns of the per-slot state, one int32 row of `WIDTH` a slot; plain integers, no triton.

The loss head writes them (one program a row, so nothing races); the steps only read ACTIVE.
"""

STEP = 0  # steps taken to reach the current iterate
SUCCESS_STEP = 1  # STEP of the first iterate that fooled the model, -1 while none has
ACTIVE = 2  # 1: the next step moves this slot; 0: finished, its iterate stays as it is
FAULT = 3  # bits, see below
IMPROVED = 4  # 1: the last evaluated iterate has the highest loss so far
NEAREST_STEP = 4  # the same, of searches for the nearest point: STEP of the nearest so far
WIDTH = 5

FAULT_NAN_LOGITS = 1
FAULT_BAD_LABEL = 2
FAULT_ZERO_GRADIENT = 4  # at the start iterate
FAULT_NAN_GRADIENT = 8  # at the start iterate
FAULT_OVERFLOW = 16  # of a gradient in half precision
# no faults, see `fastadv.oracle.clamping.Evidence`
KEPT_AT_LOW = 32
KEPT_AT_HIGH = 64
LOST_AT_LOW = 128
LOST_AT_HIGH = 256
