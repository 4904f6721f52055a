"""What a step of AutoAttack's attacks dispatches beside the model, by counting.

A step is one of the authors' loop: a gradient step of APGD, a projection of FAB, a query of Square.
The radius is so small that nothing falls and every step is made; the weights need no gradient, so
that a backward pass is the same for all. What a run does once (checks, the start) cancels: a longer
run less a shorter one.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from benchmarks.autoattack.entrants import Budget, Build
from benchmarks.autoattack.rows import SUITE, baseline_of
from benchmarks.autoattack.runs import Call, missed_and_beyond, verdict
from benchmarks.harness import networks, schema
from benchmarks.harness.networks import Problem
from benchmarks.harness.tally import Tally

# attack, shorter and longer run: APGD's schedule belongs to 100 steps, Square's side to 5,000
PROBES = (
    ("APGD-Linf", 1, 100),
    ("APGD-T", 1, 100),
    ("FAB-T", 20, 60),
    ("Square-Linf", 100, 300),
)
UNIT = "ops"
_SAMPLES = 8
_TINY, _EPS = 1e-5, 2 / 255  # nothing falls; some samples do


@dataclass(frozen=True)
class StepOps:
    """Of one step, beside the model: dispatched ops, those whose result the host must know.

    evaluations: calls of the model. names: ops of the whole difference, the model's too.
    """

    ops: float
    data_dependent: float
    evaluations: float
    names: dict[str, int] = field(default_factory=dict, compare=False)


def count(build: Build, problem: Problem, index: int, shorter: int, longer: int) -> StepOps:
    """Attack number `index` of an entrant on `problem`: (longer - shorter run) / their steps."""
    forward, backward = _model_ops(problem)
    looks, tallies = [], []
    for steps in (shorter, longer):
        entrant = build(problem, _TINY, Budget(steps=steps, queries=steps, targets=1))
        entrant.model.requires_grad_(False)
        entrant.searches[index](problem.x, problem.y)  # first calls fill caches
        entrant.model.calls.clear()
        with Tally() as tally:
            entrant.searches[index](problem.x, problem.y)
        looks.append(dict(entrant.model.calls))
        tallies.append(tally)
    steps = longer - shorter
    before, after = (_calls_by_kind(calls) for calls in looks)
    calls = {kind: after[kind] - before[kind] for kind in (False, True)}
    model = calls[False] * forward + calls[True] * backward
    names = Counter(tallies[1].names)
    names.subtract(tallies[0].names)
    return StepOps(
        ops=(tallies[1].ops - tallies[0].ops - model) / steps,
        data_dependent=(tallies[1].data_dependent - tallies[0].data_dependent) / steps,
        evaluations=sum(calls.values()) / steps,
        names={name: k for name, k in names.items() if k},
    )


def _calls_by_kind(calls: dict[Call, int]) -> Counter[bool]:
    kinds: Counter[bool] = Counter()
    for (_, backward), k in calls.items():
        kinds[backward] += k
    return kinds


def _model_ops(problem: Problem) -> tuple[int, int]:
    """Ops of a forward pass, and of one with the backward pass to the input."""
    model = problem.model.requires_grad_(False)
    leaf = problem.x.clone().requires_grad_()
    with torch.no_grad(), Tally() as forward:
        logits = model(problem.x)
    grad = torch.ones_like(logits)
    with Tally() as both:
        torch.autograd.grad(model(leaf), leaf, grad)
    return forward.ops, both.ops


def rows(builds: dict[str, Build], where: schema.Environment) -> list[schema.Row]:
    """A row for each attack and entrant; q50: ops a step."""
    problem = networks.batchnorm(_SAMPLES, torch.device("cpu"))
    found = []
    for index, (name, shorter, longer) in enumerate(PROBES):
        costs = {
            who: count(build, problem, index, shorter, longer) for who, build in builds.items()
        }
        equalities = dict(_equalities(builds, problem, index))
        base = costs[baseline_of(list(builds))]
        for who, cost in costs.items():
            found.append(
                schema.Row(
                    suite=SUITE,
                    case=f"{name}, one step",
                    provider=who,
                    shape=tuple(problem.x.shape),
                    dtype="float32",
                    n=len(problem.x),
                    rounds=1,
                    q20=cost.ops,
                    q50=cost.ops,
                    q80=cost.ops,
                    unit=UNIT,
                    timed="nothing: ops dispatched by a step beside the model, counted",
                    not_timed="the model's passes, the start, checks",
                    baseline=baseline_of(list(builds)),
                    ratio=base.ops / cost.ops,
                    equality=equalities[who],
                    environment=where,
                    extra={
                        "data_dependent_ops": cost.data_dependent,
                        "evaluations": cost.evaluations,
                    },
                )
            )
    return found


def _equalities(
    builds: dict[str, Build], problem: Problem, index: int
) -> Iterator[tuple[str, schema.Equality]]:
    """The attack that is counted finds what it should: verdicts after 20 steps, 200 queries."""
    masks = {}
    for who, build in builds.items():
        entrant = build(problem, _EPS, Budget(steps=20, queries=200, targets=1))
        x_adv = entrant.searches[index](problem.x, problem.y)
        with torch.no_grad():
            robust = problem.model(x_adv).argmax(1) == problem.y
        masks[who] = verdict(problem, _EPS, robust, x_adv)[0]
    base = baseline_of(list(builds))
    for who, own in masks.items():
        missed, beyond = missed_and_beyond(own, masks[base])
        yield (
            who,
            schema.Equality(
                max(missed - beyond, 0) / len(own),
                1 / len(own),
                "points that the baseline broke and this one missed, less those it broke beyond, "
                "over n; tolerance: one",
                base,
            ),
        )
