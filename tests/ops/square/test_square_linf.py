"""The L-infinity Square step: a textbook attack's bits for any K, skipping what changes nothing."""

import pytest
import torch
from square_problems import NAN, Run, Wavy, images, textbook_linf

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.square import cpu as square_cpu
from fastadv.ops.square import start as square_start
from fastadv.ops.square import table as square_table

EPS = 0.08


def problem(device, batch=3, shape=(3, 5, 7), queries=40, width=1, restarts=1, **options):
    memory_format = options.pop("memory_format", torch.contiguous_format)
    dtype = options.pop("dtype", torch.float32)
    network = Wavy(shape[0] * shape[1] * shape[2], device)
    x = images(device, batch, *shape, dtype=dtype, memory_format=memory_format)
    labels = network(x).argmax(1)
    table = square_table.square_table(
        queries, shape, norm="linf", seed=4, restarts=restarts, device=device
    )
    start = square_start.square_start(x, eps=EPS, norm="linf", seed=1)
    return network, Run(x, labels, start, table, eps=EPS, width=width, **options)


def assert_same_attack(run, other):
    assert torch.equal(run.x_best, other.x_best)
    assert torch.equal(run.best_loss, other.best_loss)
    assert run.column("SUCCESS_STEP") == other.column("SUCCESS_STEP")
    assert run.column("STEP") == other.column("STEP")
    assert run.column("FAULT") == other.column("FAULT")


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 8, 6)], ids=str)
def test_any_lookahead_is_the_textbook_attack(device, implementation, shape, width):
    network, run = problem(device, shape=shape, width=width)
    best, margins, success = textbook_linf(network, run.x, run.labels, run.start, run.table, EPS)
    run.finish(network)
    assert torch.equal(run.x_best, best)
    assert torch.equal(run.best_loss, margins)
    assert run.column("SUCCESS_STEP") == success
    assert run.column("STEP") == [run.table.queries if s < 0 else s for s in success]


def test_the_problem_accepts_rejects_skips_and_succeeds(device):
    network, run = problem(device, batch=12, shape=(1, 8, 6), queries=200)
    run.finish(network)
    success = run.column("SUCCESS_STEP")
    queries = sum(run.table.queries + 1 if s < 0 else s + 1 for s in success)
    assert 0 < sum(s >= 0 for s in success) < 12
    assert run.evaluated < 0.9 * queries  # the rest changed nothing
    assert run.wasted.tolist() == [0] * 12
    network, wide = problem(device, batch=12, shape=(1, 8, 6), queries=200, width=4)
    wide.finish(network)
    assert wide.wasted.sum() == wide.evaluated - run.evaluated > 0
    assert_same_attack(run, wide)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(device, implementation, dtype):
    network, run = problem(device, width=2, dtype=dtype, queries=20)
    run.finish(network)
    network, other = problem(device, width=1, dtype=dtype, queries=20)
    with backend.use_backend("reference"):
        other.finish(network)
    assert run.x_best.dtype == dtype
    assert_same_attack(run, other)
    ulp = {torch.float64: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert (run.x_best.double() - run.x.double()).abs().max() <= EPS + ulp


@pytest.mark.parametrize("elements", [1, 900, 1 << 20])
def test_how_many_candidates_a_round_tests_changes_nothing(device, monkeypatch, elements):
    network, run = problem(device, batch=6, shape=(1, 8, 6), queries=90)
    best, margins, success = textbook_linf(network, run.x, run.labels, run.start, run.table, EPS)
    monkeypatch.setattr(square_cpu, "_ELEMENTS_AT_ONCE", elements)
    run.finish(network)
    assert torch.equal(run.x_best, best)
    assert torch.equal(run.best_loss, margins)
    assert run.column("SUCCESS_STEP") == success


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("elements", [1, 900])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_field_is_the_references(device, monkeypatch, width, elements, dtype):
    monkeypatch.setattr(square_cpu, "_ELEMENTS_AT_ONCE", elements)
    options = dict(batch=9, width=width, dtype=dtype, restarts=2, queries=25)
    runs = [problem(device, memory_format=torch.channels_last, **options)[1] for _ in range(2)]
    for run in runs:
        run.restarts[::2] = 1
        run.eps = torch.linspace(0.02, 0.2, 9, device=device)
        run.x[4, 1, 2, 3] = NAN
        run.slots[7, columns.ACTIVE] = 0
    generator = torch.Generator().manual_seed(3)
    stages = set()
    for _ in range(30):
        draw = torch.rand(3, 9 * width, generator=generator).to(device)
        loss = torch.where(draw[0] < 0.05, NAN, -draw[1])
        prediction = runs[0].labels.repeat_interleave(width) + (draw[2] < 0.05)
        runs[0].step(loss, prediction)
        with backend.use_backend("reference"):
            runs[1].step(loss, prediction)
        stages.add(len(set(runs[0].column("STEP"))))
        for name in ("x_best", "x_new", "best_loss", "queries", "wasted", "slots"):
            one, other = getattr(runs[0], name), getattr(runs[1], name)
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), name
    assert max(stages) > 2  # slots went apart
    assert any(runs[0].column("FAULT")) and max(runs[0].column("SUCCESS_STEP")) > 0


def test_channels_last_is_the_same_attack(device, implementation):
    network, run = problem(device, width=3, memory_format=torch.channels_last)
    assert not run.x_new.is_contiguous()
    network, other = problem(device)
    assert_same_attack(run.finish(network), other.finish(network))
    assert run.x_best.is_contiguous(memory_format=torch.channels_last)


def test_a_slot_is_attacked_alike_in_any_batch(device, implementation):
    network, whole = problem(device, batch=5, width=2)
    whole.finish(network)
    network, part = problem(device, batch=5, width=2)
    alone = Run(
        part.x[3:4].clone(), part.labels[3:4], part.start[3:4].clone(), part.table, eps=EPS, width=2
    ).finish(network)
    assert torch.equal(alone.x_best, whole.x_best[3:4])
    assert torch.equal(alone.slots, whole.slots[3:4])


def test_slots_may_have_their_own_restart_and_eps(device, implementation):
    network, run = problem(device, restarts=2, width=2)
    run.restarts[1] = 1
    run.eps = torch.tensor([0.02, 0.05, EPS], device=device)
    run.finish(network)
    for slot, (restart, eps) in enumerate([(0, 0.02), (1, 0.05), (0, EPS)]):
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


def test_inactive_slots_are_left_alone(device, implementation):
    network, run = problem(device, width=2)
    run.evaluate_and_step(network)
    run.slots[1, columns.ACTIVE] = 0
    run.x_best[1], run.x_new[2:4] = NAN, NAN
    names = ("x_best", "best_loss", "queries", "wasted", "slots")
    before = {name: getattr(run, name)[1].clone() for name in names}
    loss = torch.zeros(6, device=device)
    loss[2:4] = NAN
    run.step(loss, 1 - run.labels.repeat_interleave(2).clamp(max=1))
    for name, value in before.items():
        assert torch.equal(getattr(run, name)[1].nan_to_num(7), value.nan_to_num(7)), name
    assert run.x_new[2:4].isnan().all()


def test_a_nan_loss_is_a_fault_and_never_accepted(device, implementation):
    network, run = problem(device, width=2)
    run.evaluate_and_step(network)
    before, loss = run.x_best.clone(), torch.full((6,), -9.0, device=device)
    loss[2] = NAN
    run.step(loss, run.labels.repeat_interleave(2) + loss.isnan().long())
    assert torch.equal(run.x_best, before)
    assert run.column("FAULT") == [0, columns.FAULT_NAN_LOGITS, 0]
    assert run.column("ACTIVE") == [1, 1, 1]


def test_a_nan_behind_an_accepted_row_is_not_seen(device, implementation):
    network, run = problem(device, batch=1, width=3)
    run.evaluate_and_step(network)
    loss = torch.tensor([-0.0, NAN, NAN], device=device)
    run.best_loss.fill_(-1.0)
    run.step(loss, run.labels.repeat(3))
    assert run.column("FAULT") == [0] and run.wasted.tolist() == [2]


def test_what_is_proposed_differs_in_its_window_only(device, implementation):
    network, run = problem(device, width=4)
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


def test_exhausted_queries_end_the_attack(device, implementation):
    network, run = problem(device, queries=2, width=3)
    stuck = run.labels.repeat_interleave(3)
    run.step(torch.full((9,), -1.0, device=device), stuck)
    assert run.queries[:, 2].tolist() == [2, 2, 2]
    run.step(torch.full((9,), -2.0, device=device), stuck)
    assert run.column("ACTIVE") == [0, 0, 0] and run.column("STEP") == [2, 2, 2]
    assert run.queries.tolist() == [[2, 2, 2]] * 3
    assert torch.equal(run.x_best, run.start)
    assert torch.equal(run.x_new, run.start.repeat_interleave(3, 0))


def test_a_start_that_fools_costs_one_query(device, implementation):
    network, run = problem(device, width=2)
    run.step(torch.zeros(6, device=device), run.labels.repeat_interleave(2) + 1)
    assert run.column("SUCCESS_STEP") == [0, 0, 0] and run.column("ACTIVE") == [0, 0, 0]
    assert run.wasted.tolist() == [0, 0, 0]
    assert torch.equal(run.x_best, run.start)


def test_an_empty_batch(device, implementation):
    network, run = problem(device, batch=3)
    empty = Run(run.x[:0], run.labels[:0], run.start[:0], run.table, eps=EPS, width=2)
    empty.step(torch.zeros(0, device=device), run.labels[:0])
    assert empty.x_best.shape == (0, 3, 5, 7)


def test_no_queries(device, implementation):
    network, run = problem(device, queries=0)
    run.evaluate_and_step(network)
    assert not any(run.column("ACTIVE"))
    assert torch.equal(run.x_best, run.start)


def test_windows_longer_than_a_block(device, implementation):
    network, run = problem(device, batch=2, shape=(3, 17, 19), queries=6, width=2)
    best, _, success = textbook_linf(network, run.x, run.labels, run.start, run.table, EPS)
    assert torch.equal(run.finish(network).x_best, best)
    assert run.column("SUCCESS_STEP") == success


def test_one_launch_a_step(device, count_launches):
    network, run = problem(device, width=2)
    with backend.use_backend("triton"), count_launches() as launches:
        run.evaluate_and_step(network)
        run.evaluate_and_step(network)
    assert launches == ["square_linf_kernel"] * 2


def test_version_counters_grow(device, implementation):
    network, run = problem(device)
    names = ("x_new", "x_best", "best_loss", "queries", "wasted", "slots")
    before = [getattr(run, name)._version for name in names]
    run.evaluate_and_step(network)
    after = [getattr(run, name)._version for name in names]
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_opcheck(device, implementation):
    network, run = problem(device, width=2)
    arguments = (
        run.x_new,
        run.x_best,
        run.x,
        torch.zeros(6, device=device),
        run.labels.repeat_interleave(2),
        run.labels,
        run.best_loss,
        run.queries,
        run.wasted,
        run.slots,
        run.restarts,
        run.table.geometry,
        run.table.signs,
        0.1,
        None,
        0.0,
        1.0,
        40,
    )
    torch.library.opcheck(torch.ops.fastadv.square_linf_.default, arguments)


def test_arguments_that_do_not_fit_are_named(device):
    _, run = problem(device, width=2)
    good, labels = torch.zeros(6, device=device), run.labels.repeat_interleave(2)
    with pytest.raises(ValueError, match=r"loss must be \(6,\) torch.float32.*\(5,\)"):
        run.step(good[:5], labels)
    with pytest.raises(ValueError, match="prediction must be .* torch.int64.*torch.int32"):
        run.step(good, labels.int())
    run.x = run.x.flatten(1)
    with pytest.raises(ValueError, match=r"Square needs images \(B, C, H, W\)"):
        run.step(good, labels)
    _, run = problem(device, width=2)
    run.x_new = run.x_new.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="x_best and x_new must be dense and share a layout"):
        run.step(good, labels)
    _, run = problem(device, width=2)
    run.table = square_table.square_table(40, (3, 5, 7), norm="l2", seed=0, device=device)
    with pytest.raises(ValueError, match="table must be one of this norm"):
        run.step(good, labels)
