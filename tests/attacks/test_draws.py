"""Contract C2: what is drawn is a function of seed and sample id, and of the right distribution."""

import math

import pytest
import torch
from short_pgd import SAMPLES, short_pgd
from toy_models import NORMS, Quadratic, differing_fields, mixed_problem, same_bits

import fastadv


@pytest.mark.parametrize("norm", NORMS)
def test_another_seed_or_another_id_starts_elsewhere(norm):
    problem = mixed_problem(SAMPLES)
    ids = torch.arange(SAMPLES)

    def run(seed, ids):
        attack = short_pgd(norm, "last", seed=seed)
        return attack(problem.model, problem.x, problem.y, sample_ids=ids)

    first = run(0, ids)
    assert same_bits(run(0, ids), first)
    for seed, other in ((1, ids), (-1, ids), (1 << 32, ids), (0, ids + 1), (0, ids + (1 << 32))):
        changed = (run(seed, other) != first).flatten(1).any(1)
        assert changed.all(), (seed, int(other[0]))


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_start_elsewhere(norm):
    """The best of several restarts is not always the first."""
    problem = mixed_problem(SAMPLES)
    one = short_pgd(norm, "best", restarts=1).run(problem.model, problem.x, problem.y)
    many = short_pgd(norm, "best", restarts=4).run(problem.model, problem.x, problem.y)
    assert not same_bits(one.x_adv, many.x_adv)


def test_the_global_generators_have_no_part_in_the_result():
    problem = mixed_problem(SAMPLES)
    attack = short_pgd("l2")
    torch.manual_seed(1)
    first = attack.run(problem.model, problem.x, problem.y)
    torch.manual_seed(2)
    assert differing_fields(attack.run(problem.model, problem.x, problem.y), first) == []


def test_the_default_dtype_has_no_part_in_the_result():
    problem = mixed_problem(SAMPLES)
    first = short_pgd("l2").run(problem.model, problem.x, problem.y)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        other = short_pgd("l2").run(problem.model, problem.x, problem.y)
    finally:
        torch.set_default_dtype(before)
    assert differing_fields(other, first) == []


def test_linf_starts_are_uniform_in_the_ball():
    n, size, eps = 64, 48, 0.1
    model = Quadratic(size, curvature=0.0)
    x = torch.full((n, size), 0.5, dtype=torch.float64)
    attack = fastadv.pgd(fastadv.Linf(eps), steps=1, step_size=1e-12, keep="last")
    moved = attack(model.double(), x, torch.zeros(n, dtype=torch.long))
    uniform = ((moved - x) / (2 * eps) + 0.5).flatten().sort().values
    rank = torch.arange(n * size, dtype=torch.float64) / (n * size)
    gap = (uniform - rank).abs().max() * math.sqrt(n * size)
    assert gap < 1.95  # Kolmogorov and Smirnov: exceeded once in a thousand


def test_random_targets_are_uniform_over_the_other_classes():
    problem = mixed_problem(600, (8,), classes=4)
    targets = []

    def note(logits, y):
        targets.append(y)
        return logits[:, 0]

    attack = fastadv.fgsm(fastadv.Linf(0.01), loss=note, keep="last")
    attack(problem.model, problem.x, problem.y, target="random")
    drawn = (targets[0] - problem.y) % 4
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0
    # chi-square with 2 degrees of freedom: 13.8 is exceeded once in a thousand
    assert float(((counts[1:] - 200) ** 2 / 200).sum()) < 13.8
