"""Ops as attacks call them, on tensors so small that a device would wait for the host."""

from collections.abc import Callable
from functools import partial

import torch

from fastadv import ops
from fastadv.kernels import slots as columns
from fastadv.ops.apgd.check import apgd_check_
from fastadv.ops.apgd.linf import apgd_linf_step_
from fastadv.ops.fab.step import fab_step_
from fastadv.ops.heads.loss_head import loss_head_

SHAPE = (8, 3, 8, 8)
CLASSES = 10


def calls() -> dict[str, Callable[[], object]]:
    """By name: an op with all its arguments, to be called again and again."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SHAPE, generator=generator)
    batch = len(x)
    copies = [x.clone() for _ in range(4)]
    grad = torch.randn(SHAPE, generator=generator)
    labels = torch.randint(CLASSES, (batch,), generator=generator)
    logits = torch.randn(batch, CLASSES, generator=generator)
    slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32)
    slots[:, columns.ACTIVE] = 1
    step_size, eps = torch.full((batch,), 0.01), torch.full((batch,), 0.03)
    loss, best_loss, distance = (torch.full((batch,), 9.0) for _ in range(3))
    correct, pulled_back = (torch.zeros(batch, dtype=torch.bool) for _ in range(2))
    prediction = labels.clone()
    head = partial(
        loss_head_, logits, labels, None, None, loss, torch.empty_like(logits), prediction, correct
    )
    rules = "cross_entropy", 0.0, 100, 0, True, 0, False
    return {
        "linf_step_": partial(ops.linf_step_, copies[0], grad, x, step_size=0.01, eps=0.03),
        "linf_step_, as the engine calls it": partial(
            ops.linf_step_, copies[0], grad, x, step_size=step_size, eps=eps, slots=slots
        ),
        "loss head, cross-entropy": partial(head, None, None, *rules),
        "loss head, tracked": partial(head, slots, best_loss, *rules),
        "apgd_linf_step_": partial(
            apgd_linf_step_,
            *copies,
            grad,
            x,
            step_size=step_size,
            eps=eps,
            bounds=(0.0, 1.0),
            slots=slots,
            progress=torch.zeros(batch, 5),
        ),
        "apgd_check_": partial(
            apgd_check_,
            torch.zeros(batch, 5),
            step_size,
            loss,
            best_loss,
            slots,
            torch.zeros(101, dtype=torch.int32),
        ),
        "fab_step_": partial(
            fab_step_,
            *copies[:2],
            grad,
            x,
            difference=loss,
            prediction=prediction,
            labels=labels,
            distance=distance,
            pulled_back=pulled_back,
            slots=slots,
            eps=eps,
            norm="linf",
            steps=100,
            stop_early=True,
        ),
    }
