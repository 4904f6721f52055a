"""Ops: a schema, an eager reference that defines it, a Triton launch, often a CPU path."""

from fastadv.ops.augment.batch import AugmentedBatch, augment_batch, augment_batch_reference
from fastadv.ops.backend import use_backend
from fastadv.ops.heads.loss_head import HeadOutput, loss_head, loss_head_, loss_head_reference
from fastadv.ops.noise.start import random_start, random_start_reference
from fastadv.ops.steps.l0 import l0_step, l0_step_, l0_step_reference
from fastadv.ops.steps.l1 import l1_step, l1_step_, l1_step_reference
from fastadv.ops.steps.l1_projection import project_l1, project_l1_reference
from fastadv.ops.steps.l2 import l2_step, l2_step_, l2_step_reference
from fastadv.ops.steps.linf import linf_step, linf_step_, linf_step_reference
from fastadv.ops.steps.select import select_rows_

__all__ = [
    "AugmentedBatch",
    "HeadOutput",
    "augment_batch",
    "augment_batch_reference",
    "l0_step",
    "l0_step_",
    "l0_step_reference",
    "l1_step",
    "l1_step_",
    "l1_step_reference",
    "l2_step",
    "l2_step_",
    "l2_step_reference",
    "linf_step",
    "linf_step_",
    "linf_step_reference",
    "loss_head",
    "loss_head_",
    "loss_head_reference",
    "project_l1",
    "project_l1_reference",
    "random_start",
    "random_start_reference",
    "select_rows_",
    "use_backend",
]


def __dir__() -> list[str]:
    return sorted(__all__)
