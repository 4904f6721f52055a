"""The cascade: order, survivors only, its books, interruptions, the same bits in any batch."""

import copy
import dataclasses

import pytest
import torch
from members import custom_ensemble, member_problem, small
from toy_models import (
    NORMS,
    Counting,
    Recording,
    differing_fields,
    mixed_problem,
    rows_of,
    same_bits,
    threat_of,
)

import fastadv
from fastadv.attacks.call.result import Stage
from fastadv.attacks.square_search import slots as square_slots

SAMPLES = 40
_SCALE = {"linf": 0.6, "l2": 0.6, "l1": 0.8}


def _custom(norm, **more):
    return custom_ensemble(norm, scale=_SCALE[norm], **more)


def _standard(norm, **more):
    return small(fastadv.autoattack(threat_of(norm, _SCALE[norm]), **more))


def _run(ensemble, p, **more):
    batching, size = more.pop("batching", "continuous"), more.pop("batch_size", None)
    execution = fastadv.Execution(batching=batching, batch_size=size)
    return ensemble.run(p.model, p.x, p.y, execution=execution, **more)


def _differing(a, b, rows=None):
    """Fields that differ, the books of the ensemble with them."""
    different = differing_fields(a, b if rows is None else rows_of(b, rows))
    if not torch.equal(a.broken_by, b.broken_by if rows is None else b.broken_by[rows]):
        different.append("broken_by")
    if [s[:4] for s in a.stages] != [s[:4] for s in b.stages]:
        different.append("stages")
    return different


@pytest.mark.parametrize("make", [_custom, _standard])
@pytest.mark.parametrize("norm", NORMS)
def test_batch_schedule_and_order_change_no_bit(norm, make):
    p, ensemble = member_problem(SAMPLES), make(norm)
    expected = _run(ensemble, p, batching="plain")
    assert len(expected.broken_by.unique()) >= 4  # wrong, robust, and two stages that break some
    for batching, size in (("plain", 7), ("continuous", 7), ("continuous", 37)):
        assert _differing(_run(ensemble, p, batching=batching, batch_size=size), expected) == []
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    shuffled = dataclasses.replace(p, x=p.x[order], y=p.y[order])
    got = _run(ensemble, shuffled, sample_ids=order, batch_size=7)
    assert _differing(got, expected, order) == []
    for i in (3, 8):
        rows = torch.tensor([i])
        alone = dataclasses.replace(p, x=p.x[rows], y=p.y[rows])
        got = _run(ensemble, alone, sample_ids=rows, batch_size=1)
        assert set(_differing(got, expected, rows)) <= {"stages"}


@pytest.mark.parametrize("norm", NORMS)
def test_looking_ahead_in_square_changes_no_bit(norm, monkeypatch):
    p = member_problem(14)
    threat = threat_of(norm, 2 * _SCALE[norm])
    attacks = [fastadv.square(threat, queries=30, restarts=2)]
    ensemble = fastadv.autoattack(threat, "custom", attacks=attacks)
    expected = _run(ensemble, p)
    assert expected.stages[0].discarded == 0
    for name, value in (("_SETTLED", 1), ("_REVIEW", 2), ("_CPU_ROOM", 1000)):
        monkeypatch.setattr(square_slots, name, value)
    got = _run(ensemble, p)
    assert _differing(got, expected) == []
    for stage in got.stages:
        assert 0 < stage.discarded < stage.forwards


def test_discarded_proposals_of_all_slots_are_counted(monkeypatch):
    """In batches of any size, though a batch shrinks, and slots are filled again."""
    p = member_problem(12, wrong_every=20)
    attack = fastadv.square(threat_of("linf", 1.2), queries=40)
    for name, value in (("_SETTLED", 1), ("_REVIEW", 1), ("_CPU_ROOM", 1000)):
        monkeypatch.setattr(square_slots, name, value)
    evaluated, told = [0], []
    move = square_slots.SquareSlots._move

    def counting_move(self, state, loss, prediction):
        before = int(state.wasted.sum())
        move(self, state, loss, prediction)
        evaluated[0] += int(state.wasted.sum()) - before

    monkeypatch.setattr(square_slots.SquareSlots, "_move", counting_move)
    ensemble = fastadv.autoattack(attack.threat, "custom", attacks=[attack])
    for batching in ("plain", "continuous"):
        evaluated[0] = 0
        result = _run(ensemble, p, batching=batching, batch_size=8)
        told.append(result.stages[0].discarded)
        assert told[-1] == evaluated[0] > 0, batching


@pytest.mark.parametrize("version", ["standard", "custom"])
@pytest.mark.parametrize("norm", NORMS)
def test_keeping_as_the_authors_changes_no_verdict(norm, version):
    p = member_problem(SAMPLES)
    if version == "standard":
        ours, theirs = (_run(_standard(norm, keep=k), p) for k in ("first_success", "authors"))
    else:
        ensemble = _custom(norm)
        attacks = [
            a if a.constructor == "square" else dataclasses.replace(a, keep="authors")
            for a in ensemble.attacks
        ]
        ours = _run(ensemble, p)
        theirs = _run(fastadv.autoattack(ensemble.threat, version, attacks=attacks), p)
    assert ours.success.any() and not ours.success.all()
    assert torch.equal(ours.success, theirs.success)
    assert torch.equal(ours.broken_by, theirs.broken_by)


@pytest.mark.parametrize("norm", NORMS)
def test_the_books_agree(norm):
    p, ensemble = member_problem(SAMPLES), _custom(norm)
    counted = Counting(p.model)
    result = ensemble.run(counted, p.x, p.y)
    wrong = p.model(p.x).argmax(1) != p.y
    assert torch.equal(result.broken_by == -2, wrong)
    assert same_bits(result.x_adv[wrong], p.x[wrong]) and (result.step[wrong] == 0).all()
    assert (result.distance[wrong] == 0).all() and result.success[wrong].all()
    robust = result.broken_by == -1
    assert torch.equal(robust, ~result.success) and torch.equal(robust, result.step == -1)
    assert same_bits(result.x_adv[robust], p.x[robust])
    alive = int((~wrong).sum())
    assert len(result.stages) == len(ensemble.attacks)
    for index, (stage, attack) in enumerate(zip(result.stages, ensemble.attacks, strict=True)):
        assert stage.attack == repr(attack)
        assert stage.attacked == alive
        assert stage.broken == int((result.broken_by == index).sum())
        alive -= stage.broken
    assert [stage.name for stage in result.stages] == [
        "APGD-CE",
        "APGD-DLR",
        "FAB-T",
        "SQUARE",
        "APGD-T",
        "FAB",
    ]
    assert alive == int(robust.sum())
    # the look at the clean samples and, by the checks, four passes more of it and its first
    assert counted.forwards == result.forwards + 5 * SAMPLES
    assert counted.backwards == result.backwards == sum(s.backwards for s in result.stages)
    with torch.no_grad():
        logits = p.model(result.x_adv)
    assert torch.equal(result.prediction, logits.argmax(1))
    assert torch.equal(result.success, logits.argmax(1) != p.y)
    assert fastadv.contains(ensemble.threat, result.x_adv, p.x).all()
    rival = logits.scatter(1, p.y[:, None], -torch.inf).amax(1)
    expected = rival - logits.gather(1, p.y[:, None])[:, 0]
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_each_stage_is_its_attack_on_the_survivors(norm):
    p, ensemble = member_problem(SAMPLES), _custom(norm)
    result = _run(ensemble, p)
    alive = (result.broken_by != -2).nonzero()[:, 0]
    for index, attack in enumerate(ensemble.attacks):
        alone = attack.run(p.model, p.x[alive], p.y[alive], sample_ids=alive)
        fallen = alive[alone.success]
        assert torch.equal(fallen, (result.broken_by == index).nonzero()[:, 0]), index
        assert same_bits(result.x_adv[fallen], alone.x_adv[alone.success])
        assert torch.equal(result.step[fallen], alone.step[alone.success])
        alive = alive[~alone.success]


class Stopped(BaseException):
    pass


@pytest.mark.parametrize(
    ("make", "norm"), [*((_custom, norm) for norm in NORMS), (_standard, "linf")]
)
def test_an_interrupted_run_goes_on_to_the_same_bits(norm, make):
    p, ensemble = member_problem(SAMPLES), make(norm)
    expected = _run(ensemble, p)
    for last in range(1, len(ensemble.attacks) + 1):
        saved = []

        def stop(progress, last=last, saved=saved):
            if len(progress.stages) == last:
                saved.append(copy.deepcopy(progress))
                raise Stopped

        with pytest.raises(Stopped):
            _run(ensemble, p, on_stage=stop)
        more = []

        def note(progress, more=more):
            more.append(len(progress.stages))

        got = _run(ensemble, p, progress=saved[0], on_stage=note)
        assert _differing(got, expected) == [], last
        assert (got.forwards, got.backwards) == (expected.forwards, expected.backwards)
        assert more == list(range(last + 1, len(ensemble.attacks) + 1))


def test_a_model_that_lies_is_not_counted_and_warned_of():
    p = member_problem(SAMPLES, wrong_every=50)
    x, y = p.x[1:], p.y[1:]
    seen = Recording(p.model, lambda z: z.clone())
    ensemble = fastadv.autoattack(
        threat_of("linf", 0.6), "custom", attacks=[fastadv.apgd_ce(threat_of("linf", 0.6), steps=4)]
    )
    honest = ensemble.run(seen, x, y)
    fallen, calls = int(honest.success.sum()), len(seen.seen)
    assert fallen and len(seen.seen[-1]) == fallen
    count = []

    def liar(z):
        count.append(None)
        logits = p.model(z)
        if len(count) < calls:
            return logits
        return torch.nn.functional.one_hot(y[honest.success], 5).float()

    with pytest.warns(fastadv.AttackWarning, match="unconfirmed") as caught:
        result = ensemble.run(liar, x, y)
    assert {w.message.code: w.message.count for w in caught} == {"unconfirmed": fallen}
    assert not result.success.any() and (result.broken_by == -1).all()
    assert same_bits(result.x_adv, x)


@pytest.mark.filterwarnings("ignore:square_gains", "ignore:zero_radius")
@pytest.mark.parametrize("norm", NORMS)
def test_per_sample_radii_follow_their_samples(norm):
    p = member_problem(12, wrong_every=20)
    kind, eps = type(threat_of(norm)), threat_of(norm, _SCALE[norm]).eps
    radii = eps * torch.linspace(0.0, 2.0, 12)
    together = _run(custom_ensemble(norm, threat=kind(radii)), p)
    assert len(together.broken_by.unique()) >= 3
    for i in range(0, 12, 3):
        rows = torch.tensor([i])
        one = dataclasses.replace(p, x=p.x[rows], y=p.y[rows])
        alone = _run(custom_ensemble(norm, threat=kind(float(radii[i]))), one, sample_ids=rows)
        assert differing_fields(alone, rows_of(together, rows)) == [], i
        assert int(alone.broken_by) == int(together.broken_by[i])


def test_a_radius_of_zero_breaks_nothing():
    p = member_problem(12)
    with pytest.warns(fastadv.AttackWarning, match="zero_radius: 12 of 12") as caught:
        result = _run(custom_ensemble("linf", threat=fastadv.Linf(0.0)), p)
    assert len(caught) == 1
    assert same_bits(result.x_adv, p.x)
    assert torch.equal(result.success, result.broken_by == -2) and result.success.any()


def test_samples_that_all_fall_leave_the_later_attacks_nothing():
    p = mixed_problem(8, (3, 5, 6))
    counted = Counting(p.model)
    ensemble = custom_ensemble("linf", scale=8.0)
    result = ensemble.run(counted, p.x, p.y)
    assert result.success.all() and len(result.stages) == len(ensemble.attacks)
    emptied = [stage for stage in result.stages if stage.attacked == 0]
    assert emptied
    for stage in emptied:
        assert stage == Stage(stage.name, stage.attack, 0, 0, 0.0, 0, 0, 0)
