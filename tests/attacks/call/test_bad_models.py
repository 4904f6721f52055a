"""Models that cannot be attacked, or not as they are, are refused or warned of."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from test_bad_input import KEEPS, _attack, _run
from torch import nn
from toy_models import mixed_problem

import fastadv


def _plain(z):
    rows = z.flatten(1)
    return torch.stack([rows.sum(1), rows.square().sum(1), rows[:, 0]], 1)


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", ["first_success", "best"])
def test_nan_logits_of_clean_samples_are_an_error(keep, call):
    y = torch.zeros(6, dtype=torch.long)

    def model(z):
        logits = _plain(z)
        return torch.cat([logits[:2] * float("nan"), logits[2:]])

    with pytest.raises(ValueError, match="the model returns NaN logits for 2 of 6 clean samples"):
        _run(model=model, y=y, attack=_attack(keep=keep), call=call)


@pytest.mark.parametrize("call", [False, True])
def test_nan_logits_are_warned_of_where_clean_samples_are_not_looked_at(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _run(
            model=lambda z: _plain(z) * float("nan"),
            y=torch.zeros(6, dtype=torch.long),
            attack=_attack(keep="last"),
            call=call,
        )
    assert _only(caught, "nan_logits").count == 6


def _only(caught, code):
    found = [w.message for w in caught if getattr(w.message, "code", None) == code]
    assert len(found) == 1, [str(w.message) for w in caught]
    return found[0]


@pytest.mark.parametrize("keep", ["first_success", "best"])
def test_probabilities_are_warned_of(keep):
    problem = mixed_problem(6)
    with pytest.warns(fastadv.AttackWarning, match="returns probabilities") as caught:
        _run(model=lambda z: problem.model(z).softmax(1), attack=_attack(keep=keep))
    warning = _only(caught, "probabilities")
    assert warning.count == 6
    assert issubclass(fastadv.AttackWarning, UserWarning)


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    "model",
    [
        lambda z: _plain(z).detach(),
        lambda z: torch.no_grad()(_plain)(z),
        lambda z: _plain(z.detach()),
        lambda z: _plain(z.data),
        lambda z: torch.from_numpy(_plain(z).detach().numpy().copy()),
        lambda z: 7 * F.one_hot(_plain(z).argmax(1), 3),
    ],
    ids=["detached", "no_grad", "detached input", "data", "numpy", "one-hot"],
)
def test_a_model_without_gradient_is_refused(model, keep, call):
    y = torch.ones(6, dtype=torch.long)
    with torch.no_grad():
        y = _plain(mixed_problem(6).x).argmax(1)
    with pytest.raises(ValueError, match=r"no gradient.*fastadv.BPDA"):
        _run(model=model, y=y, attack=_attack(keep=keep), call=call)


def test_a_model_whose_output_ignores_its_input_is_refused():
    weight = nn.Parameter(torch.ones(3))

    def model(z):
        return z.new_zeros(len(z), 1) + weight  # has a gradient, but not to the input

    with pytest.raises(ValueError, match="no gradient.*fastadv.BPDA"):
        _run(model=model, y=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", [fastadv.Linf, fastadv.L2, fastadv.L1])
def test_a_zero_gradient_is_warned_of_with_its_count(norm, keep, call):
    x = torch.full((6, 4), 0.5)
    x[4:] = 0.2
    y = torch.zeros(6, dtype=torch.long)

    def model(z):  # flat where z is large
        flat = z.new_tensor([3.0, 0.0, -1.0]) + 0 * z[:, :3]
        slope = torch.stack([3 - z[:, 0], z[:, 0], z[:, 1] - 1], 1)
        return torch.where(z[:, :1] > 0.4, flat, slope)

    attack = fastadv.pgd(norm(0.05), steps=3, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 4 of 6 samples") as caught:
        _run(model, x, y, attack=attack, call=call)
    assert _only(caught, "zero_gradient").count == 4


@pytest.mark.parametrize("keep", KEEPS)
def test_a_gradient_that_vanishes_at_success_is_not_warned_of(keep):
    """The margin loss has no gradient beyond kappa: the sample is fooled, the attack not weak."""
    problem = mixed_problem(12, wrong_every=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _run(problem.model, problem.x, problem.y, attack=_attack(loss="margin", keep=keep))


@pytest.mark.parametrize("keep", KEEPS)
def test_a_nan_gradient_is_warned_of_with_its_count(keep):
    x = torch.full((6, 4), 0.5)
    x[4:, 0] = 0.0  # the root has an infinite slope there: 0 * inf

    def model(z):
        noise = 0 * z[:, 0].sqrt()
        return torch.stack([2 + z[:, 1] + noise, z[:, 2], z[:, 3]], 1)

    attack = fastadv.bim(fastadv.Linf(0.1), steps=3, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="nan_gradient: 2 of 6 samples") as caught:
        _run(model, x, torch.zeros(6, dtype=torch.long), attack=attack)
    assert _only(caught, "nan_gradient").count == 2


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("model", "got"),
    [
        (lambda z: (_plain(z), z), "got tuple"),
        (lambda z: {"scores": _plain(z)}, "got dict"),
        (lambda z: _plain(z)[:-1], r"got \(5, 3\)"),
        (lambda z: _plain(z)[0], r"got \(3,\)"),
        (lambda z: _plain(z)[:, :, None], r"got \(6, 3, 1\)"),
        (lambda z: None, "got NoneType"),
    ],
    ids=["tuple", "dict", "short", "vector", "map", "None"],
)
def test_an_output_that_is_no_row_of_logits_is_refused(model, got, keep, call):
    with pytest.raises(ValueError, match=rf"must return \(B, C\) logits, here \(6, C\); {got}"):
        _run(model=model, attack=_attack(keep=keep), call=call)


def test_a_model_of_one_class_is_refused():
    with pytest.raises(ValueError, match="C >= 2; got C = 1"):
        _run(model=lambda z: z.flatten(1)[:, :1], y=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", KEEPS)
def test_a_model_that_modifies_its_input_is_refused(keep, call):
    with pytest.raises(ValueError, match="modifies its input in place"):
        _run(model=lambda z: _plain(z.mul_(0.5)), attack=_attack(keep=keep), call=call)
