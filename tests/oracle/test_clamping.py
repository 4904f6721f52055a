"""How a lost gradient shows at the bounds, where to differentiate instead: values by hand."""

import pytest
import torch

from fastadv.ops import compiled
from fastadv.oracle import clamping

UNIT = (0.0, 1.0)


def _rows(*rows):
    return torch.tensor(rows)


def _said(grad, x):
    """(kept, lost) at the lower and the upper bound of the first sample."""
    kept, lost = clamping.evidence(grad, x, UNIT)
    return kept[:, 0].tolist(), lost[:, 0].tolist()


NEITHER, BOTH = [False, False], [True, True]


def test_a_sample_has_lost_it_if_its_entries_at_a_bound_lack_what_those_inside_have():
    x = _rows([0.0, 0.0, 0.5, 0.4, 1.0])
    cases = {  # gradient -> (kept, lost), each at the lower and the upper bound
        (0.0, -0.0, 1.0, -2.0, 0.0): (NEITHER, BOTH),
        (0.0, 0.0, 1.0, -2.0, 3.0): ([False, True], [True, False]),
        (3.0, 3.0, 1.0, -2.0, 0.0): ([True, False], [False, True]),
        (0.0, 3.0, 1.0, -2.0, 1.0): (BOTH, NEITHER),
        (0.0, 0.0, 0.0, -2.0, 0.0): (NEITHER, NEITHER),  # half of those inside have none
        (0.0, 0.0, 0.0, 0.0, 0.0): (NEITHER, NEITHER),
    }
    for grad, expected in cases.items():
        assert _said(_rows(grad), x) == expected, grad


def test_without_entries_at_a_bound_nothing_is_told_and_without_any_inside_all_is_suspect():
    inside, outermost = _rows([0.2, 0.3, 0.9]), _rows([0.0, 0.0, 1.0])
    assert _said(torch.ones(1, 3), inside) == (NEITHER, NEITHER)
    assert _said(torch.zeros(1, 3), outermost) == (NEITHER, BOTH)
    assert _said(torch.ones(1, 3), outermost) == (BOTH, NEITHER)


def test_what_some_samples_keep_at_a_bound_the_others_have_not_lost_by_a_clamp():
    """As behind a crop, where of some samples all that lies at a bound is cropped."""
    x = _rows([0.0, 0.5, 0.5], [0.0, 0.5, 0.5])
    kept, lost = clamping.evidence(_rows([0.0, 1.0, 1.0], [2.0, 1.0, 1.0]), x, UNIT)
    assert kept.tolist() == [[True, True], [False, False]] and not lost.any()


def test_entries_outside_the_bounds_are_not_at_them():
    x, grad = _rows([-0.1, 0.5, 0.6, 1.2]), _rows([0.0, 1.0, 1.0, 0.0])
    assert _said(grad, x) == (NEITHER, NEITHER)
    assert torch.equal(clamping.moved_inside(x, UNIT, 0.25), x)


@pytest.mark.parametrize("bounds", [UNIT, (-1.0, 1.0), (0.0, 255.0), (-2.5, 0.5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_entries_move_by_the_least_amount_that_is_not_rounded_away(dtype, bounds):
    low, high = bounds
    width = high - low
    x = torch.tensor([low, low + width / 2, high], dtype=dtype)
    amounts = clamping._amounts(dtype, bounds)
    assert amounts == sorted(amounts) and amounts[0] > 0
    if dtype in (torch.float64, torch.float32):
        assert amounts[-1] <= 1e-6 * width
    for amount in amounts:
        moved = clamping.moved_inside(x, bounds, amount)
        assert moved[1] == x[1]
        assert bool(((moved - x).abs().double() <= 2 * amount).all())  # rounded once
        if dtype != torch.float64 and amount == amounts[0] and low == 0:
            assert moved[0] > low and moved[2] < high
    assert moved[0] > low and moved[2] < high


def _clamped(weight):
    def gradient(x):
        leaf = x.clone().requires_grad_()
        logits = torch.nn.functional.hardtanh(leaf, 0, 1) @ weight
        return clamping.gradient_of(logits, leaf)

    return gradient


def test_the_second_look_finds_the_finest_amount_in_float32_and_float64():
    for dtype in (torch.float32, torch.float64):
        weight = torch.randn(6, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
        x = torch.tensor([[0.0, 0.0, 0.3, 0.6, 1.0, 1.0]], dtype=dtype)
        found = clamping.lost_at_bounds(_clamped(weight), x, UNIT)
        assert found == torch.finfo(dtype).eps / 2


def test_an_amount_that_the_model_rounds_away_is_made_larger():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0.0, 0.0, 0.3, 0.6, 1.0, 1.0]])
    asked = []

    def gradient(point):  # of a model that loses two bits of its input
        asked.append(point)
        return _clamped(weight)((point + 2.0) - 2.0)

    found = clamping.lost_at_bounds(gradient, x, UNIT)
    assert found == torch.finfo(torch.float32).eps / 2 * 4
    assert len(asked) == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x,  # keeps it
        lambda x: x * x * (1 - x) * (1 - x),  # flat at both bounds, and nearly so beside them
        lambda x: x.detach() * 0 + x[:, 2:3],  # has it for one entry alone
    ],
)
def test_what_does_not_clamp_is_not_said_to(function):
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0.0, 0.0, 0.3, 0.6, 1.0, 1.0]])

    def gradient(point):
        leaf = point.clone().requires_grad_()
        return clamping.gradient_of(function(leaf).expand(-1, 6) @ weight, leaf)

    assert clamping.lost_at_bounds(gradient, x, UNIT) == 0.0


def test_a_clamp_of_one_bound_is_found():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x = torch.tensor([[0.0, 0.0, 0.3, 0.6, 1.0, 1.0]])

    def gradient(point):
        leaf = point.clone().requires_grad_()
        return clamping.gradient_of(torch.relu(leaf) @ weight, leaf)

    assert clamping.lost_at_bounds(gradient, x, UNIT) > 0


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.5, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.skipif(bool(compiled.why_not()), reason=compiled.why_not())
def test_compiled_counts_have_the_evidence_of_the_others(bounds, dtype):
    low, high = bounds
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=dtype)

    lost = kept = 0
    for case in range(300):
        shape = (1 + case % 5, 1 + case % 37)
        x = low + (high - low) * uniform(*shape)
        x = x.where(uniform(*shape) > uniform(1), torch.tensor(low, dtype=dtype))
        x = x.where(uniform(*shape) > uniform(1), torch.tensor(high, dtype=dtype))
        grad = uniform(*shape) * (uniform(*shape) < uniform(1))
        if case % 3 == 0:
            grad *= x > low + 1e-3
        if case % 7 == 0:
            grad[0, -1] = torch.nan
        expected = clamping.evidence(grad, x, bounds)
        counts = clamping.counted(grad, x, bounds)
        assert counts.is_on_host
        in_torch = clamping.counted(grad, x, bounds, loops=False)
        assert all(map(torch.equal, map(torch.from_numpy, counts), in_torch))
        found = clamping.judged(counts, shape[1])
        assert all(map(torch.equal, map(torch.from_numpy, found), expected))
        kept, lost = kept + int(found.kept.sum()), lost + int(found.lost.sum())
    assert min(lost, kept) > 0
