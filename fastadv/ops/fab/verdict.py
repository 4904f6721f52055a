"""What FAB makes of the point just evaluated: the state of the slots, and what moves how."""

from typing import NamedTuple

import torch

from fastadv.kernels import slots as slot_columns


class FabStep(NamedTuple):
    """The arguments of the op `fastadv::fab_step_`, by position."""

    x_adv: torch.Tensor
    closest: torch.Tensor
    grad: torch.Tensor | None
    x: torch.Tensor
    difference: torch.Tensor
    prediction: torch.Tensor
    labels: torch.Tensor
    distance: torch.Tensor
    pulled_back: torch.Tensor
    slots: torch.Tensor
    eps: torch.Tensor
    lo: float
    hi: float
    norm: str
    steps: int
    stop_early: bool
    alpha_max: float
    eta: float
    beta: float


class Verdict(NamedTuple):
    """What a step does with each row, (B,) bool: keep x_adv as closest, pull it back, project."""

    closer: torch.Tensor
    pulled: torch.Tensor
    moving: torch.Tensor


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of a dense tensor in the order of its memory, without a copy."""
    size = tensor[0].numel() if len(tensor) else 0
    return tensor.as_strided((len(tensor), size), (size, 1))


def fooled_rows(step: FabStep) -> torch.Tensor:
    """Rows whose point is new (moved, not pulled back) and adversarial."""
    new = (step.slots[:, slot_columns.STEP] > 0) & ~step.pulled_back
    active = step.slots[:, slot_columns.ACTIVE] != 0
    return active & new & (step.prediction != step.labels) & ~step.difference.isnan()


def judge(step: FabStep, fooled: torch.Tensor, length: torch.Tensor) -> Verdict:
    """Rules 1 to 3, written into slots, distance and pulled_back; length: ||x_adv - x||."""
    slots, distance = step.slots, step.distance
    active = slots[:, slot_columns.ACTIVE] != 0
    taken = slots[:, slot_columns.STEP].clone()
    success = slots[:, slot_columns.SUCCESS_STEP]
    within = fooled & (length <= step.eps)
    over = taken >= step.steps
    if step.stop_early:
        over = over | within
    pulled, moving = fooled & ~over, active & ~fooled & ~over
    if step.grad is None:
        moving = torch.zeros_like(moving)
    closer = fooled & (length < distance)
    distance.copy_(torch.where(closer, length, distance))
    step.pulled_back.copy_(pulled | (step.pulled_back & ~moving))
    success.copy_(torch.where(within & (success < 0), taken, success))
    fault = slots[:, slot_columns.FAULT]
    faulty = active & step.difference.isnan()
    fault.copy_(torch.where(faulty, fault | slot_columns.FAULT_NAN_LOGITS, fault))
    slots[:, slot_columns.ACTIVE].copy_(active & ~over)
    slots[:, slot_columns.STEP].copy_(torch.where(moving, taken + 1, taken))
    return Verdict(closer, pulled, moving)
