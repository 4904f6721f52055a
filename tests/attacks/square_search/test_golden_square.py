"""Square takes the steps of its authors' code: stored trajectories, see tests/golden/README.md."""

import numpy as np
import pytest
import torch
from golden.problem import THREATS, Problem, arrays

import fastadv
from fastadv.kernels import slots as columns
from fastadv.ops.square import lp as square_lp
from fastadv.ops.square.table import SquareTable, square_pattern

QUERIES = 300


def test_linf_accepts_the_authors_proposals(device):
    stored = arrays("square_linf")
    attack = fastadv.square(fastadv.Linf(float(stored["eps"])), queries=QUERIES)
    problem = Problem(device)
    held = np.zeros((QUERIES + 1, 8), np.float32)  # the margin after each query, the start first
    with problem.started(attack, stored["start"]) as (algorithm, state):
        algorithm._table = SquareTable(
            geometry=problem.tensor(np.column_stack([stored["corner"], stored["size"]])).int(),
            signs=problem.tensor(stored["signs"]).to(torch.int8),
            patterns=torch.zeros(0, device=device),
            pattern_start=torch.zeros(0, dtype=torch.int32, device=device),
            queries=QUERIES,
        )
        while bool((state.slots[:, columns.ACTIVE] != 0).any()):
            evaluated = state.queries[:, 0].clone()
            active = state.slots[:, columns.ACTIVE] != 0
            algorithm.step(state)
            for sample in active.nonzero()[:, 0].tolist():
                # queries that are passed over change nothing either
                held[int(evaluated[sample]) + 1 :, sample] = -float(state.best_loss[sample])
        success = (state.slots[:, columns.SUCCESS_STEP] >= 0).cpu().numpy()
    fallen = stored["margin_min"][-1] <= 0
    np.testing.assert_array_equal(success, fallen)
    expected = np.maximum(np.vstack([stored["start_margin"], stored["margin_min"]]), 0.0)
    np.testing.assert_allclose(held, expected, atol=1e-6, rtol=0)
    same = np.abs(state.x_best.cpu().numpy() - stored["x_best"]) <= 1.2e-7
    # a candidate equal to the point held, but for the last bit of its margin, may be kept or not:
    # where it is, it is the same point
    assert 1 - same.mean() <= 1e-4


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_proposals_are_the_authors(norm, device):
    stored = arrays(f"square_{norm}")
    problem = Problem(device)
    x, y, eps = problem.x, problem.y, float(stored["eps"])
    x_best = problem.tensor(stored["start"]).clone()
    margin = problem.tensor(stored["start_margin"]).clone()
    sides = sorted(set(stored["size"].tolist()))
    patterns = torch.cat([square_pattern(side, norm).flatten() for side in sides]).to(device)
    first = dict(zip(sides, np.cumsum([0, *(side * side for side in sides)]), strict=False))
    geometry = np.column_stack(
        [stored[name] for name in ("corner", "corner2", "size", "transposed")]
    )
    follows = torch.ones(8, dtype=torch.bool, device=device)
    compared = 0
    for query in range(QUERIES):
        active = problem.tensor(stored["active"][query])
        np.testing.assert_array_equal(active.cpu().numpy(), (margin > 0).cpu().numpy())
        rows = active.nonzero()[:, 0]
        x_new = square_lp.propose_lp(
            x_best[rows],
            x[rows],
            problem.tensor(stored["signs"][query])[rows].float(),
            problem.tensor(np.tile(geometry[query], (len(rows), 1))).int(),
            patterns,
            torch.full((len(rows),), int(first[stored["size"][query]]), device=device),
            norm=norm,
            eps=eps,
            lo=0.0,
            hi=1.0,
        )
        logits = problem.model(x_new).detach()
        own = logits.gather(1, y[rows, None])[:, 0]
        rival = logits.scatter(1, y[rows, None], -torch.inf).amax(1)
        theirs = problem.tensor(stored["margin"][query])[rows]
        # In L1 theirs leaves residues of rounding where the projection puts a pixel back to x. A
        # window of nothing else is scaled to norm 1 before the pyramid is added: noise, not a rule.
        top, left = stored["corner"][query]
        window = (x_best - x)[rows, :, top:, left:][..., : geometry[query, 4], : geometry[query, 4]]
        is_rule = (norm == "l2") | (window.abs().sum((2, 3)) > 1e-6).all(1)
        is_same = follows[rows] & is_rule
        compared += int(is_same.sum())
        torch.testing.assert_close((own - rival)[is_same], theirs[is_same], atol=2e-6, rtol=0)
        kept = problem.tensor(stored["accepted"][query])[rows]
        x_best[rows[kept]], margin[rows[kept]] = x_new[kept], theirs[kept]
        follows[rows[kept & ~is_rule]] = False
    assert compared > (0.99 if norm == "l2" else 0.5) * stored["active"].sum()
    found = x_best[follows].cpu().numpy()
    np.testing.assert_allclose(found, stored["x_best"][follows.cpu()], atol=3e-6, rtol=0)
    assert THREATS[norm](eps).distance(x_best, x).max() <= eps * (1 + 1e-5)
