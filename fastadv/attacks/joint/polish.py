"""The end of a joint search: along the linearised boundary to its point that is nearest to x."""

import torch

from fastadv.attacks.call.call import Call
from fastadv.attacks.call.verdict import margin_of
from fastadv.attacks.joint.found import Found
from fastadv.attacks.joint.plans import POLISH, polish_in
from fastadv.attacks.joint.rounds import Attacked, aimed_call
from fastadv.elements import common_bounds
from fastadv.ops import doubles, layout
from fastadv.ops.fab.projection import hyperplane_projection
from fastadv.threat_model import ThreatModel

# beyond the boundary, as shares of the way to it: what a linear model needs, and a curved one
_OVERSHOOTS = (1e-6, 1e-3, 1e-2)


def polish(attacked: Attacked, found: Found) -> tuple[int, int]:
    """Go to the projection of x onto the boundary, linearised at the nearest example, where the
    model misclassifies it or a point a little beyond; (forwards, backwards). Not in L0."""
    forwards = backwards = 0
    for _ in range(polish_in(attacked.threat.norm) // POLISH):
        rows = ((found.left >= POLISH) & found.distance.isfinite()).nonzero()[:, 0]
        if len(rows) == 0:
            break
        call = aimed_call(attacked, found, rows)
        nearest = layout.gather_rows(found.x_adv, rows)
        x = layout.gather_rows(attacked.x, rows)
        grad, value = call.slopes_at(nearest)
        found.left[rows] -= 2
        way = _to_boundary(attacked.threat, x, nearest, grad, value)
        for overshoot in _OVERSHOOTS:
            _look(attacked, found, rows, call, x, way * (1 + overshoot))
        forwards += call.oracle.forwards
        backwards += call.oracle.backwards
    return forwards, backwards


def _to_boundary(
    threat: ThreatModel,
    x: torch.Tensor,
    nearest: torch.Tensor,
    grad: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """(k, ...) the shortest way from x, in bounds, to where value + grad (z - nearest) is 0; in
    float64, as most of grad * nearest cancels."""
    clean, point, slope = (doubles.doubled(part).flatten(1) for part in (x, nearest, grad))
    level = (slope * point).sum(1) - doubles.doubled(value)
    way = hyperplane_projection(clean, slope, level, norm=threat.norm, bounds=common_bounds(threat))
    return doubles.returned(way.view(x.shape), x)


def _look(
    attacked: Attacked,
    found: Found,
    rows: torch.Tensor,
    call: Call,
    x: torch.Tensor,
    way: torch.Tensor,
) -> None:
    """Enter x + way where the model misclassifies it."""
    bounds = common_bounds(attacked.threat)
    moved = x + way.to(x.dtype)
    moved = moved if bounds is None else moved.clamp(*bounds)
    found.left[rows] -= 1
    logits = call.outputs_at(moved)
    margin, prediction = margin_of(logits, attacked.labels[rows])
    is_wrong = (prediction != attacked.labels[rows]) & ~logits.isnan().any(1)
    hit = is_wrong.nonzero()[:, 0]
    made = found.budget - found.left[rows[hit]]
    moved = layout.gather_rows(moved, hit)
    found.enter(
        rows[hit],
        moved,
        attacked.threat.distance(moved, layout.gather_rows(x, hit)),
        loss=margin[hit],
        prediction=prediction[hit],
        best_at=made,
        step=made // 2,
    )
