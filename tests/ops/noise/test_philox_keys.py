"""Philox draws are a function of their key alone, in any batch and of any length."""

import pytest
import torch
from philox_problems import KINDS, eager, keys
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox


def test_a_shorter_draw_is_the_beginning_of_a_longer_one(device):
    ids, draws = keys(device)
    for kind in KINDS:
        longer = eager(kind, 3, ids, draws, 1000)
        for count in (1, 2, 3, 4, 999):
            assert torch.equal(eager(kind, 3, ids, draws, count), longer[:, :count])


def test_a_sample_draws_the_same_in_any_batch(device):
    ids, draws = keys(device)
    order = torch.tensor([4, 0, 6, 2], device=device)
    for kind in KINDS:
        together = eager(kind, 3, ids, draws, 77)
        assert torch.equal(eager(kind, 3, ids[order], draws[order], 77), together[order])
        assert torch.equal(eager(kind, 3, ids[4:5], draws[4:5], 77), together[4:5])
        assert torch.equal(eager(kind, 3, ids[4:5], int(draws[4]), 77), together[4:5])


def test_every_part_of_the_key_counts(device):
    def draw(seed=1, sample_id=1, purpose=1, draw=1):
        ids = torch.tensor([sample_id], device=device)
        return philox.words(seed, ids, purpose, draw, 64)

    variants = [
        draw(), draw(seed=2), draw(seed=-1), draw(seed=1 + 2**32), draw(sample_id=2),
        draw(sample_id=-1), draw(sample_id=1 + 2**32), draw(purpose=2), draw(purpose=255),
        draw(draw=2), draw(draw=2**24 - 1),
    ]  # fmt: skip
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert (one == other).sum() == 0  # 64 words: a chance of 1e-8


def test_seeds_count_modulo_2_64(device):
    ids = torch.arange(3, device=device)
    for one, other in ((-1, 2**64 - 1), (5, 5 + 2**64), (2**63, -(2**63))):
        assert torch.equal(philox.words(one, ids, 0, 0, 8), philox.words(other, ids, 0, 0, 8))
        assert philox.signed_seed(one) == philox.signed_seed(other)


def test_random_integers_below_a_tensor_of_bounds(device):
    high = torch.tensor([1, 2, 10, 1000, 2**31], device=device).repeat(200)
    ids = torch.arange(1000, device=device)
    drawn = philox.random_integers(4, ids, streams.TARGET, 0, high)
    assert drawn.dtype == torch.int64 and (drawn >= 0).all() and (drawn < high).all()
    assert (drawn[0::5] == 0).all() and drawn[4::5].max() > 2**30
    alone = philox.random_integers(4, ids[3:4], streams.TARGET, 0, 1000)
    assert torch.equal(alone, drawn[3:4])


@pytest.mark.parametrize("kind", KINDS)
def test_draws_can_be_traced_and_faked(kind):
    ids = torch.arange(3)
    compiled = torch.compile(eager, fullgraph=True, backend="eager")
    assert torch.equal(compiled(kind, 4, ids, 1, 9), eager(kind, 4, ids, 1, 9))
    with FakeTensorMode():
        drawn = eager(kind, 4, torch.arange(3), 1, 9)
    assert isinstance(drawn, FakeTensor) and drawn.shape == (3, 9)


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_an_impossible_bound_is_an_error(high):
    with pytest.raises(ValueError, match=r"high must lie in \[1, 2\^31\]"):
        philox.random_integers(0, torch.arange(2), streams.TARGET, 0, high)


def test_no_generator_is_read_or_written():
    before = torch.get_rng_state()
    torch.manual_seed(1)
    one = philox.normals(0, torch.arange(2), 0, 0, 9)
    torch.manual_seed(2)
    assert torch.equal(philox.normals(0, torch.arange(2), 0, 0, 9), one)
    state = torch.get_rng_state()
    philox.random_integers(0, torch.arange(2), 0, 0, 9)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
