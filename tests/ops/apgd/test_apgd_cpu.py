"""APGD's fast path on CPUs gives the bits of the eager reference, which defines the step."""

import pytest
import torch
from apgd_problems import MidAttack

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops import backend
from fastadv.ops.apgd import linf as apgd
from fastadv.ops.apgd.check import apgd_check_
from fastadv.ops.apgd.schedule import apgd_checkpoints


def same(a, b):
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (784,), (3, 32, 32), (40_000,)])
@pytest.mark.parametrize("hit", [True, False])
def test_the_linf_step(shape, hit, dtype):
    problem = MidAttack("cpu", *shape, dtype=dtype)
    for seed in range(2):
        if seed:  # nothing restarts, nothing is finished: rows are taken as they lie
            problem.slots[:, slots.ACTIVE] = 1
            problem.progress[:, apgd_progress.RESTORE] = 0
        fast, fast_options = problem.arguments(hit=hit)
        slow, slow_options = problem.arguments(hit=hit)
        apgd.apgd_linf_step_(*fast, **fast_options)
        with backend.use_backend("reference"):
            apgd.apgd_linf_step_(*slow, **slow_options)
        for name, a, b in zip(problem.images, fast, slow, strict=True):
            assert same(a, b), name
        if hit:
            assert same(fast_options["x_hit"], slow_options["x_hit"])


def test_the_check_over_a_whole_attack():
    steps, batch = 40, 30
    generator = torch.Generator().manual_seed(0)
    checkpoints = torch.tensor(apgd_checkpoints(steps), dtype=torch.int32)
    fast = torch.full((batch, apgd_progress.WIDTH), float("nan"))
    slow, fast_step = fast.clone(), torch.ones(batch)
    slow_step, best = fast_step.clone(), torch.full((batch,), -torch.inf)
    state = torch.zeros(batch, slots.WIDTH, dtype=torch.int32)
    state[:, slots.ACTIVE] = 1
    offset = torch.arange(batch) % 7  # slots are loaded at different times
    for t in range(steps + 7):
        state[:, slots.STEP] = (t - offset + 1).clamp(0, steps)
        state[:, slots.ACTIVE] = ((t >= offset) & (t - offset < steps)).int()
        loss = torch.rand(batch, generator=generator) - 0.3
        best = torch.where(state[:, slots.ACTIVE] != 0, torch.maximum(best, loss), best)
        apgd_check_(fast, fast_step, loss, best, state, checkpoints)
        with backend.use_backend("reference"):
            apgd_check_(slow, slow_step, loss, best, state, checkpoints)
        assert same(fast, slow) and torch.equal(fast_step, slow_step)
    assert len(fast_step.unique()) > 2  # some were halved more often than others
