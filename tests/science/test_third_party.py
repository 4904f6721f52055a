"""PGD-50-10 on networks that others trained: the textbook loop's verdicts, sample by sample."""

import functools
import json
from typing import NamedTuple

import pytest
import torch
from torch import nn

import fastadv
from fastadv import textbook

_STEPS, _RESTARTS = 50, 10
_CASES = {"mnist_kw_0.1": (0.1, 150), "mnist_wong_0.3": (0.3, 150), "cifar_wide_kw": (2 / 255, 250)}


class Case(NamedTuple):
    """A model with those of its first n test points that it classifies rightly, and a radius.

    A clean-wrong point is settled before any attack, so leaving it out changes no verdict.
    """

    name: str
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    eps: float


class Verdicts(NamedTuple):
    """(B,) bool: the textbook loop fooled the model at a last iterate, or at any iterate."""

    last: torch.Tensor
    any: torch.Tensor


class _Watch(nn.Module):
    """Notes which samples any forward pass has shown misclassified."""

    def __init__(self, model: nn.Module, y: torch.Tensor) -> None:
        super().__init__()
        self.model = model
        self.y = y
        self.fooled = torch.zeros(len(y), dtype=torch.bool, device=y.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        self.fooled |= logits.detach().argmax(1) != self.y
        return logits


@pytest.fixture(scope="module", params=_CASES)
def case(request, third_party) -> Case:
    if request.param.startswith("cifar"):
        pytest.importorskip("PIL", reason="needs pillow, which reads the shared CIFAR-10")
    eps, n = _CASES[request.param]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, x, y = third_party["load"](request.param, n=n)
    model, x, y = model.to(device), x.to(device), y.to(device)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    return Case(request.param, model, x[right], y[right], eps)


def _starts(case: Case, seed: int):
    """The textbook loop's start points, one batch a restart."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(_RESTARTS):
        noise = torch.empty(case.x.shape).uniform_(-case.eps, case.eps, generator=generator)
        yield (case.x + noise.to(case.x.device)).clamp(0, 1)


def _misclassified(case: Case, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return case.model(x).argmax(1) != case.y


@functools.cache
def _textbook_verdicts(case: Case, seed: int) -> list[Verdicts]:
    """Of each restart."""
    verdicts = []
    for start in _starts(case, seed):
        watch = _Watch(case.model, case.y)
        x_adv = textbook.pgd(
            watch, case.x, case.y, eps=case.eps, steps=_STEPS, step_size=case.eps / 4, x_init=start
        )
        last = _misclassified(case, x_adv)
        verdicts.append(Verdicts(last, watch.fooled | last))
    return verdicts


def _attack(case: Case, **more) -> fastadv.Attack:
    threat = fastadv.Linf(case.eps)
    return fastadv.pgd(threat, steps=_STEPS, step_size=case.eps / 4, **more)


def _within(x_adv: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    """(B,) bool, in float64: in [0, 1] and no farther than eps plus one rounding of x +- eps."""
    far = (x_adv.double() - x.double()).abs().flatten(1).amax(1)
    box = ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    return box & (far <= eps * (1 + 1e-6) + 2.0**-24)


def test_last_iterates_from_the_textbook_starts_give_the_textbook_verdicts(case):
    attack = _attack(case, keep="last", random_start=False)
    for start, expected in zip(_starts(case, 0), _textbook_verdicts(case, 0), strict=True):
        x_adv = attack(case.model, case.x, case.y, x_init=start)
        assert _within(x_adv, case.x, case.eps).all()
        assert torch.equal(_misclassified(case, x_adv), expected.last)


def test_first_successes_from_the_textbook_starts_are_those_of_any_of_its_iterates(case):
    attack = _attack(case, random_start=False)
    for start, expected in zip(_starts(case, 0), _textbook_verdicts(case, 0), strict=True):
        result = attack.run(case.model, case.x, case.y, x_init=start)
        assert torch.equal(result.success, expected.any)
        _assert_shown(case, result)


def _assert_shown(case: Case, result: fastadv.AttackResult) -> None:
    """Every success lies in ball and box and fools the model on exactly the returned tensor."""
    assert torch.equal(result.success, _misclassified(case, result.x_adv))
    assert _within(result.x_adv, case.x, case.eps).all()


@functools.cache
def _own(case: Case) -> fastadv.AttackResult:
    return _attack(case, restarts=_RESTARTS, seed=0).run(case.model, case.x, case.y)


def test_own_starts_leave_at_most_one_sample_more_than_the_best_of_three_textbook_seeds(case):
    """Measured, robust samples of the textbook loop with seeds 0, 1, 2 and of ours with seed 0:
    mnist_kw_0.1 147, 147, 147 and 147 of 150; mnist_wong_0.3 113, 112, 114 and 112 of 150;
    cifar_wide_kw 133, 133, 133 and 133 of 250.
    """
    result = _own(case)
    _assert_shown(case, result)
    robust = []
    for seed in range(3):
        fooled = torch.stack([verdict.last for verdict in _textbook_verdicts(case, seed)]).any(0)
        robust.append(int((~fooled).sum()))
    assert int((~result.success).sum()) <= min(robust) + 1


def test_own_starts_leave_at_most_one_sample_more_than_the_recorded_run(case, third_party):
    """The recorded run, of the same attack by other hands: 147, 113 and 133 robust samples."""
    (path,) = (third_party["HERE"] / "reference").glob(f"{case.name}__*.json")
    recorded = json.loads(path.read_text())["pgd_50_10"]["robust"].count("1")
    assert int((~_own(case).success).sum()) <= recorded + 1
