"""The order of a loader on the device: by epochs, after any interruption, in any shard."""

import pytest
import torch
from small_loaders import SAMPLES, indices_of, same_batches, small_loader

from fastadv.data import epoch_order
from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox


def test_without_shuffle_the_order_is_that_of_the_set():
    loader = small_loader(shuffle=False, indexed=True)
    for _ in range(2):
        assert sum(indices_of(loader), []) == list(range(SAMPLES))


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
    loader = small_loader(indexed=True, flip="random")
    assert loader.epoch == 0
    first = []
    for batch in loader:
        assert loader.epoch == 0
        first.append(batch)
    assert loader.epoch == 1
    second = list(loader)
    assert not same_batches(first, second)
    loader.set_epoch(0)
    assert same_batches(loader, first) and same_batches(loader, second)


def test_an_epoch_that_is_broken_off_is_not_taken_up_again():
    loader = small_loader(indexed=True)
    for _ in loader:
        break
    assert loader.epoch == 0
    other = small_loader(indexed=True)
    other.set_epoch(1)
    assert same_batches(loader, other)


def test_iter_begins_the_epoch_before_the_first_batch_is_asked_for():
    loader = small_loader(indexed=True)
    one, other = iter(loader), iter(loader)
    assert loader.epoch == 1
    expected = small_loader(indexed=True)
    assert same_batches(one, expected) and same_batches(other, expected)


def test_set_epoch_during_an_epoch_begins_it_anew():
    loader = small_loader(indexed=True)
    next(iter(loader))
    loader.set_epoch(0)
    assert same_batches(loader, small_loader(indexed=True))


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

    everything, _ = run(small_loader(device, **settings), 14)
    loader = small_loader(device, **settings)
    before, state = run(loader, batches) if batches else ([], loader.state_dict())
    resumed = small_loader(device, **settings)
    resumed.load_state_dict(state)
    after, _ = run(resumed, 14 - batches)
    assert same_batches(before + after, everything)


def test_states_between_and_at_the_end_of_epochs():
    loader = small_loader()
    states = [loader.state_dict()]
    for _ in loader:
        states.append(loader.state_dict())
    states.append(loader.state_dict())
    where = [(state["epoch"], state["batch"]) for state in states]
    assert where == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (0, 6), (1, 0)]
    resumed = small_loader()
    resumed.load_state_dict(states[6])  # saved in the last batch: nothing is left of epoch 0
    assert list(resumed) == [] and resumed.epoch == 1
    assert len(list(resumed)) == 6


def test_set_epoch_keeps_a_restored_position_of_that_epoch():
    state = dict(small_loader().state_dict(), epoch=2, batch=4)
    loader = small_loader()
    loader.load_state_dict(state)
    loader.set_epoch(2)
    assert len(list(loader)) == 2
    loader.load_state_dict(state)
    loader.set_epoch(3)
    assert len(list(loader)) == 6


def test_a_stale_iterator_does_not_move_the_position():
    loader = small_loader()
    stale = iter(loader)
    next(stale)
    loader.load_state_dict(dict(loader.state_dict(), epoch=5, batch=2))
    assert len(list(stale)) == 5
    assert (loader.epoch, loader.state_dict()["batch"]) == (5, 2)


@pytest.mark.parametrize(("world_size", "drop_last"), [(2, False), (2, True), (4, True)])
def test_the_shards_of_all_ranks_are_the_batches_of_one_process(world_size, drop_last):
    settings = dict(indexed=True, crop=1, flip="random", drop_last=drop_last)
    whole = list(small_loader(**settings))
    ranks = [
        list(small_loader(rank=r, world_size=world_size, **settings)) for r in range(world_size)
    ]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*shards, strict=True))
        for shards in zip(*ranks, strict=True)
    ]
    assert same_batches(joined, whole)
    assert all(len(y) == 4 // world_size for _, y, _ in ranks[-1][:5])


def test_a_last_batch_that_leaves_a_process_without_rows_is_refused():
    with pytest.raises(ValueError, match="got 23 images in batches of 4 for 4 .*drop_last=True"):
        small_loader(world_size=4)


def test_a_run_resumes_on_another_number_of_processes():
    loader = small_loader(indexed=True)
    batches = iter(loader)
    next(batches)
    shards = [small_loader(indexed=True, rank=r, world_size=2) for r in (0, 1)]
    for shard in shards:
        shard.load_state_dict(loader.state_dict())
    joined = [one + other for one, other in zip(*map(indices_of, shards), strict=True)]
    assert joined == indices_of(batches)
