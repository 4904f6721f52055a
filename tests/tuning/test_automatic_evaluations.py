"""execution="auto" of evaluations and curves: measured once, recorded, and never a second time."""

from pathlib import Path

import pytest
import torch
from costly import Costly, by_rows, fake_time, samples
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastadv
from fastadv.attacks import automatic
from fastadv.evaluation import tuned
from fastadv.evaluation.processes import Exchange, Place

ATTACK = fastadv.pgd(fastadv.Linf(0.1), steps=2)


@pytest.fixture
def measured(monkeypatch):
    calls, own = [], automatic.measured
    monkeypatch.setattr(
        automatic, "measured", lambda *a, **more: calls.append(more) or own(*a, **more)
    )
    return calls


@pytest.fixture
def problem(monkeypatch):
    torch.manual_seed(0)
    model = Costly(fake_time(monkeypatch), by_rows(8)).eval()
    x = samples(24)
    yield model, x, model(x).argmax(1)
    fastadv.release()


def _evaluate(model, data, **more):
    return fastadv.evaluate(model, data, ATTACK, execution="auto", progress=False, **more)


def test_the_report_says_what_was_found_and_is_that_of_it(problem, measured):
    model, x, y = problem
    report = _evaluate(model, (x, y))
    assert report.execution == "fastadv.Execution(batch_size=8)" and len(measured) == 1
    given = eval(report.execution, {"fastadv": fastadv})
    own = fastadv.evaluate(model, (x, y), ATTACK, execution=given, progress=False)
    assert torch.equal(own.success, report.success) and own.execution == report.execution
    assert report.execution in report.to_markdown()


def test_a_batch_size_that_is_given_stays(problem, measured):
    model, x, y = problem
    report = _evaluate(model, (x, y), batch_size=6)
    assert report.execution == "fastadv.Execution(batch_size=6)"
    assert measured[0]["fixed"] and measured[0]["rows"] == 6


def test_a_loader_is_read_as_if_nobody_had_looked(problem, measured):
    model, x, y = problem
    loaders = [DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True) for _ in range(2)]
    state = torch.get_rng_state()
    report = _evaluate(model, loaders[0])
    assert torch.equal(torch.get_rng_state(), state)
    own = fastadv.evaluate(model, loaders[1], ATTACK, progress=False)
    assert torch.equal(own.success, report.success) and torch.equal(own.distance, report.distance)
    assert measured[0]["rows"] == 5 and report.execution == "fastadv.Execution(batch_size=8)"
    assert _evaluate(model, TensorDataset(x, y)).execution == report.execution


def test_data_that_come_once_are_refused(problem):
    class Once(IterableDataset):
        def __iter__(self):
            yield from zip(problem[1], problem[2], strict=True)

    with pytest.raises(ValueError, match=r"execution='auto'.*fastadv.tune"):
        _evaluate(problem[0], DataLoader(Once(), batch_size=4))


def test_what_is_resumed_takes_it_from_the_checkpoint(problem, measured, tmp_path, monkeypatch):
    model, x, y = problem
    path: Path = tmp_path / "c.pt"
    first = _evaluate(model, (x, y), checkpoint=path)
    fastadv.release()
    model.cost = by_rows(16)  # now another would be found
    again = _evaluate(model, (x, y), checkpoint=path)
    assert len(measured) == 1 and again.execution == first.execution
    assert torch.equal(again.success, first.success) and again.seconds == first.seconds


def test_a_copy_that_was_found_is_part_of_what_a_checkpoint_is_of(problem, tmp_path):
    model, x, y = problem

    def cost(x, model):
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        return len(x) * (0.5e-4 if is_last else 1e-4)

    model.cost = cost
    path = tmp_path / "c.pt"
    assert "channels_last=True" in _evaluate(model, (x, y), checkpoint=path).search
    fastadv.release()
    model.cost = by_rows(8)
    assert "channels_last=True" in _evaluate(model, (x, y), checkpoint=path).search
    with pytest.raises(ValueError, match="way to run the search"):
        fastadv.evaluate(model, (x, y), ATTACK, checkpoint=path, progress=False)


class _TwoProcesses(Exchange):
    """The second of two, which hears what the first has said."""

    def __init__(self, said) -> None:
        super().__init__(Place(1, 2), None, "")
        self.said = list(said)

    def gathered(self, work):
        return [self.said.pop(0), work()]


@pytest.mark.parametrize("there", [None, fastadv.Execution(batch_size=3)])
def test_the_others_measure_nothing_and_take_what_the_first_has(problem, measured, there):
    model, x, y = problem
    found = fastadv.Execution(batch_size=7)
    exchange = _TwoProcesses([there, found])
    taken = tuned.execution_for(
        "auto", model, (x, y), ATTACK, batch_size=None, path=None, exchange=exchange
    )
    assert taken == (there or found) and measured == []


def test_a_curve_measures_once(problem, measured):
    model, x, y = problem
    curve = fastadv.robustness_curve(
        model, (x, y), ATTACK, [0.05, 0.1], execution="auto", progress=False
    )
    assert curve.execution == "fastadv.Execution(batch_size=8)" and len(measured) == 1
    assert curve.execution in curve.to_markdown()


@pytest.mark.parametrize("execution", ["fast", 3])
def test_anything_else_is_refused(problem, execution):
    model, x, y = problem
    with pytest.raises(TypeError, match="execution must be"):
        fastadv.evaluate(model, (x, y), ATTACK, execution=execution)
