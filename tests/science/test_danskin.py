"""Danskin: the gradient of max_delta L(w, x + delta) is that of L(w, x_adv) at the maximiser."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastadv

_B, _D = 6, 9
_STEP = 1e-5  # of the central differences: 1e-10 from truncation, 1e-11 from rounding
_ATTACKS = {
    "linf": fastadv.pgd(
        fastadv.Linf(0.1, bounds=None), steps=4, step_size=0.1, random_start=False, keep="last"
    ),
    "l2": fastadv.pgd(
        fastadv.L2(0.4, bounds=None), steps=4, step_size=0.4, random_start=False, keep="last"
    ),
    "l1": fastadv.pgd(
        fastadv.L1(0.9, bounds=None),
        steps=4,
        step_size=0.9,
        random_start=False,
        keep="last",
        sparsity=1e-9,
    ),
}


class _Logistic(nn.Module):
    """Logits 0 and w.x + b: cross-entropy is the logistic loss."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        w = torch.randn(_D + 1, generator=generator, dtype=torch.float64)
        self.parameter = nn.Parameter(w.to(device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = x @ self.parameter[:-1] + self.parameter[-1]
        return torch.stack([torch.zeros_like(score), score], 1)


@pytest.fixture
def problem(device):
    generator = torch.Generator().manual_seed(6)
    x = torch.rand(_B, _D, generator=generator, dtype=torch.float64)
    return _Logistic(device), x.to(device), (torch.arange(_B) % 2).to(device)


def _differences(model: _Logistic, loss) -> torch.Tensor:
    """d loss() / d parameter by central differences."""
    rows = []
    for k in range(len(model.parameter)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                model.parameter[k] += sign * _STEP
                values.append(loss())
                model.parameter[k] -= sign * _STEP
        rows.append((values[0] - values[1]) / (2 * _STEP))
    return torch.stack(rows)


def _gradient(model: _Logistic, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(F.cross_entropy(model(x), y), model.parameter)[0]


@pytest.mark.parametrize("norm", _ATTACKS)
def test_the_robust_gradient_is_the_gradient_at_the_maximiser(norm, problem):
    model, x, y = problem
    attack = _ATTACKS[norm]

    def robust_loss() -> torch.Tensor:
        return F.cross_entropy(model(attack(model, x, y)), y)

    at_maximiser = _gradient(model, attack(model, x, y), y)
    expected = _differences(model, robust_loss)
    torch.testing.assert_close(at_maximiser, expected, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("norm", _ATTACKS)
def test_it_is_not_the_gradient_at_the_clean_input(norm, problem):
    model, x, y = problem
    at_maximiser = _gradient(model, _ATTACKS[norm](model, x, y), y)
    clean = _gradient(model, x, y)
    assert (at_maximiser - clean).norm() > 0.1 * clean.norm()


def test_the_linf_robust_loss_is_the_logistic_loss_with_an_l1_penalised_margin(problem):
    model, x, y = problem
    w, bias = model.parameter[:-1], model.parameter[-1]
    margin = (2 * y - 1) * (x @ w + bias)
    closed = F.softplus(0.1 * w.abs().sum() - margin).mean()
    (expected,) = torch.autograd.grad(closed, model.parameter)
    at_maximiser = _gradient(model, _ATTACKS["linf"](model, x, y), y)
    torch.testing.assert_close(at_maximiser, expected, rtol=1e-12, atol=1e-14)
