"""What a step found out about a clamp is part of its state, and of nothing else."""

import copy

import pytest
import torch
from clamping_problems import (
    THREAT,
    assert_same,
    assert_same_weights,
    counted_warnings,
    make_step,
    pair_of,
    problems,
    run,
)
from training_problems import METHODS, sgd, train_batch

from fastadv import training


@pytest.mark.parametrize("name", METHODS)
def test_resumed_in_the_middle_the_bits_are_those_of_the_bare_network(name):
    clamping, bare = pair_of("hardtanh")
    _, expected, losses, _ = run(name, bare, count=4)
    step, iterates, mine, _ = run(name, clamping, count=2)
    optimizer = sgd(clamping)
    # the momentum of the whole run
    twin = pair_of("hardtanh")[0]
    twin_optimizer, twin_step = sgd(twin), make_step(name, twin)
    with counted_warnings():
        for x, y, more in problems(name, 2):
            train_batch(twin_step, twin, twin_optimizer, x, y, **more)
    optimizer.load_state_dict(copy.deepcopy(twin_optimizer.state_dict()))
    resumed = make_step(name, clamping)
    resumed.load_state_dict(copy.deepcopy(step.state_dict()))
    later = []
    with counted_warnings() as warned:
        for x, y, more in problems(name, 4)[2:]:
            later += train_batch(resumed, clamping, optimizer, x, y, **more)
    assert not warned  # found and said already
    assert_same(iterates + resumed.threat.seen, expected)
    assert torch.equal(torch.cat([mine, torch.stack(later)]), losses)
    assert_same_weights(clamping, bare)


def test_what_a_resumed_step_does_is_what_the_first_batch_decided():
    """Not what its own first batch would show: the run that goes on does not look again."""
    clamping, _ = pair_of("hardtanh")
    x, y, _ = problems("PGDAT", 1)[0]
    step = make_step("PGDAT", clamping)
    step.loss(clamping, x * 0.4 + 0.3, y)  # no pixel is near a bound
    assert step.state_dict()["inset"] == 0.0
    resumed = make_step("PGDAT", clamping)
    resumed.load_state_dict(step.state_dict())
    with counted_warnings() as warned:
        mine, theirs = (s.craft(clamping, x, y).x_adv for s in (resumed, step))
    assert torch.equal(mine, theirs) and not warned
    other = make_step("PGDAT", clamping)
    other.batches = 1
    with counted_warnings() as warned:
        assert not torch.equal(other.craft(clamping, x, y).x_adv, theirs)
    assert len(warned) == 1


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_an_earlier_version_loads_and_is_looked_at_anew(name):
    clamping, _ = pair_of("hardtanh")
    step, *_ = run(name, clamping, count=1)
    state = step.state_dict()
    assert state.pop("inset") > 0
    resumed = make_step(name, clamping)
    resumed.load_state_dict(state)
    assert resumed._watch.inset is None and resumed.batches == step.batches
    with counted_warnings() as warned:
        ((x, y, more),) = problems(name, 1)
        for loss in resumed(clamping, x, y, **more):
            loss.backward()
    assert len(warned) == 1 and resumed._watch.inset == step._watch.inset


@pytest.mark.parametrize("name", METHODS)
def test_what_was_decided_is_no_setting(name):
    clamping, _ = pair_of("hardtanh")
    step = METHODS[name](THREAT)
    before = repr(step)
    step._watch.inset = 1e-6
    assert repr(step) == before
    with pytest.raises(TypeError):
        type(step)(THREAT, inset=0.0)


def test_a_rescue_knows_what_was_found():
    clamping, _ = pair_of("hardtanh")
    step, *_ = run("FastAT", clamping, count=1)
    ((x, y, _),) = problems("FastAT", 1)
    sentinel = training.Sentinel(THREAT, x, y, every=1)
    assert sentinel.rescue_step(step)._watch.inset == step._watch.inset > 0
    # what a single step did not see, a rescue by PGD may
    unseen = make_step("FastAT", clamping)
    unseen._watch.close()
    assert sentinel.rescue_step(unseen)._watch.inset is None
