"""Which crops and flips are drawn: by sample, seed and epoch, in committed bits."""

import pytest
import torch
from augment_problems import random_bytes

from fastadv.data import to_unit_interval
from fastadv.kernels.noise import streams
from fastadv.ops import augment_batch, augment_batch_reference
from fastadv.ops.noise import philox


@pytest.mark.parametrize("rows", [[0], [4], [3, 1], [4, 3, 2, 1, 0]], ids=str)
def test_a_sample_is_augmented_alike_in_any_batch(rows, implementation, device):
    images, index = random_bytes((5, 3, 9, 9), device), torch.arange(5, device=device)
    how = dict(epoch=4, crop=4, flip="random", start_eps=0.1)
    together, alone = (augment_batch(images, i, **how) for i in (index, index[rows]))
    assert torch.equal(alone.x, together.x[rows])
    assert alone.x_start is not None and together.x_start is not None
    assert torch.equal(alone.x_start, together.x_start[rows])


def test_an_alternating_flip_is_undone_in_the_next_epoch(implementation, device):
    images, index = random_bytes((40, 1, 2, 3), device), torch.arange(40, device=device)
    first, second, third = (
        augment_batch(images, index, epoch=epoch, flip="alternate").x for epoch in range(3)
    )
    assert torch.equal(first, third) and torch.equal(first, second.flip(3))
    kept = (first == to_unit_interval(images)).flatten(1).all(1).sum()
    assert 8 < kept < 32  # half of 40 in the first epoch; beyond 4 deviations otherwise


def test_seeds_epochs_and_samples_are_cropped_elsewhere(implementation, device):
    images = random_bytes((1, 1, 12, 12), device).expand(64, 1, 12, 12).contiguous()
    index = torch.arange(64, device=device)
    variants = (dict(), dict(seed=1), dict(seed=2**32), dict(epoch=1))
    batches = [augment_batch(images, index, crop=4, **variant).x for variant in variants]
    for i, one in enumerate(batches):
        assert len(one.flatten(1).unique(dim=0)) > 32  # 64 draws of 81 offsets: 44 expected
        for other in batches[:i]:
            assert (one == other).flatten(1).all(1).sum() < 8  # 64 / 81 expected


def test_crops_are_uniform_over_all_offsets():
    words = philox.words(0, torch.arange(8100), streams.AUGMENT_CROP, 0, 2)
    where = ((words * 9) >> 32) @ torch.tensor([9, 1])
    counts = torch.bincount(where, minlength=81)
    assert counts.min() > 50 and counts.max() < 150  # 100 each, 5 deviations
    image = torch.arange(81, dtype=torch.uint8).view(1, 1, 9, 9).expand(8100, 1, 9, 9).contiguous()
    middle = augment_batch_reference(image, torch.arange(8100), crop=4).x[:, 0, 4, 4]
    assert torch.equal((middle * 255).round().long(), where)


# The layout is for ever: [top, left] of the crop with pad 4, and the flips of seven epochs.
GOLDEN_SAMPLES = [0, 1, 2, 59999]


GOLDEN_CROPS = [[4, 5], [1, 3], [2, 2], [5, 7]]
GOLDEN_RANDOM = ["0001000", "0010110", "1011000", "0011101"]
GOLDEN_ALTERNATE = ["0101010", "0101010", "1010101", "0101010"]


def test_golden_crops_and_flips(implementation, device):
    position = torch.arange(81, dtype=torch.uint8, device=device).view(1, 1, 9, 9)
    images, index = position.repeat(60000, 1, 1, 1), torch.tensor(GOLDEN_SAMPLES, device=device)
    middle = augment_batch(images, index, seed=2026, epoch=3, crop=4).x[:, 0, 4, 4]
    where = (middle * 255).round().long()
    assert torch.stack((where // 9, where % 9), 1).tolist() == GOLDEN_CROPS
    for flip, expected in (("random", GOLDEN_RANDOM), ("alternate", GOLDEN_ALTERNATE)):
        corners = [
            augment_batch(images, index, seed=2026, epoch=epoch, flip=flip).x[:, 0, 0, 0] > 0
            for epoch in range(7)
        ]
        flips = ["".join(map(str, row)) for row in torch.stack(corners, 1).int().tolist()]
        assert flips == expected
