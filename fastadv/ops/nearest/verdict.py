"""What a search for the nearest adversarial point makes of the point just evaluated."""

from typing import NamedTuple

import torch

from fastadv.kernels import slots as columns


class Verdict(NamedTuple):
    """Of each row, (B,): whether its point is adversarial, whether it is kept as the closest,
    whether the row moves on; its step before that, and the loss, 0 where it is NaN."""

    fooled: torch.Tensor
    closer: torch.Tensor
    moving: torch.Tensor
    step: torch.Tensor
    loss: torch.Tensor


def judge(
    slots: torch.Tensor,
    loss: torch.Tensor,
    prediction: torch.Tensor,
    aims: torch.Tensor,
    distance: torch.Tensor,
    eps: torch.Tensor,
    length: torch.Tensor,
    *,
    steps: int | torch.Tensor,
    targeted: bool,
    stop_early: bool,
    beyond: bool = False,
    stop_anywhere: bool = False,
    least: float | None = None,
) -> Verdict:
    """The verdict on points at `length`, (B,), written into `slots` and `distance`. beyond: only a
    loss above 0 fools, least: only one of at least it. stop_early, stop_anywhere: a row ends with
    its first adversarial point within eps, or with any."""
    active = slots[:, columns.ACTIVE] != 0
    step = slots[:, columns.STEP].clone()
    success, fault = slots[:, columns.SUCCESS_STEP], slots[:, columns.FAULT]
    known = ~loss.isnan()
    fooled = active & known & ((prediction == aims) == targeted)
    if beyond:
        fooled = fooled & (loss > 0)
    if least is not None:
        fooled = fooled & (loss >= least)
    closer, within = fooled & (length < distance), fooled & (length <= eps)
    over = step + 1 >= steps
    if stop_early:
        over = over | within
    if stop_anywhere:
        over = over | fooled
    nearest = slots[:, columns.NEAREST_STEP]
    distance.copy_(torch.where(closer, length, distance))
    nearest.copy_(torch.where(closer, step, nearest))
    success.copy_(torch.where(within & (success < 0), step, success))
    fault.copy_(torch.where(active & ~known, fault | columns.FAULT_NAN_LOGITS, fault))
    moving = active & ~over
    slots[:, columns.ACTIVE].copy_(moving)
    slots[:, columns.STEP].copy_(torch.where(moving, step + 1, step))
    return Verdict(fooled, closer, moving, step, torch.where(known, loss, 0.0).to(length.dtype))
