"""PGD on networks that others trained: the textbook loop's verdicts, sample by sample.

Attacked are the samples in question: those that the recorded AutoAttack broke, and 40 of smallest
margin. All others count as robust, which only makes it harder to break as many as a peer did.
"""

import functools
import json
from typing import NamedTuple

import pytest
import torch
from torch import nn

import fastadv
from fastadv import textbook

_STEPS, _RESTARTS = 50, 10
_SHARED_STARTS = 4  # each a batch of its own, compared sample by sample
_NEAREST = 40
_CASES = {"mnist_kw_0.1": (0.1, 150), "mnist_wong_0.3": (0.3, 150), "cifar_wide_kw": (2 / 255, 250)}
# measured: of the first n points, what PGD-50-10 of the textbook loop leaves with seeds 0, 1, 2
_TEXTBOOK = {
    "mnist_kw_0.1": (147, 147, 147),
    "mnist_wong_0.3": (113, 112, 114),
    "cifar_wide_kw": (133, 133, 133),
}


class Case(NamedTuple):
    """A model, those of its first n test points that are in question, and a radius.

    sample_ids: their places among all that it classifies rightly. recorded: robust samples of
    PGD-50-10, run by other hands. left_out: how many are neither in x nor clean-wrong, which
    needs no attack.
    """

    name: str
    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    sample_ids: torch.Tensor
    eps: float
    recorded: int
    left_out: int


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
    name, (eps, n) = request.param, _CASES[request.param]
    (path,) = (third_party["HERE"] / "reference").glob(f"{name}__*.json")
    record = json.loads(path.read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, x, y = third_party["load"](name, n=n)
    model, x, y = model.to(device), x.to(device), y.to(device)
    right, margins = _margins(model, x, y)
    broken = torch.tensor([mark == "0" for mark in record["autoattack"]["robust"]], device=device)
    chosen = right & (broken | (margins <= margins[right].sort().values[_NEAREST - 1]))
    return Case(
        name,
        model,
        x[chosen],
        y[chosen],
        sample_ids=chosen[right].nonzero()[:, 0],
        eps=eps,
        recorded=record["pgd_50_10"]["robust"].count("1"),
        left_out=int((right & ~chosen).sum()),
    )


def _margins(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Which samples are classified rightly, and by how much the label leads the next class."""
    with torch.no_grad():
        logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    margins = logits.gather(1, y[:, None])[:, 0] - others
    return margins > 0, margins


def _starts(case: Case):
    """Start points of the textbook loop, one batch a restart."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_SHARED_STARTS):
        noise = torch.empty(case.x.shape).uniform_(-case.eps, case.eps, generator=generator)
        yield (case.x + noise.to(case.x.device)).clamp(0, 1)


def _misclassified(case: Case, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return case.model(x).argmax(1) != case.y


@functools.cache
def _textbook_verdicts(case: Case) -> list[Verdicts]:
    """Of each restart."""
    verdicts = []
    for start in _starts(case):
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
    for start, expected in zip(_starts(case), _textbook_verdicts(case), strict=True):
        x_adv = attack(case.model, case.x, case.y, x_init=start)
        assert _within(x_adv, case.x, case.eps).all()
        assert torch.equal(_misclassified(case, x_adv), expected.last)


def test_first_successes_from_the_textbook_starts_are_those_of_any_of_its_iterates(case):
    attack = _attack(case, random_start=False)
    for start, expected in zip(_starts(case), _textbook_verdicts(case), strict=True):
        result = attack.run(case.model, case.x, case.y, x_init=start)
        assert torch.equal(result.success, expected.any)
        _assert_shown(case, result)


def _assert_shown(case: Case, result: fastadv.AttackResult) -> None:
    """Every success lies in ball and box and fools the model on exactly the returned tensor."""
    assert torch.equal(result.success, _misclassified(case, result.x_adv))
    assert _within(result.x_adv, case.x, case.eps).all()


@functools.cache
def _own(case: Case) -> fastadv.AttackResult:
    attack = _attack(case, restarts=_RESTARTS, seed=0)
    return attack.run(case.model, case.x, case.y, sample_ids=case.sample_ids)


def _left_by(result: fastadv.AttackResult, case: Case) -> int:
    return case.left_out + int((~result.success).sum())


def test_own_starts_leave_at_most_one_sample_more_than_the_best_of_three_textbook_seeds(case):
    """Measured, ours with seed 0: 147 of 150, 112 of 150 and 133 of 250."""
    result = _own(case)
    _assert_shown(case, result)
    assert _left_by(result, case) <= min(_TEXTBOOK[case.name]) + 1


def test_own_starts_leave_at_most_one_sample_more_than_the_recorded_run(case):
    """The recorded run, of the same attack by other hands: 147, 113 and 133 robust samples."""
    assert _left_by(_own(case), case) <= case.recorded + 1
