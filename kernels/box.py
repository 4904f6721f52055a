"""The box of a sample: for each element what it may be, in planes of D numbers in the order of its
memory; plain integers, no triton.

A (B, 2, D) or (B, 3, D) tensor in the dtype that the sample is computed in, in place of one radius
or one pair of bounds for all elements. An element whose bounds meet stays where it is, and counts
in no norm.
"""

LOWER = 0  # the least value; in the L-infinity steps the eps-ball is part of the box
UPPER = 1
UNIT = 2  # what the element is measured in, above 0: L-infinity steps, L2 norms and random starts
PLANES = 2  # without units
PLANES_WITH_UNITS = 3


def planes(box):
    """How many, as kernels take them: 0 without a box."""
    return 0 if box is None else box.shape[1]
