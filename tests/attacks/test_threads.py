"""Contract C2: the number of torch's threads changes no bit of a result."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch
from members import member, member_problem, of_one_target, of_steps, one_of_each_kind
from short_pgd import short_pgd
from toy_models import NORMS, differing_fields, mixed_problem

import fastadv


@contextmanager
def _threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("norm", NORMS)
def test_large_images_of_mixed_batches_change_no_bit(norm):
    # radii that leave every outcome among five samples of 37,632 elements, more than the 32,768
    # from which torch splits
    scale = {"linf": 0.045, "l2": 1.1, "l1": 30.0}[norm]
    problem = mixed_problem(5, (3, 112, 112), classes=3, wrong_every=6)
    attack = dataclasses.replace(short_pgd(norm, scale=scale, restarts=1), steps=2)
    with _threads(1):
        expected = attack.run(problem.model, problem.x, problem.y)
    steps = expected.step.tolist()
    assert steps[0] == 0 and max(steps) > 0 and min(steps) == -1, steps
    with _threads(2):
        threaded = attack.run(problem.model, problem.x, problem.y)
        # a lone row is what torch's own sum splits among threads
        one_by_one = attack.run(
            problem.model, problem.x, problem.y, execution=fastadv.Execution(batch_size=1)
        )
    assert differing_fields(threaded, expected) == []
    assert differing_fields(one_by_one, expected) == []


@pytest.mark.parametrize("norm", NORMS)
def test_their_number_changes_no_bit_of_pgd(norm):
    # 36,864 elements: torch splits above 32,768
    problem = mixed_problem(12, (3, 32, 32), classes=3)
    scale = {"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm]
    attack = dataclasses.replace(short_pgd(norm, "best", scale=scale), steps=2)
    results = []
    for threads in (1, 2):
        with _threads(threads):
            results.append(attack.run(problem.model, problem.x, problem.y))
    assert results[0].success.any() and not results[0].success.all()
    assert differing_fields(results[1], results[0]) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", one_of_each_kind())
def test_their_number_changes_no_bit_of_the_members(name, norm):
    # 33,792 elements: torch splits above 32,768
    p = member_problem(11, (3, 32, 32), classes=4, wrong_every=20, curvature=0.5)
    budget = of_steps(name, 4 if name == "square" else 2) | of_one_target(name)
    scale = {"linf": 0.1, "l2": 1.0, "l1": 4.0}[norm]
    attack = member(name, norm, scale=scale, **budget)
    results = []
    for threads in (1, 2):
        with _threads(threads):
            results.append(attack.run(p.model, p.x, p.y))
    assert differing_fields(results[1], results[0]) == []
    assert results[0].success.any() and not results[0].success.all()
