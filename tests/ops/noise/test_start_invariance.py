"""Random starts: the same point from any batch, layout and number of threads; others for others."""

import pytest
import torch
from start_problems import DEFAULTS, images, sample_ids

from fastadv.ops.noise.start import KINDS, random_start, random_start_reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_starts_at_the_same_point_in_any_batch(kind, implementation, device):
    x, ids = images((5, 3, 5, 7), device=device), sample_ids(5, device)
    draws = torch.tensor([0, 1, 5, 2**24 - 1, 0], dtype=torch.int32, device=device)
    options = dict(eps=0.25, seed=4, kind=kind)
    together = random_start(x, sample_ids=ids, draw=draws, **options)
    order = torch.tensor([3, 0, 2], device=device)
    some = random_start(x[order], sample_ids=ids[order], draw=draws[order], **options)
    assert torch.equal(some, together[order])
    for i in range(5):
        row = slice(i, i + 1)
        one = random_start(x[row], sample_ids=ids[row], draw=int(draws[i]), **options)
        assert torch.equal(one, together[row])


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_start_at_the_same_point_alone(kind, device):
    """The reference, where torch itself would sum a long row in another order."""
    x = images((16, 30011), device=device)
    together = random_start_reference(x, kind=kind, **DEFAULTS)
    ids = torch.tensor([7], device=device)
    alone = random_start_reference(x[7:8], kind=kind, sample_ids=ids, **DEFAULTS)
    assert torch.equal(alone, together[7:8])


@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind):
    x, threads = images((16, 3072)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = random_start_reference(x, kind=kind, **DEFAULTS)
        torch.set_num_threads(2)
        assert torch.equal(random_start_reference(x, kind=kind, **DEFAULTS), one)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_format_changes_no_bit_and_is_kept(kind, implementation, device):
    for shape, memory_format in (
        ((2, 3, 5, 6), torch.channels_last),
        ((1, 3, 2, 5, 4), torch.channels_last_3d),
    ):
        x = images(shape, device=device)
        expected = random_start(x, kind=kind, **DEFAULTS)
        assert expected.is_contiguous()
        last = random_start(x.contiguous(memory_format=memory_format), kind=kind, **DEFAULTS)
        assert torch.equal(last, expected) and last.is_contiguous(memory_format=memory_format)
        wide = torch.zeros(*shape[:-1], 2 * shape[-1], device=device)
        wide[..., ::2] = x
        assert torch.equal(random_start(wide[..., ::2], kind=kind, **DEFAULTS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_samples_and_draws_start_at_other_points(kind, implementation, device):
    x, ids = torch.full((1, 64), 0.5, device=device), torch.tensor([3], device=device)
    options = dict(seed=1, sample_ids=ids, draw=1) | dict(eps=0.4, kind=kind)
    variants = [{}, dict(seed=2), dict(seed=1 + 2**32), dict(sample_ids=ids + 1), dict(draw=2)]
    variants += [dict(sample_ids=ids + 2**32)]
    starts = [random_start(x, **options | variant) for variant in variants]
    for i, one in enumerate(starts):
        for other in starts[:i]:
            # soft thresholds leave most elements of l1_gaussian at x
            assert not torch.equal(one, other)
            if kind != "l1_gaussian":
                assert (one == other).sum() <= 16  # both at a bound, for clipped normals
