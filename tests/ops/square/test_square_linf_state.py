"""The L-infinity Square step: what it writes of its state, faults, queries and arguments."""

import pytest
import torch
from square_problems import LINF_EPS, NAN, Run, linf_problem

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.square import cpu as square_cpu
from fastadv.ops.square import table as square_table


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("implementation", "elements"),
    [("cpu", 1), ("cpu", 900), ("compiled", 1)],
    indirect=["implementation"],
)
def test_every_field_is_the_references(device, monkeypatch, width, elements, dtype, implementation):
    monkeypatch.setattr(square_cpu, "_ELEMENTS_AT_ONCE", elements)
    options = dict(batch=9, width=width, dtype=dtype, restarts=2, queries=25)
    runs = [linf_problem(device, memory_format=torch.channels_last, **options)[1] for _ in range(2)]
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


def test_inactive_slots_are_left_alone(device, implementation):
    network, run = linf_problem(device, width=2)
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
    network, run = linf_problem(device, width=2)
    run.evaluate_and_step(network)
    before, loss = run.x_best.clone(), torch.full((6,), -9.0, device=device)
    loss[2] = NAN
    run.step(loss, run.labels.repeat_interleave(2) + loss.isnan().long())
    assert torch.equal(run.x_best, before)
    assert run.column("FAULT") == [0, columns.FAULT_NAN_LOGITS, 0]
    assert run.column("ACTIVE") == [1, 1, 1]


def test_a_nan_behind_an_accepted_row_is_not_seen(device, implementation):
    network, run = linf_problem(device, batch=1, width=3)
    run.evaluate_and_step(network)
    loss = torch.tensor([-0.0, NAN, NAN], device=device)
    run.best_loss.fill_(-1.0)
    run.step(loss, run.labels.repeat(3))
    assert run.column("FAULT") == [0] and run.wasted.tolist() == [2]


def test_exhausted_queries_end_the_attack(device, implementation):
    network, run = linf_problem(device, queries=2, width=3)
    stuck = run.labels.repeat_interleave(3)
    run.step(torch.full((9,), -1.0, device=device), stuck)
    assert run.queries[:, 2].tolist() == [2, 2, 2]
    run.step(torch.full((9,), -2.0, device=device), stuck)
    assert run.column("ACTIVE") == [0, 0, 0] and run.column("STEP") == [2, 2, 2]
    assert run.queries.tolist() == [[2, 2, 2]] * 3
    assert torch.equal(run.x_best, run.start)
    assert torch.equal(run.x_new, run.start.repeat_interleave(3, 0))


def test_a_start_that_fools_costs_one_query(device, implementation):
    network, run = linf_problem(device, width=2)
    run.step(torch.zeros(6, device=device), run.labels.repeat_interleave(2) + 1)
    assert run.column("SUCCESS_STEP") == [0, 0, 0] and run.column("ACTIVE") == [0, 0, 0]
    assert run.wasted.tolist() == [0, 0, 0]
    assert torch.equal(run.x_best, run.start)


def test_an_empty_batch(device, implementation):
    network, run = linf_problem(device, batch=3)
    empty = Run(run.x[:0], run.labels[:0], run.start[:0], run.table, eps=LINF_EPS, width=2)
    empty.step(torch.zeros(0, device=device), run.labels[:0])
    assert empty.x_best.shape == (0, 3, 5, 7)


def test_no_queries(device, implementation):
    network, run = linf_problem(device, queries=0)
    run.evaluate_and_step(network)
    assert not any(run.column("ACTIVE"))
    assert torch.equal(run.x_best, run.start)


def test_one_launch_a_step(device, count_launches):
    network, run = linf_problem(device, width=2)
    with backend.use_backend("triton"), count_launches() as launches:
        run.evaluate_and_step(network)
        run.evaluate_and_step(network)
    assert launches == ["square_linf_kernel"] * 2


def test_version_counters_grow(device, implementation):
    network, run = linf_problem(device)
    names = ("x_new", "x_best", "best_loss", "queries", "wasted", "slots")
    before = [getattr(run, name)._version for name in names]
    run.evaluate_and_step(network)
    after = [getattr(run, name)._version for name in names]
    assert all(a > b for a, b in zip(after, before, strict=True))


def test_opcheck(device, implementation):
    network, run = linf_problem(device, width=2)
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
    _, run = linf_problem(device, width=2)
    good, labels = torch.zeros(6, device=device), run.labels.repeat_interleave(2)
    with pytest.raises(ValueError, match=r"loss must be \(6,\) torch.float32.*\(5,\)"):
        run.step(good[:5], labels)
    with pytest.raises(ValueError, match="prediction must be .* torch.int64.*torch.int32"):
        run.step(good, labels.int())
    run.x = run.x.flatten(1)
    with pytest.raises(ValueError, match=r"Square needs images \(B, C, H, W\)"):
        run.step(good, labels)
    _, run = linf_problem(device, width=2)
    run.x_new = run.x_new.contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="x_best and x_new must be dense and share a layout"):
        run.step(good, labels)
    _, run = linf_problem(device, width=2)
    run.table = square_table.square_table(40, (3, 5, 7), norm="l2", seed=0, device=device)
    with pytest.raises(ValueError, match="table must be one of this norm"):
        run.step(good, labels)
