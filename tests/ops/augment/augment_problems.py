"""Batches of bytes, and their augmentation one pixel at a time."""

import torch

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox

SHAPES = [(9, 3, 8, 8), (6, 1, 7, 5), (5, 3, 5, 11), (4, 2, 33, 31)]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def random_bytes(shape, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def index_of(samples, device="cpu"):
    """Out of order, and one sample twice."""
    return torch.tensor([samples - 1, 0, 2, 0, 1], device=device)


def _word(seed, sample, purpose, draw, element):
    return int(philox.words(seed, torch.tensor([sample]), purpose, draw, 2)[0, element])


def plain(images, index, *, seed=0, epoch=0, crop=0, padding="zeros", flip=None):
    """One pixel at a time, in python integers: the bytes that augment_batch scales."""
    _, channels, height, width = images.shape
    batch = torch.zeros((len(index), *images.shape[1:]), dtype=torch.uint8)
    for row, sample in enumerate(index.tolist()):
        down = (_word(seed, sample, streams.AUGMENT_CROP, epoch, 0) * (2 * crop + 1) >> 32) - crop
        right = (_word(seed, sample, streams.AUGMENT_CROP, epoch, 1) * (2 * crop + 1) >> 32) - crop
        mirrored = False
        if flip == "random":
            mirrored = _word(seed, sample, streams.AUGMENT_FLIP, epoch, 0) % 2 == 1
        if flip == "alternate":
            mirrored = (_word(seed, sample, streams.AUGMENT_FLIP, 0, 0) + epoch) % 2 == 1
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + down, (width - 1 - x if mirrored else x) + right
                if padding == "reflect":
                    from_y, from_x = _mirror(from_y, height), _mirror(from_x, width)
                if 0 <= from_y < height and 0 <= from_x < width:
                    batch[row, :, y, x] = images[sample, :, from_y, from_x].cpu()
    return batch


def _mirror(position, size):
    if position < 0:
        return -position
    return 2 * (size - 1) - position if position >= size else position
