"""The loader on the device: what it yields, in which order, after any interruption and shard."""

import math

import pytest
import torch

from fastadv.data import DeviceLoader, epoch_order, to_unit_interval
from fastadv.kernels.noise import streams
from fastadv.ops import augment_batch, random_start
from fastadv.ops.noise import philox
from fastadv.wrappers import Normalized

SAMPLES = 23


def _set(device="cpu", shape=(3, 5, 4)):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (SAMPLES, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (SAMPLES,), generator=generator)
    return images.to(device), labels.to(device)


def _bytes(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def _loader(device="cpu", **settings):
    return DeviceLoader(*_set(device), **dict(batch_size=4, seed=5) | settings)


def _indices(batches):
    """The index of each batch as lists, of a loader with indexed=True."""
    return [batch[2].tolist() for batch in batches]


def _same(one, other):
    """Batches with equal tensors, in number and in bits."""
    one, other = list(one), list(other)
    return len(one) == len(other) > 0 and all(
        len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_yields_every_sample_once_with_its_label(either_backend, device):
    images, labels = _set(device)
    loader = _loader(device, indexed=True)
    seen = []
    for x, y, index in loader:
        assert torch.equal(x, to_unit_interval(images[index]))
        assert torch.equal(y, labels[index]) and y.dtype == torch.int64
        seen += index.tolist()
    assert seen != sorted(seen) == list(range(SAMPLES))


def test_pairs_are_yielded_unless_indexed():
    pairs, triples = list(_loader()), list(_loader(indexed=True))
    assert _same(pairs, [batch[:2] for batch in triples])


def test_batches_are_those_of_the_augmentation_op(either_backend, device):
    images, labels = _set(device)
    how = dict(crop=2, padding="reflect", flip="alternate", dtype=torch.bfloat16)
    loader = _loader(device, indexed=True, channels_last=True, **how)
    for epoch in range(2):
        for x, _, index in loader:
            expected = augment_batch(
                images, index, seed=5, epoch=epoch, channels_last=True, **how
            ).x
            assert torch.equal(x, expected) and x.stride() == expected.stride()


def test_mean_and_std_normalise_as_the_model_wrapper_does(either_backend, device):
    images, _ = _set(device)
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    wrapper = Normalized(torch.nn.Identity(), mean, std).to(device)
    loader = _loader(device, indexed=True, mean=mean, std=std)
    for x, _, index in loader:
        assert torch.equal(x, wrapper(to_unit_interval(images[index])))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("drop_last", [False, True])
def test_len_is_the_number_of_batches(batch_size, drop_last):
    if drop_last and batch_size > SAMPLES:
        with pytest.raises(ValueError, match="images must fill one batch at least; got 23"):
            _loader(batch_size=batch_size, drop_last=True)
        return
    loader = _loader(batch_size=batch_size, drop_last=drop_last)
    sizes = [len(y) for _, y in loader]
    whole, rest = divmod(SAMPLES, batch_size)
    assert sizes == [batch_size] * whole + [rest] * (rest > 0 and not drop_last)
    assert len(loader) == len(sizes)


def test_without_shuffle_the_order_is_that_of_the_set():
    loader = _loader(shuffle=False, indexed=True)
    for _ in range(2):
        assert sum(_indices(loader), []) == list(range(SAMPLES))


def test_the_order_is_the_sort_of_the_words_of_the_epoch():
    for epoch in (0, 3):
        words = philox.words(9, torch.tensor([0]), streams.DATA_ORDER, epoch, 50)[0].tolist()
        expected = sorted(range(50), key=lambda i: (words[i], i))
        assert epoch_order(50, 9, epoch, torch.device("cpu")).tolist() == expected


# The order is for ever.
@pytest.mark.parametrize(
    "samples, seed, epoch, first, last",
    [
        (10, 2026, 0, [9, 7, 0, 8, 5], [2, 4, 6, 3, 1]),
        (10, 2026, 1, [4, 8, 3, 9, 2], [7, 5, 1, 6, 0]),
        (60000, 0, 5, [4854, 47872, 58185, 11355], [22803, 9117, 33084, 37979]),
    ],
)
def test_golden_orders(samples, seed, epoch, first, last, device):
    order = epoch_order(samples, seed, epoch, device).tolist()
    assert order[: len(first)] == first and order[-len(last) :] == last
    assert sorted(order) == list(range(samples))


def test_equal_words_keep_their_order(monkeypatch):
    monkeypatch.setattr(philox, "words", lambda *args: torch.tensor([[3, 1, 3, 1, 1]]))
    assert epoch_order(5, 0, 0, torch.device("cpu")).tolist() == [1, 3, 4, 0, 2]


def test_orders_of_seeds_and_epochs_have_nothing_in_common():
    cpu = torch.device("cpu")
    orders = [epoch_order(1000, s, e, cpu) for s, e in ((0, 0), (0, 1), (1, 0), (2**32, 0))]
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert (one == other).sum() < 10  # one expected
            assert abs(torch.corrcoef(torch.stack((one, other)).double())[0, 1]) < 0.15


def test_each_iter_begins_the_next_epoch():
    loader = _loader(indexed=True, flip="random")
    assert loader.epoch == 0
    first = []
    for batch in loader:
        assert loader.epoch == 0
        first.append(batch)
    assert loader.epoch == 1
    second = list(loader)
    assert not _same(first, second)
    loader.set_epoch(0)
    assert _same(loader, first) and _same(loader, second)


def test_an_epoch_that_is_broken_off_is_not_taken_up_again():
    loader = _loader(indexed=True)
    for _ in loader:
        break
    assert loader.epoch == 0
    other = _loader(indexed=True)
    other.set_epoch(1)
    assert _same(loader, other)


def test_iter_begins_the_epoch_before_the_first_batch_is_asked_for():
    loader = _loader(indexed=True)
    one, other = iter(loader), iter(loader)
    assert loader.epoch == 1
    expected = _loader(indexed=True)
    assert _same(one, expected) and _same(other, expected)


def test_set_epoch_during_an_epoch_begins_it_anew():
    loader = _loader(indexed=True)
    next(iter(loader))
    loader.set_epoch(0)
    assert _same(loader, _loader(indexed=True))


@pytest.mark.parametrize("batches", [0, 1, 3, 6, 8])
def test_a_resumed_run_yields_exactly_the_remaining_batches(batches, device):
    settings = dict(indexed=True, crop=1, flip="random")

    def run(loader, left):
        """The next `left` batches, over epochs; then the state, as a checkpoint would take it."""
        got = []
        while True:
            for batch in loader:
                got.append(batch)
                if len(got) == left:
                    return got, loader.state_dict()

    everything, _ = run(_loader(device, **settings), 14)
    loader = _loader(device, **settings)
    before, state = run(loader, batches) if batches else ([], loader.state_dict())
    resumed = _loader(device, **settings)
    resumed.load_state_dict(state)
    after, _ = run(resumed, 14 - batches)
    assert _same(before + after, everything)


def test_states_between_and_at_the_end_of_epochs():
    loader = _loader()
    states = [loader.state_dict()]
    for _ in loader:
        states.append(loader.state_dict())
    states.append(loader.state_dict())
    where = [(state["epoch"], state["batch"]) for state in states]
    assert where == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (1, 0)]
    resumed = _loader()
    resumed.load_state_dict(states[6])  # saved in the last batch: nothing is left of epoch 0
    assert list(resumed) == [] and resumed.epoch == 1
    assert len(list(resumed)) == 6


def test_set_epoch_keeps_a_restored_position_of_that_epoch():
    state = dict(_loader().state_dict(), epoch=2, batch=4)
    loader = _loader()
    loader.load_state_dict(state)
    loader.set_epoch(2)
    assert len(list(loader)) == 2
    loader.load_state_dict(state)
    loader.set_epoch(3)
    assert len(list(loader)) == 6


def test_a_stale_iterator_does_not_move_the_position():
    loader = _loader()
    stale = iter(loader)
    next(stale)
    loader.load_state_dict(dict(loader.state_dict(), epoch=5, batch=2))
    assert len(list(stale)) == 5
    assert (loader.epoch, loader.state_dict()["batch"]) == (5, 2)


@pytest.mark.parametrize(("world_size", "drop_last"), [(2, False), (2, True), (4, True)])
def test_the_shards_of_all_ranks_are_the_batches_of_one_process(world_size, drop_last):
    settings = dict(indexed=True, crop=1, flip="random", drop_last=drop_last)
    whole = list(_loader(**settings))
    ranks = [list(_loader(rank=r, world_size=world_size, **settings)) for r in range(world_size)]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*shards, strict=True))
        for shards in zip(*ranks, strict=True)
    ]
    assert _same(joined, whole)
    assert all(len(y) == 4 // world_size for _, y, _ in ranks[-1][:5])


def test_a_last_batch_that_leaves_a_process_without_rows_is_refused():
    with pytest.raises(ValueError, match="got 23 images in batches of 4 for 4 .*drop_last=True"):
        _loader(world_size=4)


def test_a_run_resumes_on_another_number_of_processes():
    loader = _loader(indexed=True)
    batches = iter(loader)
    next(batches)
    shards = [_loader(indexed=True, rank=r, world_size=2) for r in (0, 1)]
    for shard in shards:
        shard.load_state_dict(loader.state_dict())
    joined = [one + other for one, other in zip(*map(_indices, shards), strict=True)]
    assert joined == _indices(batches)


def test_a_fused_start_is_random_start_of_the_batch(either_backend, device):
    settings = dict(indexed=True, crop=1, flip="random")
    loader, plain = _loader(device, **settings), _loader(device, **settings)
    started = loader.with_start(eps=0.3, seed=11, bounds=None)
    assert len(started) == len(loader) == 6
    for epoch in range(2):
        batches = list(started)
        assert _same([batch[:3] for batch in batches], plain)
        for x, _, index, x_start in batches:
            expected = random_start(x, eps=0.3, seed=11, sample_ids=index, draw=epoch, bounds=None)
            assert torch.equal(x_start, expected)
    assert loader.epoch == 2


def test_a_fused_start_stays_in_bounds_unless_told_otherwise(either_backend, device):
    starts = torch.cat([batch[3] for batch in _loader(device).with_start(eps=0.5)])
    free = torch.cat([batch[3] for batch in _loader(device).with_start(eps=0.5, bounds=None)])
    assert starts.min() == 0 and starts.max() == 1
    assert torch.equal(starts, free.clamp(0, 1)) and free.min() < 0


def test_starts_and_plain_batches_share_the_position():
    loader = _loader(indexed=True)
    started = iter(loader.with_start(eps=0.1))
    next(started)
    resumed = _loader(indexed=True)
    resumed.load_state_dict(loader.state_dict())
    assert _same([batch[:3] for batch in started], resumed)


def test_a_batch_is_one_op_and_two_slices(either_backend, device):
    operators = []

    class Operators(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operators.append(str(func))
            return func(*args, **(kwargs or {}))

    loader = _loader(device, crop=1, flip="random")
    for batches in (iter(loader), iter(loader.with_start(eps=0.1))):
        next(batches)  # the order of the epoch
        operators.clear()
        with Operators():
            next(batches)
        # order and labels of the epoch are sliced: views
        assert sorted(operators) == ["aten.slice.Tensor"] * 2 + ["fastadv.augment_batch.default"]


def test_labels_of_a_batch_are_not_those_of_the_set():
    images, labels = _set()
    before = labels.clone()
    for _, y in DeviceLoader(images, labels, batch_size=4, shuffle=False):
        y.fill_(0)
    assert torch.equal(labels, before)


def test_no_generator_is_touched_and_nothing_is_written():
    images, labels = _set()
    before, state = images.clone(), torch.get_rng_state()
    list(DeviceLoader(images, labels, batch_size=4, crop=1, flip="random").with_start(eps=0.1))
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_images_that_are_not_contiguous_are_copied_once():
    images, labels = _set()
    last = images.contiguous(memory_format=torch.channels_last)
    loader = DeviceLoader(last, labels, batch_size=4)
    assert loader.images.is_contiguous()
    assert _same(loader, DeviceLoader(images, labels, batch_size=4))
    assert DeviceLoader(images, labels, batch_size=4).images.data_ptr() == images.data_ptr()


def test_labels_follow_the_images_to_their_device(device):
    images, labels = _set()
    for x, y in DeviceLoader(images, labels, batch_size=4, device=device):
        assert x.device.type == y.device.type == device.type


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(images=torch.rand(4, 1, 2, 2)), TypeError, "images must be uint8; got .*float32"),
        (dict(images=_bytes(4, 2, 2)), ValueError, r"images must be .*\(N, C, H, W\)"),
        (dict(labels=torch.zeros(4)), TypeError, "labels must be int64; got .*float32.*int64"),
        (dict(labels=torch.arange(4)[:, None]), ValueError, r"labels must be \(4,\).*\(4, 1\)"),
        (dict(images=_bytes(0, 1, 2, 2), labels=torch.arange(0)), ValueError, "got 0 images"),
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
    settings = dict(images=_bytes(4, 1, 2, 2), labels=torch.arange(4), batch_size=2) | change
    with pytest.raises(error, match=message):
        DeviceLoader(settings.pop("images"), settings.pop("labels"), **settings)


def test_wrong_positions_and_starts_are_errors():
    loader = _loader()
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
        _loader(mean=(0.5,) * 3, std=(0.5,) * 3).with_start(eps=0.1)
