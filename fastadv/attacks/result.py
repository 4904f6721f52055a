"""What an attack returns, one row a sample."""

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Stage(NamedTuple):
    """One attack of an ensemble: of `attacked` samples it broke `broken`.

    name: as AutoAttack's log writes it; attack: its repr. forwards, backwards: samples times
    passes, of which `discarded` forwards were of proposals that came too late.
    """

    name: str
    attack: str
    attacked: int
    broken: int
    seconds: float
    forwards: int
    backwards: int
    discarded: int


@dataclass(frozen=True, eq=False)
class AttackResult:
    """Adversarial examples and what is known of them; (B,) tensors on the device of x.

    x_adv: (B, ...), dtype, device and memory format of x. success: the user's model, as it is,
    misclassifies (or hits the target) on exactly x_adv, which lies in bounds and within eps. loss:
    the objective ascended, at x_adv. distance: ||x_adv - x|| in the threat model's norm, float64.
    step: of the first success, 0 for a clean x that is already wrong or a start that succeeds, -1
    if none. prediction: the model's at x_adv. clean_prediction: at x, None where the attack never
    looked. forwards, backwards: samples times passes. Of an ensemble: stages, what each attack did,
    and broken_by, the index of the one that broke a sample, -1 if none did, -2 if the model got it
    wrong as it was.
    """

    x_adv: torch.Tensor
    success: torch.Tensor
    loss: torch.Tensor
    distance: torch.Tensor
    step: torch.Tensor
    prediction: torch.Tensor
    clean_prediction: torch.Tensor | None
    forwards: int
    backwards: int
    broken_by: torch.Tensor | None = None
    stages: tuple[Stage, ...] = ()
