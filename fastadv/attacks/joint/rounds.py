"""A round of a joint search: a few steps in a ball that is smaller than the distance known."""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from fastadv.attacks.attack import Attack
from fastadv.attacks.auto_pgd.attack import AutoPGD, apgd_t
from fastadv.attacks.call import targets
from fastadv.attacks.call.call import Call
from fastadv.attacks.gradient.attack import GradientAttack
from fastadv.attacks.gradient.named import pgd
from fastadv.attacks.joint import balls
from fastadv.attacks.joint.found import Found
from fastadv.attacks.joint.plans import NEAREST, ROUND, Try, polish_in, tries_in
from fastadv.attacks.square_search.attack import square
from fastadv.engine.algorithm import SlotAlgorithm
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.ops import layout
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

COST = 2 * ROUND + 1  # passes of a round that finds nothing, or confirms what it finds
_SQUARE_SIDE = 5  # pixels that the windows of L2 and L1 need
_SQUARES, _QUERIES = 8, 100  # rounds of Square that the passes are for, and queries of one at least


class Attacked(NamedTuple):
    """What all rounds attack. logits: (n, C) of the model at x. threat: without a radius."""

    model: Model
    x: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    sample_ids: torch.Tensor
    extra: tuple[torch.Tensor, ...]
    threat: ThreatModel
    execution: Execution

    def call(
        self,
        attack: Attack,
        rows: torch.Tensor,
        *,
        x_init: torch.Tensor | None = None,
        ranks: torch.Tensor | None = None,
    ) -> Call:
        """Of `attack` on `rows`; arguments as of `Call`."""
        return Call(
            attack,
            self.model,
            layout.gather_rows(self.x, rows),
            self.labels[rows],
            target=None,
            sample_ids=self.sample_ids[rows],
            extra=[layout.gather_rows(part, rows) for part in self.extra],
            execution=self.execution,
            x_init=x_init,
            clean_logits=self.logits[rows],
            ranks=ranks,
        )


class _LooksOften:
    """Of an attack of a few steps: slots are looked at after each, so that none is idle."""

    def algorithm(self, oracle: Oracle, **more: Any) -> SlotAlgorithm:
        algorithm = super().algorithm(oracle, **more)  # type: ignore[misc]
        algorithm.stride = 1
        return algorithm


@dataclass(frozen=True, repr=False, eq=False)
class _Ascent(_LooksOften, AutoPGD):
    """APGD towards one class."""


@dataclass(frozen=True, repr=False, eq=False)
class _SparseAscent(_LooksOften, GradientAttack):
    """PGD in L0."""


def run_round(attacked: Attacked, found: Found, seed: int) -> tuple[int, int]:
    """Every sample with enough passes left looks into a smaller ball, in the way whose turn it is;
    (forwards, backwards), zeros where none has. seed: of the round."""
    tries = tries_in(attacked.threat.norm)
    alive = found.left >= COST + polish_in(attacked.threat.norm)
    if attacked.threat.norm == "l0":
        alive &= (found.distance > 1) & ~found.masked  # a single entry is the nearest there is
    turn = found.failures % len(tries)
    searched = found.masked & _takes_squares(attacked)
    forwards = backwards = 0
    for index, way in enumerate(tries):
        rows = (alive & ~searched & (turn == index)).nonzero()[:, 0]
        if len(rows):
            call = _round(attacked, found, rows, way, seed)
            _enter(attacked, found, rows, call, costs=(2, COST))
            forwards += call.oracle.forwards
            backwards += call.oracle.backwards
    return forwards, backwards


def run_squares(attacked: Attacked, found: Found, seed: int) -> tuple[int, int]:
    """Square on the samples for which the first search has found nothing, in balls that are halved
    as long as it finds something; (forwards, backwards)."""
    forwards = 0
    rows = (found.masked & (found.left > _QUERIES)).nonzero()[:, 0]
    if len(rows) == 0 or not _takes_squares(attacked):
        return 0, 0
    queries = max(_QUERIES, int(found.left[rows].max()) // _SQUARES)
    for number in range(_SQUARES):
        rows = (found.masked & (found.left > queries)).nonzero()[:, 0]
        if len(rows) == 0:
            break
        threat = _of_radius(attacked, found.next_radius(rows, _widest(attacked)))
        call = attacked.call(square(threat, queries=queries, seed=seed + number), rows)
        _enter(attacked, found, rows, call, costs=(1, queries + 1))
        forwards += call.oracle.forwards
    return forwards, 0


def _takes_squares(attacked: Attacked) -> bool:
    least = 1 if attacked.threat.norm == "linf" else _SQUARE_SIDE
    x = attacked.x
    return attacked.threat.norm != "l0" and x.ndim == 4 and min(x.shape[2:]) >= least


def aimed_call(
    attacked: Attacked,
    found: Found,
    rows: torch.Tensor,
    *,
    radius: torch.Tensor | None = None,
    way: Try = NEAREST,
    seed: int = 0,
) -> Call:
    """A round of APGD on z_t - z_y in balls of (k,) `radius`; t, and the start, by `way`."""
    radius = found.distance[rows] if radius is None else radius
    attack = apgd_t(
        _of_radius(attacked, radius), steps=ROUND, n_target_classes=1, loss="difference", seed=seed
    )
    return attacked.call(
        _Ascent(**_settings(attack)),
        rows,
        x_init=_start(attacked, found, rows, radius, way),
        ranks=_ranks(attacked, found, rows, way),
    )


def _round(attacked: Attacked, found: Found, rows: torch.Tensor, way: Try, seed: int) -> Call:
    radius = found.next_radius(rows, _widest(attacked))
    if attacked.threat.norm != "l0":
        return aimed_call(attacked, found, rows, radius=radius, way=way, seed=seed)
    radius = torch.minimum(radius.floor(), found.distance[rows] - 1).clamp(min=1)
    attack = pgd(_of_radius(attacked, radius), steps=ROUND, loss="margin", seed=seed)
    start = _start(attacked, found, rows, radius, way)
    return attacked.call(_SparseAscent(**_settings(attack)), rows, x_init=start)


def _start(
    attacked: Attacked, found: Found, rows: torch.Tensor, radius: torch.Tensor, way: Try
) -> torch.Tensor | None:
    """None for random ones."""
    if way.start == "random":
        return None
    x, nearest = (layout.gather_rows(part, rows) for part in (attacked.x, found.x_adv))
    return balls.drawn_in(nearest, x, radius, attacked.threat)


def _settings(attack: Any) -> dict[str, Any]:
    return {field.name: getattr(attack, field.name) for field in fields(attack)}


def _of_radius(attacked: Attacked, radius: torch.Tensor) -> ThreatModel:
    eps = radius.to(layout.compute_dtype(attacked.x))
    return replace(attacked.threat, eps=eps)  # type: ignore[type-var]


def _widest(attacked: Attacked) -> float:
    return balls.widest(attacked.x, attacked.threat)


def _ranks(attacked: Attacked, found: Found, rows: torch.Tensor, way: Try) -> torch.Tensor:
    """(k, C): the class to aim at is the highest but for the label."""
    logits, labels = attacked.logits[rows], attacked.labels[rows]
    classes = logits.shape[1] - 1
    likely = targets.rank(logits, labels, classes)
    place = (found.failures[rows] // len(tries_in(attacked.threat.norm))) % classes
    aim = likely.gather(1, place[:, None])[:, 0]
    if way.class_aimed == "same":
        aim = torch.where(found.distance[rows].isinf(), likely[:, 0], found.prediction[rows])
    return _at(aim, logits).to(logits.dtype)


def _at(classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.arange(logits.shape[1], device=logits.device) == classes[:, None]


def _enter(
    attacked: Attacked,
    found: Found,
    rows: torch.Tensor,
    call: Call,
    *,
    costs: tuple[int, int],
) -> None:
    """What a round has found for `rows`; costs: passes of a step, and of all of them."""
    fallen = call.fallen()
    hit = rows[fallen.indices]
    a_step, whole = costs
    used = torch.full_like(rows, whole)
    used[fallen.indices] = (a_step * (fallen.step + 1) + 1).clamp(max=whole)
    found.left[rows] -= used
    won = torch.zeros_like(rows, dtype=torch.bool)
    won[fallen.indices] = True
    made = found.budget - found.left[hit]
    found.enter(
        hit,
        fallen.x_adv,
        attacked.threat.distance(fallen.x_adv, layout.gather_rows(attacked.x, hit)),
        loss=fallen.margin,
        prediction=fallen.prediction,
        best_at=made,
        step=made // 2,
    )
    found.adapt(rows, won)
