"""Philox draws on a CPU, by numpy: the bits of eager torch."""

import numpy as np
import pytest
import torch
from philox_problems import KINDS, keys

from fastadv.kernels.noise import streams
from fastadv.ops import backend
from fastadv.ops.noise import cpu as cpu_philox
from fastadv.ops.noise import philox
from fastadv.ops.noise import reference as eager_philox


def _torch_words(seed, ids, stream, calls):
    """What any device but the CPU draws."""
    counter = (torch.arange(calls)[None], stream[:, None], ids[:, None], ids[:, None] >> 32)
    c0, c1, c2, c3 = (word & 0xFFFFFFFF for word in counter)
    return torch.stack(eager_philox.philox4x32(c0, c1, c2, c3, seed), dim=-1).flatten(1)


@pytest.mark.parametrize("seed", [0, -1, 0xA4093822_299F31D0, 2**64 - 2])
@pytest.mark.parametrize(
    "batch, calls",
    # one block; rows and calls that no block divides; rows longer than a block; columns of one
    [(1, 1), (7, 5), (100, 196), (211, 197), (3, 20_001), (2, 40_003), (20_001, 1), (0, 3), (3, 0)],
)
def test_numpy_draws_the_words_of_eager_torch(batch, calls, seed):
    generator = torch.Generator().manual_seed(batch + calls)
    ids = torch.randint(-(2**63), 2**63 - 1, (batch,), generator=generator)
    stream = torch.randint(2**32, (batch,), generator=generator)
    drawn = cpu_philox.words(seed, ids.numpy(), stream.numpy(), calls)
    assert drawn.shape == (batch, 4 * calls) and drawn.dtype == np.uint32
    assert np.array_equal(drawn, _torch_words(seed, ids, stream, calls).numpy())


def test_the_size_of_a_block_changes_no_bit(monkeypatch):
    ids, stream = np.arange(5) - 2, np.full(5, 77)
    expected = cpu_philox.words(3, ids, stream, 33)
    for block in (1, 2, 7, 32, 34, 100):
        monkeypatch.setattr(cpu_philox, "_BLOCK", block)
        assert np.array_equal(cpu_philox.words(3, ids, stream, 33), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_numpy_give_the_same_draws(kind):
    ids, draws = keys("cpu")
    drawn = []
    for source in (eager_philox.EAGER, cpu_philox.NUMPY):
        draw = getattr(source, kind)
        drawn.append([draw(-5, ids, streams.USER, draws, count) for count in (0, 1, 2, 999, 4000)])
    for one, other in zip(*drawn, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def test_which_draws_run_is_the_registrys_choice():
    ids = torch.arange(2)
    assert philox._draws(ids) is cpu_philox.NUMPY
    assert philox._draws(ids.to("meta")) is eager_philox.EAGER
    with backend.use_backend("reference"):
        assert philox._draws(ids) is eager_philox.EAGER
