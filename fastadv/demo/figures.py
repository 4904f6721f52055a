"""The three figures of the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from fastadv import diagnostics, ops, plots
from fastadv.attacks import pgd
from fastadv.demo.networks import EPS
from fastadv.evaluation import Report, evaluate
from fastadv.starts import start_point
from fastadv.threat_model import Linf

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Networks = dict[str, nn.Module]
_CURVE_EPS = tuple(EPS * k / 6 for k in range(9))
_CURVE_STEPS, _CURVE_RESTARTS = 20, 2
_RUNS, _RUN_STEPS, _RUN_STEPS_AN_EPS = 20, 100, 20  # the figure of losses


def draw_accuracies(networks: Networks, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> Figure:
    """PGD-20-2 at nine radii."""
    reports: dict[str, list[Report]] = {}
    for name, net in networks.items():
        reports[name] = []
        for eps in _CURVE_EPS:
            attack = pgd(Linf(eps), steps=_CURVE_STEPS, restarts=_CURVE_RESTARTS, seed=seed)
            with diagnostics.without("zero_radius"):  # where a curve begins
                reports[name].append(evaluate(net, (x, y), attack, progress=False))
    return plots.accuracy_against_eps(
        _CURVE_EPS,
        {name: [r.robust_accuracy for r in found] for name, found in reports.items()},
        intervals={name: [r.confidence_interval for r in found] for name, found in reports.items()},
        mark=EPS,
        title=f"Digits 8x8 under L-infinity PGD, {_CURVE_STEPS} steps, {_CURVE_RESTARTS} restarts, "
        f"n = {len(x)}, seed {seed}",
    )


def draw_examples(net: nn.Module, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> Figure:
    """One sample a class: the first that the network knows and PGD-10 fools."""
    result = pgd(Linf(EPS), steps=10, seed=seed).run(net, x, y)
    fooled = result.success & (result.clean_prediction == y)
    hits = [((y == digit) & fooled).nonzero().flatten() for digit in range(10)]
    chosen = torch.cat([found[:1] for found in hits])
    with torch.no_grad():
        logits, logits_adv = net(x[chosen]), net(result.x_adv[chosen])
    return plots.example_sheet(
        x[chosen],
        result.x_adv[chosen],
        y[chosen],
        logits,
        logits_adv,
        title=f"Standard network under L-infinity PGD, 10 steps, eps = {EPS:g}, seed {seed}: "
        "prediction and confidence",
    )


def draw_restarts(networks: Networks, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> Figure:
    """20 restarts of the first sample that every network classifies correctly."""
    with torch.no_grad():
        known = torch.stack([net(x).argmax(1) == y for net in networks.values()]).all(0)
    index = int(known.nonzero()[0])
    runs = {
        f"{name} network": losses_of_restarts(net, x[index], int(y[index]), seed=seed)
        for name, net in networks.items()
    }
    return plots.restart_losses(
        runs,
        title=f"{_RUNS} restarts of L-infinity PGD on one digit ({int(y[index])}, held-out sample "
        f"{index}): {_RUN_STEPS} steps of eps / {_RUN_STEPS_AN_EPS}, eps = {EPS:g}, seed {seed}",
    )


def losses_of_restarts(
    net: nn.Module,
    x: torch.Tensor,
    y: int,
    *,
    seed: int,
    steps: int = _RUN_STEPS,
    restarts: int = _RUNS,
) -> torch.Tensor:
    """(restarts, steps + 1) cross-entropy of one sample x along PGD at `EPS` from random starts."""
    threat = Linf(EPS)
    rows = x.expand(restarts, *x.shape).contiguous()
    labels = torch.full((restarts,), y)
    same_sample = torch.zeros(restarts, dtype=torch.int64)
    draws = torch.arange(restarts, dtype=torch.int32)
    x_adv = start_point(threat, rows, seed=seed, sample_ids=same_sample, draw=draws)
    losses = []
    for step in range(steps + 1):
        leaf = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(net(leaf), labels, reduction="none")
        losses.append(loss.detach())
        if step < steps:
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            x_adv = ops.linf_step(
                leaf.detach(), grad, rows, step_size=EPS / _RUN_STEPS_AN_EPS, eps=EPS
            )
    return torch.stack(losses, dim=1)
