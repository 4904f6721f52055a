"""Rows of the AutoAttack comparison: one an attack and entrant, and one for all attacks."""

import math
import statistics
import sys
from collections.abc import Sequence

from benchmarks.autoattack.entrants import AUTHORS, OURS, TORCHATTACKS, Budget
from benchmarks.autoattack.runs import STAGES, Round, Stage, missed_and_beyond
from benchmarks.harness import harness, schema
from benchmarks.harness.networks import Problem

SUITE = "autoattack"
TOTAL = "total"
_POINTS = 250  # one point in so many may be missed, net; of fewer points one
_TIMED = (
    "process time of each attack on the samples that its own library's attacks before it left "
    "robust, and of what else a run does (clean accuracy, checks of the model); fastadv with the "
    "slots it takes by itself, the others in batches of 250"
)
_NOT_TIMED = "import, construction, loading, the first calls, verification by the benchmark"


def baseline_of(providers: Sequence[str]) -> str:
    return next(name for name in (AUTHORS, TORCHATTACKS, OURS) if name in providers)


def rows_of(
    problem: Problem,
    eps: float,
    rounds: list[Round],
    where: schema.Environment,
    budget: Budget,
    *,
    reference: str | None,
) -> list[schema.Row]:
    """reference: the stored verdict of the authors' code on the first points, if there is one.

    Raises ValueError where fastadv misses more than 1 in 250 points net: no time for a weaker
    attack. Another library that does is left out, and said so.
    """
    providers = list(rounds[0].stages)
    rows = []
    for name in providers:
        try:
            equality = equality_of(rounds[0], name, reference)
        except ValueError as refused:
            if name == OURS:
                raise ValueError(f"{name} on {problem.name}: {refused}") from refused
            print(f"without {name} on {problem.name}: {refused}", file=sys.stderr)
            continue
        for index, stage in enumerate((*STAGES, TOTAL)):
            own = [_stage(r, name, index) for r in rounds]
            base = [_stage(r, baseline_of(providers), index) for r in rounds]
            extra = _figures(own, base) | _parity(rounds[0], name, index, reference)
            q20, q50, q80 = harness.quantiles([s.cpu for s in own])
            rows.append(
                schema.Row(
                    suite=SUITE,
                    case=f"{problem.name} {stage}",
                    provider=name,
                    shape=(len(problem.x), *problem.x.shape[1:]),
                    dtype="float32",
                    n=len(problem.x),
                    rounds=len(rounds),
                    q20=q20,
                    q50=q50,
                    q80=q80,
                    unit="s",
                    timed=_TIMED,
                    not_timed=_NOT_TIMED,
                    baseline=baseline_of(providers),
                    ratio=_ratio(own, base, "cpu"),
                    equality=equality,
                    environment=where,
                    extra=extra,
                    robustness=_robustness(problem, eps, rounds[0], own[0], budget),
                )
            )
    return rows


def equality_of(found: Round, name: str, reference: str | None) -> schema.Equality:
    """Net misses over n against the stored verdict, or against that of the baseline in this run."""
    base = baseline_of(list(found.stages))
    other = reference or found.stages[base][-1].robust
    own = found.stages[name][-1].robust
    points = min(len(own), len(other))
    missed, beyond = missed_and_beyond(own, other)
    metric = (
        f"points that the reference broke and this one missed, less those it broke beyond, over "
        f"{points} points; tolerance: one in {_POINTS}, at least one"
    )
    return schema.Equality(
        max(missed - beyond, 0) / points,
        math.ceil(points / _POINTS) / points,
        metric,
        f"{AUTHORS}, stored verdict" if reference else f"{base} in the same run",
    )


def _stage(found: Round, name: str, index: int) -> Stage:
    """A stage of a round; behind the last one the sum of all."""
    stages = found.stages[name]
    if index < len(stages):
        return stages[index]
    added = {
        field: sum(getattr(stage, field) for stage in stages)
        for field in ("cpu", "wall", "forwards", "backwards", "bare")
    }
    last = stages[-1]
    return Stage(
        name=TOTAL,
        attacked=stages[0].attacked,
        robust=last.robust,
        refused=last.refused,
        distance=last.distance,
        **added,
    )


def _figures(own: list[Stage], base: list[Stage]) -> dict[str, float]:
    """Medians over rounds, and what is the same in all of them."""
    extra: dict[str, float] = {
        "wall": statistics.median(s.wall for s in own),
        "bare": statistics.median(s.bare for s in own),
        "beside": statistics.median(s.beside for s in own),
        "attacked": own[0].attacked,
        "forwards": own[0].forwards,
        "backwards": own[0].backwards,
        "refused": own[0].refused,
        "distance": own[0].distance,
    }
    if all(s.beside > 0 for s in own + base):  # else the model is all there is, but for noise
        extra["beside_ratio"] = _ratio(own, base, "beside")
    return extra


def _parity(found: Round, name: str, index: int, reference: str | None) -> dict[str, float]:
    """Points missed and broken beyond: of the baseline in this run, of the stored verdict."""
    if STAGES[min(index, len(STAGES) - 1)] != STAGES[-1]:
        reference = None  # it is of all attacks
    base = _stage(found, baseline_of(list(found.stages)), index)
    own = _stage(found, name, index)
    missed, beyond = missed_and_beyond(own.robust, base.robust)
    extra: dict[str, float] = {"missed": missed, "beyond": beyond}
    if reference is not None:
        missed, beyond = missed_and_beyond(own.robust, reference)
        extra |= {
            "reference_points": min(len(own.robust), len(reference)),
            "reference_missed": missed,
            "reference_beyond": beyond,
        }
    return extra


def _ratio(own: list[Stage], base: list[Stage], what: str) -> float:
    """Median over rounds of base / own."""
    pairs = zip(own, base, strict=True)
    value = statistics.median(getattr(b, what) / getattr(o, what) for o, b in pairs)
    return float(f"{value:.4g}")


def _robustness(
    problem: Problem, eps: float, found: Round, stage: Stage, budget: Budget
) -> schema.Robustness:
    n = len(problem.x)
    return schema.Robustness(
        attack="AutoAttack, standard",
        norm="linf",
        eps=eps,
        step_size=2 * eps,
        steps=budget.steps,
        restarts=1,
        seed=0,
        n=n,
        model=problem.name,
        data=problem.data,
        clean_accuracy=found.clean.count("1") / n,
        robust_accuracy=stage.robust.count("1") / n,
    )
