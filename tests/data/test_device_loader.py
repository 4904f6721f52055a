"""The loader on the device: what it yields, starts included, and what it refuses."""

import math

import pytest
import torch
from small_loaders import SAMPLES, same_batches, small_loader, small_set, zero_bytes

from fastadv.data import DeviceLoader, to_unit_interval
from fastadv.ops import augment_batch, random_start
from fastadv.wrappers import Normalized


def test_an_epoch_yields_every_sample_once_with_its_label(either_backend, device):
    images, labels = small_set(device)
    loader = small_loader(device, indexed=True)
    seen = []
    for x, y, index in loader:
        assert torch.equal(x, to_unit_interval(images[index]))
        assert torch.equal(y, labels[index]) and y.dtype == torch.int64
        seen += index.tolist()
    assert seen != sorted(seen) == list(range(SAMPLES))


def test_pairs_are_yielded_unless_indexed():
    pairs, triples = list(small_loader()), list(small_loader(indexed=True))
    assert same_batches(pairs, [batch[:2] for batch in triples])


def test_batches_are_those_of_the_augmentation_op(either_backend, device):
    images, labels = small_set(device)
    how = dict(crop=2, padding="reflect", flip="alternate", dtype=torch.bfloat16)
    loader = small_loader(device, indexed=True, channels_last=True, **how)
    for epoch in range(2):
        for x, _, index in loader:
            expected = augment_batch(
                images, index, seed=5, epoch=epoch, channels_last=True, **how
            ).x
            assert torch.equal(x, expected) and x.stride() == expected.stride()


def test_mean_and_std_normalise_as_the_model_wrapper_does(either_backend, device):
    images, _ = small_set(device)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    wrapper = Normalized(torch.nn.Identity(), mean, std).to(device)
    loader = small_loader(device, indexed=True, mean=mean, std=std)
    for x, _, index in loader:
        assert torch.equal(x, wrapper(to_unit_interval(images[index])))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("drop_last", [False, True])
def test_len_is_the_number_of_batches(batch_size, drop_last):
    if drop_last and batch_size > SAMPLES:
        with pytest.raises(ValueError, match="images must fill one batch at least; got 23"):
            small_loader(batch_size=batch_size, drop_last=True)
        return
    loader = small_loader(batch_size=batch_size, drop_last=drop_last)
    sizes = [len(y) for _, y in loader]
    whole, rest = divmod(SAMPLES, batch_size)
    assert sizes == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)
    assert len(loader) == len(sizes)


def test_a_fused_start_is_random_start_of_the_batch(either_backend, device):
    settings = dict(indexed=True, crop=1, flip="random")
    loader, plain = small_loader(device, **settings), small_loader(device, **settings)
    started = loader.with_start(eps=0.3, seed=11, bounds=None)
    assert len(started) == len(loader) == 6
    for epoch in range(2):
        batches = list(started)
        assert same_batches([batch[:3] for batch in batches], plain)
        for x, _, index, x_start in batches:
            expected = random_start(x, eps=0.3, seed=11, sample_ids=index, draw=epoch, bounds=None)
            assert torch.equal(x_start, expected)
    assert loader.epoch == 2


def test_a_fused_start_stays_in_bounds_unless_told_otherwise(either_backend, device):
    starts = torch.cat([batch[3] for batch in small_loader(device).with_start(eps=0.5)])
    free = torch.cat([batch[3] for batch in small_loader(device).with_start(eps=0.5, bounds=None)])
    assert starts.min() == 0 and starts.max() == 1
    assert torch.equal(starts, free.clamp(0, 1)) and free.min() < 0


def test_starts_and_plain_batches_share_the_position():
    loader = small_loader(indexed=True)
    started = iter(loader.with_start(eps=0.1))
    next(started)
    resumed = small_loader(indexed=True)
    resumed.load_state_dict(loader.state_dict())
    assert same_batches([batch[:3] for batch in started], resumed)


def test_a_batch_is_one_op_and_two_slices(either_backend, device):
    operators = []

    class Operators(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operators.append(str(func))
            return func(*args, **(kwargs or {}))

    loader = small_loader(device, crop=1, flip="random")
    for batches in (iter(loader), iter(loader.with_start(eps=0.1))):
        next(batches)  # the order of the epoch
        operators.clear()
        with Operators():
            next(batches)
        # order and labels of the epoch are sliced: views
        assert sorted(operators) == ["aten.slice.Tensor"] * 2 + ["fastadv.augment_batch.default"]


def test_labels_of_a_batch_are_not_those_of_the_set():
    images, labels = small_set()
    before = labels.clone()
    for _, y in DeviceLoader(images, labels, batch_size=4, shuffle=False):
        y.fill_(0)
    assert torch.equal(labels, before)


def test_no_generator_is_touched_and_nothing_is_written():
    images, labels = small_set()
    before, state = images.clone(), torch.get_rng_state()
    list(DeviceLoader(images, labels, batch_size=4, crop=1, flip="random").with_start(eps=0.1))
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_images_that_are_not_contiguous_are_copied_once():
    images, labels = small_set()
    last = images.contiguous(memory_format=torch.channels_last)
    loader = DeviceLoader(last, labels, batch_size=4)
    assert loader.images.is_contiguous()
    assert same_batches(loader, DeviceLoader(images, labels, batch_size=4))
    assert DeviceLoader(images, labels, batch_size=4).images.data_ptr() == images.data_ptr()


def test_labels_follow_the_images_to_their_device(device):
    images, labels = small_set()
    for x, y in DeviceLoader(images, labels, batch_size=4, device=device):
        assert x.device.type == y.device.type == device.type


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(images=torch.rand(4, 1, 2, 2)), TypeError, "images must be uint8; got .*float32"),
        (dict(images=zero_bytes(4, 2, 2)), ValueError, r"images must be .*\(N, C, H, W\)"),
        (dict(labels=torch.zeros(4)), TypeError, "labels must be int64; got .*float32.*int64"),
        (dict(labels=torch.arange(4)[:, None]), ValueError, r"labels must be \(4,\).*\(4, 1\)"),
        (dict(images=zero_bytes(0, 1, 2, 2), labels=torch.arange(0)), ValueError, "got 0 images"),
        (dict(batch_size=0), ValueError, "batch_size must be at least 1; got 0"),
        (dict(rank=2, world_size=2), ValueError, r"rank must lie in \[0, world_size\); got 2 of 2"),
        (dict(world_size=0), ValueError, "rank must lie in .* got 0 of 0"),
        (dict(batch_size=3, world_size=2), ValueError, "multiple of world_size; got 3 rows for 2"),
        (dict(crop=2, padding="reflect"), ValueError, "crop must be .*below height and width"),
        (dict(padding="same"), ValueError, "padding must be one of"),
        (dict(flip="often"), ValueError, "flip must be None or one of .*'often'"),
        (dict(dtype=torch.float64), ValueError, "dtype must be one of"),
        (dict(mean=(0.5,)), ValueError, "mean and std must be 1 floats each"),
        (dict(mean=(0.5, 0.5), std=(0.2, 0.2)), ValueError, "mean and std must be 1 floats each"),
        (dict(mean=(0.5,), std=(0.0,)), ValueError, "with std > 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_settings_are_errors(change, error, message):
    settings = dict(images=zero_bytes(4, 1, 2, 2), labels=torch.arange(4), batch_size=2) | change
    with pytest.raises(error, match=message):
        DeviceLoader(settings.pop("images"), settings.pop("labels"), **settings)


def test_wrong_positions_and_starts_are_errors():
    loader = small_loader()
    state = loader.state_dict()
    for name, value in (("batch_size", 8), ("seed", 6), ("shuffle", False), ("samples", 24)):
        with pytest.raises(ValueError, match=f"the state must be of a loader with {name}="):
            loader.load_state_dict(state | {name: value})
    with pytest.raises(ValueError, match=r"batch must lie in \[0, 6\]; got 7"):
        loader.load_state_dict(state | dict(batch=7))
    for epoch in (-1, 2**24):
        with pytest.raises(ValueError, match=r"epoch must lie in \[0, 2\^24\)"):
            loader.set_epoch(epoch)
        with pytest.raises(ValueError, match=r"epoch must lie in \[0, 2\^24\)"):
            loader.load_state_dict(state | dict(epoch=epoch))
    for eps in (-0.1, math.nan):
        with pytest.raises(ValueError, match="eps must not be negative; got"):
            loader.with_start(eps=eps)
    with pytest.raises(ValueError, match="eps is in pixel units.*Normalized"):
        small_loader(mean=(0.5,) * 3, std=(0.5,) * 3).with_start(eps=0.1)
