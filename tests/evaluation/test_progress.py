"""Progress moves at every look at the slots, never back, and ends at 100 %."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset
from toy_models import mixed_problem, same_bits, threat_of

import fastadv
from fastadv.engine import looks
from fastadv.evaluation import Status, evaluate, robustness_curve

N = 40


def problem():
    return mixed_problem(N)


def ensemble(version="custom", scale=0.4):
    threat = threat_of("linf", scale)
    if version != "custom":
        whole = fastadv.autoattack(threat, version)
        attacks = [
            replace(attack, queries=200) if attack.constructor == "square" else attack
            for attack in whole.attacks
        ]
        return replace(whole, attacks=tuple(attacks))
    attacks = [
        fastadv.apgd_ce(threat, steps=12),
        fastadv.apgd_t(threat, steps=8, n_target_classes=3),
        fastadv.fab_t(threat, steps=8, n_target_classes=2),
        fastadv.square(threat, queries=60),
    ]
    return fastadv.autoattack(threat, version="custom", attacks=attacks)


def statuses(attack, data=None, **more):
    p, seen = problem(), list[Status]()
    evaluate(p.model, (p.x, p.y) if data is None else data, attack, progress=seen.append, **more)
    return seen


def assert_moves_to_the_end(seen):
    percents = [status.percent for status in seen]
    assert percents[0] == 0 and percents == sorted(percents)
    assert percents[-1] == 100 and seen[-1].done == seen[-1].expected
    return percents


@pytest.mark.parametrize("batching", ["continuous", "plain"])
def test_an_ensemble_on_one_block_moves_within_every_stage(batching):
    seen = statuses(ensemble(), batch_size=8, execution=fastadv.Execution(batching=batching))
    percents = assert_moves_to_the_end(seen)
    assert len(set(percents)) > 20
    for name, group in itertools.groupby(seen, key=lambda status: status.attack):
        assert not name or len({status.percent for status in group}) >= 3, name


def test_a_stage_is_worth_what_it_costs():
    """Square, 60 queries, costs as much as 20 steps: of 12 + 24 + 16 + 20."""
    seen, p = statuses(ensemble(scale=1e-5), batch_size=8), problem()
    square = next(status for status in seen if status.attack == "SQUARE")
    assert square.percent == pytest.approx(100 - 100 * square.attacked / N * 20 / 72)
    assert square.attacked == int((p.model(p.x).argmax(1) == p.y).sum())


@pytest.mark.parametrize(
    "attack",
    [
        fastadv.pgd(threat_of("linf"), steps=6, restarts=3),
        fastadv.pgd(threat_of("linf"), steps=6, keep="last"),
        fastadv.pgd(threat_of("linf"), steps=6, restarts=2, keep="best"),
        fastadv.fab(threat_of("l2"), steps=5, restarts=2),
        fastadv.square(threat_of("linf"), queries=40),
    ],
    ids=lambda attack: f"{attack.constructor} {attack.keep}",
)
def test_an_attack_moves_through_several_blocks(attack):
    seen = statuses(attack, batch_size=2)  # blocks of 16
    assert_moves_to_the_end(seen)
    assert [status.done for status in seen if not status.attack] == [16, 32, 40]
    assert len({status.percent for status in seen}) > 6


def test_attacks_in_reserve_and_a_final_pass_move_too():
    assert_moves_to_the_end(statuses(ensemble("fast", 0.2), batch_size=8))
    how = fastadv.Execution(precision="bf16", final_pass=True)
    attack = fastadv.pgd(threat_of("linf", 0.01), steps=16)
    percents = assert_moves_to_the_end(statuses(attack, batch_size=8, execution=how))
    assert len({percent for percent in percents if 60 < percent < 100}) > 2


def test_loaders_end_at_a_hundred_whatever_was_expected():
    p = problem()
    data = TensorDataset(p.x, p.y)
    attack = fastadv.pgd(threat_of("linf"), steps=3)

    class Stream(IterableDataset):
        def __iter__(self):
            return zip(p.x, p.y, strict=True)

    ragged = statuses(attack, DataLoader(data, batch_size=16))
    assert_moves_to_the_end(ragged)
    assert {status.expected for status in ragged} == {N}
    unknown = statuses(attack, DataLoader(Stream(), batch_size=16))
    assert {status.percent for status in unknown[:-1]} == {None} and unknown[-1].percent == 100
    batches = BatchSampler(range(N), batch_size=16, drop_last=False)
    assert statuses(attack, DataLoader(data, batch_sampler=batches))[-1].percent == 100


def test_a_curve_moves_within_every_radius():
    p, seen = problem(), list[Status]()
    attack = fastadv.pgd(threat_of("linf"), steps=8, restarts=2)
    radii = [threat_of("linf", scale).eps for scale in (0.1, 0.5, 1.0)]
    robustness_curve(p.model, (p.x, p.y), attack, radii, batch_size=2, progress=seen.append)
    assert len(set(assert_moves_to_the_end(seen))) > 12


def test_memory_that_runs_out_takes_nothing_back():
    p, calls, seen = problem(), itertools.count(), list[Status]()

    def model(x):
        if len(x) > 20 and next(calls) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return p.model(x)

    attack = fastadv.pgd(threat_of("linf", 0.01), steps=9, restarts=2)
    evaluate(model, (p.x, p.y), attack, batch_size=40, progress=seen.append)
    assert next(calls) > 7
    assert_moves_to_the_end(seen)


def test_a_line_names_the_percent():
    status = Status(128, 1000, 100, "FAB-T", 640, 200.0)
    assert (
        str(status) == "128 of 1,000 samples done (33 % of the work), 100 robust; FAB-T attacks 640"
    )
    assert str(Status(5, None, 3, "", 0)) == "5 samples done, 3 robust"


def test_who_listens_changes_nothing_and_who_does_not_is_not_told():
    p, attack, heard = problem(), fastadv.pgd(threat_of("linf"), steps=4, restarts=2), []
    alone = attack.run(p.model, p.x, p.y)
    with looks.heard_by(heard.append):
        listened = attack.run(p.model, p.x, p.y)
    count = len(heard)
    attack.run(p.model, p.x, p.y)
    assert same_bits(alone.x_adv, listened.x_adv) and len(heard) == count > 1
    assert heard[-1].share == 1 and all(0 <= look.share <= 1 for look in heard)
