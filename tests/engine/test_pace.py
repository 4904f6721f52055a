"""Looks are rare while no slot is freed: by counts alone, and without an effect on any result."""

import pytest
import torch
from members import MEMBERS, member, member_problem
from toy_models import NORMS, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.engine import continuous, pace
from fastadv.engine.pace import Pace

_CPU, _CUDA = torch.device("cpu"), torch.device("cuda")


def _strides(device: torch.device, freed: list[int], busy: int = 256, stride: int = 4) -> list[int]:
    made = Pace(stride, device)
    strides = [made.stride]
    for count in freed:
        made.note(freed=count, busy=busy)
        strides.append(made.stride)
    return strides


def test_a_stride_doubles_up_to_fourfold_while_few_slots_are_freed():
    assert _strides(_CUDA, [0, 4, 0, 0]) == [4, 8, 16, 16, 16]  # 4 of 256 are one of 64
    assert _strides(_CUDA, [0] * 4, stride=16) == [16, 32, 64, 64, 64]  # Square's


def test_a_stride_falls_back_once_samples_fall_or_end():
    assert _strides(_CUDA, [0, 0, 5, 0, 256, 0]) == [4, 8, 16, 4, 8, 4, 8]
    assert _strides(_CUDA, [1, 1], busy=30) == [4, 4, 4]


def test_on_a_cpu_it_stays():
    assert _strides(_CPU, [0] * 4) == [4] * 5


class _Looks:
    """Counts them, and the steps in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[int] = []
        harvest = continuous._Run._harvest

        def counted(run, began, rounds):
            self.made.append(rounds)
            harvest(run, began, rounds)

        monkeypatch.setattr(continuous._Run, "_harvest", counted)


def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "may_lengthen", lambda device: True)


@pytest.mark.parametrize(
    ("name", "norm"), [(name, NORMS[i % len(NORMS)]) for i, name in enumerate(MEMBERS)]
)
def test_no_result_depends_on_the_looks(monkeypatch, name, norm):
    problem, attack = member_problem(24), member(name, norm)

    def run() -> fastadv.AttackResult:
        execution = fastadv.Execution(batch_size=9)
        return attack.run(problem.model, problem.x, problem.y, execution=execution)

    often = run()
    _as_on_a_gpu(monkeypatch)
    looks = _Looks(monkeypatch)
    assert differing_fields(often, run()) == []
    assert len(looks.made) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_denied_success_goes_on_to_the_same_end(monkeypatch, precision, restarts):
    problem = mixed_problem(40)
    attack = fastadv.pgd(threat_of("linf"), steps=30, restarts=restarts)
    results = []
    for _ in range(2):
        execution = fastadv.Execution(batch_size=8, precision=precision)
        results.append(attack.run(problem.model, problem.x, problem.y, execution=execution))
        _as_on_a_gpu(monkeypatch)
    assert differing_fields(*results) == []


def test_where_nothing_falls_a_hundred_steps_take_eight_looks_instead_of_25(monkeypatch):
    problem = mixed_problem(16)
    attack = fastadv.pgd(threat_of("linf", 1e-4), steps=100, keep="best")
    looks, results = _Looks(monkeypatch), []
    for _ in range(2):
        execution = fastadv.Execution(batch_size=16)
        results.append(attack.run(problem.model, problem.x, problem.y, execution=execution))
        _as_on_a_gpu(monkeypatch)
    assert looks.made == [4] * 25 + [4, 8, 16, 16, 16, 16, 16, 8]
    assert differing_fields(*results) == []
    first, second = results
    assert (first.forwards, first.backwards) == (second.forwards, second.backwards)
