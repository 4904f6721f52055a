"""kappa asks for confidence: the attack goes on until the margin is kappa, not 0."""

import pytest
import torch

import fastadv

_EPS, _STEPS, _STEP_SIZE, _KAPPA, _N = 0.4, 40, 0.04, 20.0, 150


@pytest.fixture(scope="module")
def right(trained_mnist):
    """(net, x, y): of the first 150 test images those that the net classifies rightly."""
    net, x, y = trained_mnist
    x, y = x[:_N], y[:_N]
    with torch.no_grad():
        keep = net(x).argmax(1) == y
    return net, x[keep], y[keep]


def _run(net, x, y, kappa: float, target=None) -> tuple[fastadv.AttackResult, torch.Tensor]:
    """The result of PGD-40 on the margin, and the logits at its examples."""
    attack = fastadv.pgd(
        fastadv.Linf(_EPS), steps=_STEPS, step_size=_STEP_SIZE, loss="margin", kappa=kappa
    )
    result = attack.run(net, x, y, target=target)
    with torch.no_grad():
        return result, net(result.x_adv).double()


def _margin(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """max_{c != y} z_c - z_y."""
    rival = logits.scatter(1, y[:, None], float("-inf")).amax(1)
    return rival - logits.gather(1, y[:, None])[:, 0]


def test_kappa_20_passes_a_confidence_threshold_that_kappa_0_does_not(right):
    """PGD-40 on the margin to the runner-up class, eps 0.4, alpha 0.04, seed 0, 150 images.

    Measured: all are fooled by both; softmax confidence 0.999 is passed by 0 % of the examples of
    kappa=0 and 98.0 % of those of kappa=20.
    """
    net, x, y = right
    passing = {}
    for kappa in (0.0, _KAPPA):
        result, logits = _run(net, x, y, kappa, target="second_best")
        confident = logits.softmax(1).amax(1) >= 0.999
        passing[kappa] = float((result.success & confident).float().mean())
    assert passing[0.0] <= 0.01
    assert passing[_KAPPA] >= 0.9


def test_an_example_found_before_the_last_step_has_the_margin_asked_for(right):
    """Untargeted, as above. Measured: 86.7 % reach the margin 20 before the last step."""
    net, x, y = right
    result, logits = _run(net, x, y, _KAPPA)
    found = result.success & (result.step < _STEPS)
    assert found.float().mean() >= 0.75
    # it was found in a smaller batch, where convolutions differ in the last bits of fp32
    assert (_margin(logits, y)[found] >= _KAPPA * (1 - 1e-5)).all()


def test_an_example_that_misses_kappa_counts_if_it_fools_the_model(right):
    net, x, y = right
    result, logits = _run(net, x, y, _KAPPA)
    assert torch.equal(result.success, logits.argmax(1) != y)
    assert ((_margin(logits, y) < _KAPPA) & result.success).any()


def test_a_larger_kappa_costs_more_steps(right):
    net, x, y = right
    low, high = (_run(net, x, y, kappa)[0] for kappa in (0.0, _KAPPA))
    assert (low.step <= high.step)[low.success & high.success].all()
    assert low.forwards < high.forwards
