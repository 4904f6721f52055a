"""Purposes of random draws, bits 24..31 of the second Philox counter word; no triton.

A purpose keeps its number for ever: with it every published result can be drawn again. New uses
take free numbers. Two uses of one purpose get the same bits wherever (seed, sample id, draw,
element) agree.

counter = (element >> 2, purpose << 24 | draw, sample id low, sample id high), lane = element & 3,
key = (seed low, seed high). `element` counts the sample's elements in C order, whatever the memory
format.
"""

# 0..15: starting points; draw = restart
START_UNIFORM = 0  # uniforms of L-infinity starts
START_NORMAL = 1  # normals of Gaussian starts and of L2 directions
START_EXPONENTIAL = 2  # exponentials of L1-ball starts; their signs are bit 0 of the same words
START_RADIUS = 3  # a radius or a flag drawn once for each start
START_SIGN = 4  # random corners of the eps-box

# 16..31: choices and noise around the model; draw = restart, EOT pass or step
TARGET = 16  # random target classes
EOT = 17  # passes of a randomised model or defence
INPUT_DIVERSITY = 18  # resize, padding and its probability
INPUT_NOISE = 19  # noise added to inputs: smoothing, variance-tuned gradients
DROPOUT = 20  # dropout and stochastic depth
SAMPLE_CHOICE = 21  # which other samples a sample is mixed with

# 32..47: query attacks; draw = query
SQUARE_INIT = 32  # stripes of the first query
SQUARE_POSITION = 33  # where the next square lies
SQUARE_SIGN = 34  # its signs
SQUARE_CHOICE = 35  # its transposition and whatever else is chosen once a query
QUERY_DIRECTION = 36  # search directions of other query attacks

# 64..79: data; draw = epoch
DATA_ORDER = 64
AUGMENT_CROP = 65
AUGMENT_FLIP = 66
AUGMENT_ERASE = 67  # Cutout, random erasing
AUGMENT_COLOUR = 68
AUGMENT_MIX = 69  # MixUp, CutMix

USER = 192  # 192..255 are never taken by fastadv

DRAW_BITS = 24  # draws are taken modulo 2^24
