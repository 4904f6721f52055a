"""Columns of APGD's per-slot progress, one row of `WIDTH` a slot; plain integers, no triton.

`apgd_check_` writes them, and initialises a row after the slot's first evaluation.
"""

PREVIOUS_LOSS = 0  # of the evaluation before, 0 after the first: see `apgd_check_`
INCREASES = 1  # evaluations since the last check whose loss was above the one before
CHECKED_BEST = 2  # best_loss at the last check
REDUCED = 3  # 1: the last check halved the step size
RESTORE = 4  # 1: the next step starts from the best iterate
WIDTH = 5
