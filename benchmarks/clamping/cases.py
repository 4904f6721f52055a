"""What the comparison of clamping models runs: ways to clamp, networks, and attacks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import fastadv
from benchmarks.harness import networks
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Settings
from fastadv.ensemble.constructor import AutoAttack
from fastadv.textbook import Norm
from fastadv.threat_model import ThreatModel

BARE = "bare"
_MEAN, _STD = 0.3, 0.4
_NORMALISED = "inside Normalized"


class Behind(nn.Module):
    """net(function(x))."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], net: nn.Module) -> None:
        super().__init__()
        self.function, self.net = function, net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.function(x))


_CLAMPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clamp": lambda x: x.clamp(0, 1),
    "clip": lambda x: torch.clip(x, 0, 1),
    "hardtanh": lambda x: F.hardtanh(x, 0.0, 1.0),
    # there and back, so that the network sees the pixels that it was trained on
    "clamp, normalised": lambda x: ((x.clamp(0, 1) - _MEAN) / _STD) * _STD + _MEAN,
    "clamp, tensors": lambda x: torch.clamp(x, torch.zeros_like(x), torch.ones_like(x)),
    "min(max)": lambda x: torch.min(torch.max(x, torch.zeros_like(x)), torch.ones_like(x)),
}
FORMS = (BARE, "clamp", "clip", "clamp, normalised", _NORMALISED, "hardtanh", *list(_CLAMPS)[-2:])
FEW_FORMS = (BARE, "clamp", "hardtanh", _NORMALISED)


def behind(form: str, net: nn.Module) -> nn.Module:
    """A model of the same logits as `net` on [0, 1], which clamps its input as `form` says."""
    if form == BARE:
        return net
    if form == _NORMALISED:
        low, high = (0 - _MEAN) / _STD, (1 - _MEAN) / _STD
        inner = Behind(lambda z: z.clamp(low, high) * _STD + _MEAN, net)
        return fastadv.Normalized(inner, (_MEAN,), (_STD,)).eval()
    return Behind(_CLAMPS[form], net).eval()


def gradient_kept(form: str) -> float:
    """The least share of the gradient that an entry at a bound has, of one inside: 0, 1/2 or 1."""
    x = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    out = behind(form, nn.Identity())(x.view(1, 1, 1, 3))
    (grad,) = torch.autograd.grad(out.sum(), x)
    return round(float(grad[:2].min() / grad[2]), 3)


@dataclass(frozen=True)
class Network:
    """A trained network; eps by norm; samples: of an attack by its name, else `most`."""

    name: str
    most: int
    eps: dict[str, float]
    samples: dict[str, int]
    left_out: tuple[str, ...] = ()
    needs_data: bool = False

    def cases(self) -> list["ClampingCase"]:
        return [case for case in CASES if case.name not in self.left_out]

    def load(self, folder: Path | None, samples: int | None) -> Problem:
        """folder: of MNIST's files. samples: at most so many."""
        n = min(self.most, samples or self.most)
        if self.needs_data:
            return networks.mnist(n, torch.device("cpu"), folder)
        return networks.digits(n, torch.device("cpu"))


NETWORKS = (
    Network(
        "digits_net",
        360,
        {"linf": 0.12, "l2": 0.6},
        {"APGD-T-20": 100, "FAB-T-100": 60, "AutoAttack": 30},
    ),
    Network(
        "mnist_net",
        200,
        {"linf": 0.15, "l2": 1.5},
        {"APGD-T-20": 50, "FAB-T-100": 30},
        left_out=("AutoAttack",),
        needs_data=True,
    ),
)

AnyAttack = fastadv.Attack | AutoAttack


@dataclass(frozen=True)
class ClampingCase:
    """One attack. kind: of `Settings`, None where the library's APGD, FAB and AutoAttack take part.

    member: which of AutoAttack's attacks it is, None for all of them in a row. is_slow: those run
    on a few forms where the library is another.
    """

    name: str
    kind: str | None
    steps: int
    norm: Norm = "linf"
    random_start: bool = False
    member: int | None = None
    is_slow: bool = False

    def settings(self, eps: float) -> Settings:
        """Steps that add up to 2.5 eps, of one step eps; MI-FGSM's to eps, as its authors have."""
        reach = 1.0 if self.kind in ("fgsm", "mifgsm") else 2.5
        return Settings(
            kind=self.kind or self.name,
            norm=self.norm,
            eps=eps,
            step_size=reach * eps / self.steps,
            steps=self.steps,
            random_start=self.random_start,
        )

    def threat(self, eps: float) -> ThreatModel:
        return (fastadv.Linf if self.norm == "linf" else fastadv.L2)(eps)

    def ours(self, eps: float) -> AnyAttack:
        threat, chosen = self.threat(eps), self.settings(eps)
        steps, step_size = self.steps, chosen.step_size
        if self.kind is None:
            return _MEMBERS[self.name](threat, steps=steps)
        if self.kind == "fgsm":
            return fastadv.fgsm(threat)
        if self.kind == "mifgsm":
            return fastadv.mifgsm(threat, steps=steps, step_size=step_size)
        pgd = functools.partial(fastadv.pgd, threat, steps=steps, step_size=step_size)
        return pgd(random_start=self.random_start)


_MEMBERS: dict[str, Callable[..., AnyAttack]] = {
    "APGD-CE-20": fastadv.apgd_ce,
    "APGD-T-20": fastadv.apgd_t,
    "FAB-T-100": fastadv.fab_t,
    "AutoAttack": lambda threat, steps: fastadv.autoattack(threat),
}
CASES = (
    ClampingCase("FGSM", "fgsm", 1),
    ClampingCase("BIM-20", "pgd", 20),
    ClampingCase("PGD-20", "pgd", 20, random_start=True),
    ClampingCase("MI-FGSM-10", "mifgsm", 10),
    ClampingCase("PGD-L2-20", "pgd", 20, norm="l2", random_start=True),
    ClampingCase("APGD-CE-20", None, 20, member=0),
    ClampingCase("APGD-T-20", None, 20, member=1),
    ClampingCase("FAB-T-100", None, 100, member=2, is_slow=True),
    ClampingCase("AutoAttack", None, 100, is_slow=True),
)
