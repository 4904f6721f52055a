"""fastadv and the textbook from the same starts: where they agree bit for bit, and why not else."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from fastadv import textbook
from fastadv.attacks import pgd
from fastadv.demo.networks import EPS
from fastadv.starts import start_point
from fastadv.threat_model import Linf

_STEPS = 10


@dataclass(frozen=True)
class Agreement:
    """PGD-10 of fastadv and of the textbook from the same starts: samples with equal x_adv.

    largest_difference: of any pixel after the last step. largest_gradient: of the loss, at the
    pixels where the two first differ, 0 if none does.
    """

    network: str
    equal: int
    n: int
    step_size: float
    largest_difference: float
    largest_gradient: float

    def __str__(self) -> str:
        agree = (
            f"{self.network}: PGD-10 from the same starts, fastadv and textbook agree bit for bit "
            f"on {self.equal} of {self.n} samples"
        )
        if self.equal == self.n:
            return f"{agree}."
        return (
            f"{agree}. On the others they part where the gradient is zero or nearly so (the "
            f"largest such is {self.largest_gradient:.2g}) and rounding decides its sign, which is "
            f"all that PGD takes of it: one sign turned moves a pixel by up to "
            f"{2 * self.step_size:.3g} (two steps), which may turn others at the next step, and "
            f"all steps together by at most {2 * EPS:.3g} (twice eps); here by "
            f"{self.largest_difference:.3g}."
        )


def agreement(
    network: str, net: nn.Module, x: torch.Tensor, y: torch.Tensor, *, seed: int
) -> Agreement:
    """Ten steps of both, one by one; loss and gradient by autograd, at the textbook's points."""
    threat = Linf(EPS)
    size = float(pgd(threat, steps=_STEPS).effective_step_size)
    step = pgd(threat, steps=1, step_size=size, keep="last", seed=seed)
    ours = theirs = start_point(threat, x, seed=seed)
    together = torch.ones(len(x), dtype=torch.bool)
    largest = 0.0
    for _ in range(_STEPS):
        leaf = theirs.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
        ours = step(net, x, y, x_init=ours)
        theirs = textbook.pgd(net, x, y, eps=EPS, steps=1, step_size=size, x_init=theirs)
        part = (ours != theirs) & together.view(-1, 1, 1, 1)
        largest = max(largest, float(grad[part].abs().max()) if bool(part.any()) else 0.0)
        together &= ~part.flatten(1).any(1)
    difference = (ours - theirs).abs().flatten(1).amax(1)
    equal = int((difference == 0).sum())
    return Agreement(network, equal, len(x), size, float(difference.max()), largest)
