"""A loader of 23 random images, and what can be compared of its batches."""

import torch

from fastadv.data import DeviceLoader

SAMPLES = 23


def small_set(device="cpu", shape=(3, 5, 4)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SAMPLES, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (SAMPLES,), generator=generator)
    return images.to(device), labels.to(device)


def zero_bytes(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def small_loader(device="cpu", **settings):
    return DeviceLoader(*small_set(device), **dict(batch_size=4, seed=5) | settings)


def indices_of(batches):
    """The index of each batch as lists, of a loader with indexed=True."""
    return [batch[2].tolist() for batch in batches]


def same_batches(one, other):
    """Batches with equal tensors, in number and in bits."""
    one, other = list(one), list(other)
    return len(one) == len(other) > 0 and all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)
    )
