"""The L-infinity Square step: a textbook attack's bits for any K, skipping what changes nothing."""

import pytest
import torch
from square_problems import LINF_EPS, Run, linf_problem, textbook_linf

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.square import cpu as square_cpu


def assert_same_attack(run, other):
    assert torch.equal(run.x_best, other.x_best)
    assert torch.equal(run.best_loss, other.best_loss)
    assert run.column("SUCCESS_STEP") == other.column("SUCCESS_STEP")
    assert run.column("STEP") == other.column("STEP")
    assert run.column("FAULT") == other.column("FAULT")


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 8, 6)], ids=str)
def test_any_lookahead_is_the_textbook_attack(device, implementation, shape, width):
    network, run = linf_problem(device, shape=shape, width=width)
    best, margins, success = textbook_linf(
        network, run.x, run.labels, run.start, run.table, LINF_EPS
    )
    run.finish(network)
    assert torch.equal(run.x_best, best)
    assert torch.equal(run.best_loss, margins)
    assert run.column("SUCCESS_STEP") == success
    assert run.column("STEP") == [run.table.queries if s < 0 else s for s in success]


def test_the_problem_accepts_rejects_skips_and_succeeds(device):
    network, run = linf_problem(device, batch=12, shape=(1, 8, 6), queries=200)
    run.finish(network)
    success = run.column("SUCCESS_STEP")
    queries = sum(run.table.queries + 1 if s < 0 else s + 1 for s in success)
    assert 0 < sum(s >= 0 for s in success) < 12
    assert run.evaluated < 0.9 * queries  # the rest changed nothing
    assert run.wasted.tolist() == [0] * 12
    network, wide = linf_problem(device, batch=12, shape=(1, 8, 6), queries=200, width=4)
    wide.finish(network)
    assert wide.wasted.sum() == wide.evaluated - run.evaluated > 0
    assert_same_attack(run, wide)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(device, implementation, dtype):
    network, run = linf_problem(device, width=2, dtype=dtype, queries=20)
    run.finish(network)
    network, other = linf_problem(device, width=1, dtype=dtype, queries=20)
    with backend.use_backend("reference"):
        other.finish(network)
    assert run.x_best.dtype == dtype
    assert_same_attack(run, other)
    ulp = {torch.float64: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert (run.x_best.double() - run.x.double()).abs().max() <= LINF_EPS + ulp


@pytest.mark.parametrize("elements", [1, 900, 1 << 20])
@pytest.mark.parametrize("implementation", ["cpu"], indirect=True)
def test_how_many_candidates_a_round_tests_changes_nothing(
    device, monkeypatch, elements, implementation
):
    network, run = linf_problem(device, batch=6, shape=(1, 8, 6), queries=90)
    best, margins, success = textbook_linf(
        network, run.x, run.labels, run.start, run.table, LINF_EPS
    )
    monkeypatch.setattr(square_cpu, "_ELEMENTS_AT_ONCE", elements)
    run.finish(network)
    assert torch.equal(run.x_best, best)
    assert torch.equal(run.best_loss, margins)
    assert run.column("SUCCESS_STEP") == success


def test_channels_last_is_the_same_attack(device, implementation):
    network, run = linf_problem(device, width=3, memory_format=torch.channels_last)
    assert not run.x_new.is_contiguous()
    network, other = linf_problem(device)
    assert_same_attack(run.finish(network), other.finish(network))
    assert run.x_best.is_contiguous(memory_format=torch.channels_last)


def test_a_slot_is_attacked_alike_in_any_batch(device, implementation):
    network, whole = linf_problem(device, batch=5, width=2)
    whole.finish(network)
    network, part = linf_problem(device, batch=5, width=2)
    alone = Run(
        part.x[3:4].clone(),
        part.labels[3:4],
        part.start[3:4].clone(),
        part.table,
        eps=LINF_EPS,
        width=2,
    ).finish(network)
    assert torch.equal(alone.x_best, whole.x_best[3:4])
    assert torch.equal(alone.slots, whole.slots[3:4])


def test_slots_may_have_their_own_restart_and_eps(device, implementation):
    network, run = linf_problem(device, restarts=2, width=2)
    run.restarts[1] = 1
    run.eps = torch.tensor([0.02, 0.05, LINF_EPS], device=device)
    run.finish(network)
    for slot, (restart, eps) in enumerate([(0, 0.02), (1, 0.05), (0, LINF_EPS)]):
        best, margins, success = textbook_linf(
            network,
            run.x[slot : slot + 1],
            run.labels[slot : slot + 1],
            run.start[slot : slot + 1],
            run.table,
            eps,
            restart,
        )
        assert torch.equal(run.x_best[slot : slot + 1], best)
        assert run.column("SUCCESS_STEP")[slot] == success[0]


def test_what_is_proposed_differs_in_its_window_only(device, implementation):
    network, run = linf_problem(device, width=4)
    for _ in range(4):
        run.evaluate_and_step(network)
        for row, query in enumerate(run.queries.flatten().tolist()):
            slot = row // 4
            if run.slots[slot, columns.ACTIVE] == 0 or query >= run.table.queries:
                continue
            differs = run.x_new[row] != run.x_best[slot]
            top, left, side = run.table.geometry[query].tolist()
            assert differs.any()
            differs[:, top : top + side, left : left + side] = False
            assert not differs.any()


def test_windows_longer_than_a_block(device, implementation):
    network, run = linf_problem(device, batch=2, shape=(3, 17, 19), queries=6, width=2)
    best, _, success = textbook_linf(network, run.x, run.labels, run.start, run.table, LINF_EPS)
    assert torch.equal(run.finish(network).x_best, best)
    assert run.column("SUCCESS_STEP") == success
