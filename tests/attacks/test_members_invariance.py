"""Contract C2 for AutoAttack's members: batch, order, schedule and lookahead."""

import functools

import pytest
import torch
from members import (
    MEMBERS,
    OF_THE_NEAREST,
    assert_varied,
    member,
    member_problem,
    of_one_target,
    takes,
)
from toy_models import NORMS, differing_fields, joined, rows_of, same_bits

import fastadv
from fastadv.attacks.square_search import slots as square_slots

SAMPLES = 39
LIKE_THE_AUTHORS = [m for m in MEMBERS if takes(m, keep="authors")]


def _way(batching, batch_size):
    return fastadv.Execution(batching=batching, batch_size=batch_size)


@functools.cache
def _found(name, norm):
    """What every other way must find: the plain loop over all samples at once."""
    p = member_problem(SAMPLES)
    result = member(name, norm).run(p.model, p.x, p.y, execution=_way("plain", None))
    assert_varied(result, p.y)
    return result


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_the_batch_size_and_the_schedule_change_no_bit(name, norm):
    p, attack = member_problem(SAMPLES), member(name, norm)
    for batching, batch_size in (("continuous", 7), ("continuous", 250), ("plain", 37)):
        got = attack.run(p.model, p.x, p.y, execution=_way(batching, batch_size))
        assert differing_fields(got, _found(name, norm)) == [], (batching, batch_size)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_samples_attacked_one_by_one_change_no_bit(name, norm):
    p, attack = member_problem(SAMPLES), member(name, norm)
    some = torch.arange(3)
    got = attack.run(p.model, p.x[some], p.y[some], execution=_way("continuous", 1))
    assert differing_fields(got, rows_of(_found(name, norm), some)) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_order_and_separate_calls_change_no_bit(name, norm):
    p, attack = member_problem(SAMPLES), member(name, norm)
    ids = torch.arange(SAMPLES) + (5 << 33)
    expected = attack.run(p.model, p.x, p.y, sample_ids=ids)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    parts = [
        attack.run(p.model, p.x[rows], p.y[rows], sample_ids=ids[rows], execution=how)
        for rows, how in ((order[:18], None), (order[18:], _way("continuous", 7)))
    ]
    assert differing_fields(joined(parts), rows_of(expected, order)) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [m for m in MEMBERS if m not in OF_THE_NEAREST])
def test_another_seed_changes_the_examples(name, norm):
    """Or the tests above would hold for an attack without randomness too."""
    p = member_problem(SAMPLES)
    other = member(name, norm, seed=1).run(p.model, p.x, p.y)
    assert not same_bits(_found(name, norm).x_adv, other.x_adv)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_bf16_is_invariant(name, norm):
    p = member_problem(SAMPLES, dtype=torch.bfloat16)
    attack = member(name, norm, **of_one_target(name))
    expected = attack.run(p.model, p.x, p.y, execution=_way("plain", None))
    assert expected.success.any() and not expected.success.all()
    got = attack.run(p.model, p.x, p.y, execution=_way("continuous", 7))
    assert differing_fields(got, expected) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_memory_that_is_not_written_changes_no_bit(name, norm):
    p, attack = member_problem(SAMPLES), member(name, norm)
    expected = _found(name, norm)
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
    try:
        got = attack.run(p.model, p.x, p.y, execution=_way("continuous", 7))
    finally:
        torch.use_deterministic_algorithms(False)
    assert differing_fields(got, expected) == []


@pytest.mark.parametrize(
    ("name", "norm", "keep"),
    [
        # every pair of a name, a norm and a way to keep, but not every triple
        (name, NORMS[(i + k) % 3], keep)
        for i, name in enumerate(LIKE_THE_AUTHORS)
        for k, keep in enumerate(("authors", "best"))
    ],
)
def test_the_other_ways_to_keep_are_invariant(name, norm, keep):
    p, attack = member_problem(SAMPLES), member(name, norm, keep=keep)
    expected = attack.run(p.model, p.x, p.y, execution=_way("plain", None))
    assert expected.success.any() and not expected.success.all()
    got = attack.run(p.model, p.x, p.y, execution=_way("continuous", 7))
    assert differing_fields(got, expected) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", LIKE_THE_AUTHORS)
def test_keeping_as_the_authors_changes_no_verdict(name, norm):
    p = member_problem(SAMPLES)
    ours, theirs = (
        member(name, norm, keep=keep, steps=20, scale=0.4).run(p.model, p.x, p.y)
        for keep in ("first_success", "authors")
    )
    assert ours.success.any() and not ours.success.all()
    assert torch.equal(ours.success, theirs.success)
    assert torch.equal(ours.step, theirs.step)
    assert theirs.backwards > ours.backwards


@pytest.fixture
def eager_to_look_ahead(monkeypatch):
    monkeypatch.setattr(square_slots, "_SETTLED", 1)
    monkeypatch.setattr(square_slots, "_REVIEW", 2)
    monkeypatch.setattr(square_slots, "_CPU_ROOM", 1000)


@pytest.mark.parametrize(("batching", "batch_size"), [("plain", 250), ("continuous", 7)])
@pytest.mark.parametrize("norm", NORMS)
def test_looking_ahead_changes_no_bit(norm, batching, batch_size, monkeypatch, request):
    p, attack = member_problem(12), member("square", norm, queries=30, restarts=1)
    expected = attack.run(p.model, p.x, p.y, execution=_way("plain", None))
    assert_varied(expected, p.y)
    request.getfixturevalue("eager_to_look_ahead")
    widths = []
    move = square_slots.SquareSlots._move
    monkeypatch.setattr(
        square_slots.SquareSlots,
        "_move",
        lambda self, state, *args: widths.append(state.lookahead) or move(self, state, *args),
    )
    got = attack.run(p.model, p.x, p.y, execution=_way(batching, batch_size))
    assert differing_fields(got, expected) == []
    assert max(widths) > 1
