"""The ops of AutoAttack's members in mid-attack, each beside its own eager reference."""

import functools
from typing import Any

import torch

from benchmarks.gpu.op_cases import (
    EPS,
    EXACT,
    SUMS,
    Build,
    Call,
    RowState,
    against_reference,
    radius_of,
)
from benchmarks.ops.cases import OpCase, Shape, step_tensors
from fastadv.ops import layout
from fastadv.ops.apgd import l1 as apgd_l1
from fastadv.ops.apgd import l2 as apgd_l2
from fastadv.ops.apgd import linf as apgd
from fastadv.ops.apgd import schedule as apgd_schedule
from fastadv.ops.apgd.check import apgd_check_
from fastadv.ops.fab import projection as fab_projection
from fastadv.ops.fab import step as fab
from fastadv.ops.square import linf as square_linf
from fastadv.ops.square import lp as square_lp
from fastadv.ops.square import table as square_table

_QUERIES = 1000


def apgd_step(norm: str) -> Build:
    """APGD's step between two checks, at an iterate that is no better than the best."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        t = step_tensors(shape, dtype, device, EPS)
        eps = radius_of(norm, shape)
        compute = layout.compute_dtype(t.x)

        def make() -> Call:
            rows = RowState.of(shape[0], device, eps)
            x_adv, previous, best = t.x_adv.clone(), t.x.clone(), t.x_adv.clone()
            grad_best = t.grad.clone()
            step_size = rows.eps * 0.5
            if norm == "l1":
                plan, radius = apgd_schedule.apgd_l1_plan(1000, large_radii=False)
                state = {
                    "sparsity": torch.full_like(rows.eps, 0.05),
                    "phase_eps": rows.eps.clone(),
                    "support": torch.full_like(rows.eps, 100.0),
                    "best_loss": rows.best,
                    "plan": torch.tensor(plan, dtype=torch.int32, device=device),
                    "radius": torch.tensor(radius, dtype=compute, device=device),
                }
                grad = t.grad.clone()

                def sparse() -> torch.Tensor:
                    apgd_l1.apgd_l1_step_(
                        x_adv,
                        best,
                        grad_best,
                        grad,
                        t.x,
                        step_size=step_size,
                        eps=rows.eps,
                        bounds=(0.0, 1.0),
                        slots=rows.slots,
                        **state,
                    )
                    return x_adv

                return sparse
            progress = torch.zeros(shape[0], 5, dtype=compute, device=device)
            op = apgd.apgd_linf_step_ if norm == "linf" else apgd_l2.apgd_l2_step_

            def dense() -> torch.Tensor:
                op(
                    x_adv,
                    previous,
                    best,
                    grad_best,
                    t.grad,
                    t.x,
                    step_size=step_size,
                    eps=rows.eps,
                    bounds=(0.0, 1.0),
                    slots=rows.slots,
                    progress=progress,
                )
                return x_adv

            return dense

        moved = (4 if norm == "l1" else 6) * t.x.nbytes
        return against_reference(
            f"apgd_{norm}_step_",
            shape,
            dtype,
            make,
            ulps=1 if norm == "linf" else 16,
            bytes_moved=moved,
            metric=EXACT if norm == "linf" else SUMS,
        )

    return build


def apgd_check(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """A launch over (B, 5): its time is the launch's."""

    def make() -> Call:
        rows = RowState.of(shape[0], device, EPS)
        progress = torch.zeros(shape[0], 5, device=device)
        table = torch.tensor(apgd_schedule.apgd_checkpoints(100), dtype=torch.int32, device=device)
        step_size = rows.eps * 2

        def run() -> torch.Tensor:
            apgd_check_(progress, step_size, rows.loss, rows.best, rows.slots, table)
            return step_size

        return run

    return against_reference("apgd_check_", shape, dtype, make, ulps=0, bytes_moved=None)


def fab_step(norm: str) -> Build:
    """FAB's step at a point that is not adversarial: two projections and the next point."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        t = step_tensors(shape, dtype, device, EPS)

        def make() -> Call:
            rows = RowState.of(shape[0], device, EPS)
            x_adv, closest = t.x_adv.clone(), t.x_adv.clone()
            distance = torch.full_like(rows.eps, float("inf"))
            pulled = torch.zeros(shape[0], dtype=torch.bool, device=device)
            difference = torch.full_like(rows.eps, -0.01)

            def run() -> torch.Tensor:
                fab.fab_step_(
                    x_adv,
                    closest,
                    t.grad,
                    t.x,
                    difference=difference,
                    prediction=rows.labels,
                    labels=rows.labels,
                    distance=distance,
                    pulled_back=pulled,
                    slots=rows.slots,
                    eps=rows.eps,
                    norm=norm,
                    steps=10**6,
                    stop_early=False,
                )
                return x_adv

            return run

        return against_reference(
            f"fab_step_ ({norm})",
            shape,
            dtype,
            make,
            ulps=64,
            bytes_moved=4 * t.x.nbytes,
            metric="max difference; levels from sums in other orders: tests hold 5e-6, 42 ulp",
        )

    return build


def fab_nearest(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
    """A class that is no nearer: its gradient is read, nothing is taken over."""
    t = step_tensors(shape, dtype, device, EPS)

    def make() -> Call:
        rows = RowState.of(shape[0], device, EPS)
        nearest, value = t.grad.clone(), torch.full_like(rows.eps, -0.1)
        ratio, difference = torch.zeros_like(rows.eps), torch.full_like(rows.eps, -0.2)

        def run() -> torch.Tensor:
            fab.fab_nearest_(nearest, value, ratio, t.grad, difference, rows.labels, 3, norm="linf")
            return nearest

        return run

    return against_reference("fab_nearest_", shape, dtype, make, ulps=0, bytes_moved=t.x.nbytes)


@functools.cache
def _table(shape: Shape, norm: str, device: torch.device) -> square_table.SquareTable:
    return square_table.square_table(_QUERIES, shape, norm=norm, seed=0, device=device)


def square(norm: str) -> Build:
    """Square's step after a proposal that was not accepted: the next window is proposed."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        x = step_tensors(shape, dtype, device, EPS).x
        eps, table = radius_of(norm, shape), _table(shape[1:], norm, device)

        def make() -> Call:
            rows = RowState.of(shape[0], device, eps)
            x_new, best = x.clone(), x.clone()
            none = torch.zeros(shape[0], dtype=torch.int32, device=device)
            state: dict[str, Any] = {
                "loss": rows.loss,
                "prediction": rows.labels,
                "labels": rows.labels,
                "best_loss": rows.best,
                "queries": none[:, None].clone(),
                "wasted": none.clone(),
                "slots": rows.slots,
                "restarts": none,
                "table": table,
                "eps": eps,
            }
            if norm == "linf":
                op = square_linf.square_linf_
            else:
                op = square_lp.square_l2_ if norm == "l2" else square_lp.square_l1_
                state |= {"sample_ids": torch.arange(shape[0], device=device), "seed": 0}

            def run() -> torch.Tensor:
                op(x_new, best, x, **state)
                return x_new

            return run

        return against_reference(
            f"square_{norm}_",
            shape,
            dtype,
            make,
            ulps=1 if norm == "linf" else 16,
            bytes_moved=None if norm == "linf" else 3 * x.nbytes,
            metric=EXACT if norm == "linf" else SUMS,
        )

    return build


def hyperplane(norm: str) -> Build:
    """FAB's projection by itself: the nearest point of a hyperplane in the box."""

    def build(shape: Shape, dtype: torch.dtype, device: torch.device) -> OpCase:
        t = step_tensors(shape, dtype, device, EPS)
        points, w = t.x_adv.flatten(1), t.grad.flatten(1)
        b = (w.float() * points.float()).sum(1) - 0.001
        return against_reference(
            f"hyperplane_projection ({norm})",
            shape,
            dtype,
            lambda: lambda: fab_projection.hyperplane_projection(points, w, b, norm=norm),
            ulps=64,
            bytes_moved=3 * t.x.nbytes,
            metric=SUMS,
        )

    return build


IMAGE_OPS: dict[str, Build] = {
    "apgd_linf": apgd_step("linf"),
    "fab_linf": fab_step("linf"),
    "square_linf": square("linf"),
    "apgd_l2": apgd_step("l2"),
    "apgd_l1": apgd_step("l1"),
    "apgd_check": apgd_check,
    "fab_l2": fab_step("l2"),
    "fab_l1": fab_step("l1"),
    "fab_nearest": fab_nearest,
    "square_l2": square("l2"),
    "square_l1": square("l1"),
    "hyperplane_linf": hyperplane("linf"),
}
