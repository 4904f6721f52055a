"""Batches of bytes: every pixel of every sample against plain loops, in both backends."""

import pytest
import torch
from augment_problems import MEAN, SHAPES, STD, index_of, plain, random_bytes

from fastadv.data import to_unit_interval
from fastadv.ops import augment_batch, random_start
from fastadv.wrappers import Normalized


@pytest.mark.parametrize("flip", [None, "random", "alternate"])
@pytest.mark.parametrize("crop, padding", [(0, "zeros"), (4, "zeros"), (4, "reflect")])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_every_pixel_is_the_one_that_plain_loops_choose(
    shape, crop, padding, flip, implementation, device
):
    images, index = random_bytes(shape, device), index_of(shape[0], device)
    for epoch in (0, 5):
        how = dict(seed=-3, epoch=epoch, crop=crop, padding=padding, flip=flip)
        x, x_start = augment_batch(images, index, **how)
        assert torch.equal(x.cpu(), to_unit_interval(plain(images, index, **how)))
        assert x_start is None and x.is_contiguous() and x.device == images.device


def test_a_crop_larger_than_the_image_may_leave_only_zeros(implementation, device):
    images, index = random_bytes((9, 1, 3, 2), device) | 1, torch.arange(9, device=device)
    x = augment_batch(images, index, crop=20).x
    assert torch.equal(x.cpu(), to_unit_interval(plain(images, index, crop=20)))
    assert (x.flatten(1) == 0).all(1).any()


def test_without_augmentation_it_is_indexing_and_scaling(implementation, device):
    images, index = random_bytes(SHAPES[0], device), index_of(9, device)
    assert torch.equal(augment_batch(images, index).x, to_unit_interval(images[index]))


def test_all_256_bytes_are_divided_with_one_rounding(implementation, device):
    images = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16)
    x = augment_batch(images, torch.zeros(1, dtype=torch.int64, device=device)).x
    exact = (torch.arange(256, dtype=torch.float64) / 255).float()
    assert torch.equal(x.flatten().cpu(), exact)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtypes_and_layouts_round_the_same_pixels_once(
    shape, dtype, channels_last, implementation, device
):
    images, index = random_bytes(shape, device), index_of(shape[0], device)
    how = dict(seed=8, epoch=2, crop=4, flip="random")
    expected = to_unit_interval(plain(images, index, **how)).to(dtype)
    x = augment_batch(images, index, dtype=dtype, channels_last=channels_last, **how).x
    assert x.dtype == dtype and torch.equal(x.cpu(), expected)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert x.stride() == torch.empty(x.shape, memory_format=memory_format).stride()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normalising_rounds_as_the_model_wrapper_does(dtype, channels_last, implementation, device):
    images, index = random_bytes(SHAPES[0], device), index_of(9, device)
    how = dict(crop=2, flip="alternate", channels_last=channels_last)
    mean, std = (torch.tensor(value, device=device) for value in (MEAN, STD))
    wrapper = Normalized(torch.nn.Identity(), MEAN, STD).to(device)
    expected = wrapper(augment_batch(images, index, **how).x).to(dtype)
    x = augment_batch(images, index, dtype=dtype, mean=mean, std=std, **how).x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "dtype, bounds",
    [
        (torch.float32, (0.0, 1.0)),
        (torch.float32, None),
        (torch.bfloat16, (0.25, 0.5)),
        (torch.float16, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
def test_the_start_is_random_start_of_the_augmented_batch(
    shape, dtype, channels_last, bounds, implementation, device
):
    images, index = random_bytes(shape, device), index_of(shape[0], device)
    how = dict(seed=1, epoch=2, crop=3, flip="random", dtype=dtype, channels_last=channels_last)
    x, x_start = augment_batch(
        images, index, start_eps=0.3, start_seed=-9, start_draw=7, bounds=bounds, **how
    )
    assert x_start is not None
    assert torch.equal(x, augment_batch(images, index, **how).x)
    expected = random_start(x, eps=0.3, seed=-9, sample_ids=index, draw=7, bounds=bounds)
    assert torch.equal(x_start, expected)
    assert x_start.dtype == dtype and x_start.stride() == x.stride()
    assert not torch.equal(x_start, x)


def test_a_start_of_radius_zero_is_x(implementation, device):
    images, index = random_bytes(SHAPES[0], device), index_of(9, device)
    x, x_start = augment_batch(images, index, start_eps=0.0, crop=1)
    assert x_start is not None and torch.equal(x, x_start)
