"""Runs of the AutoAttack comparison: interleaved attacks, the model alone, verified verdicts."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import fastadv
from benchmarks.autoattack.entrants import NAMES, Budget, Build
from benchmarks.harness.networks import Problem
from fastadv.containment import contains

STAGES = (*NAMES, "checks")
_REPEATS = 7, 0.05  # of each bare pass: at least, and as a share of its calls

Call = tuple[int, bool]  # (rows, whether a backward pass to the input follows)


@dataclass
class Stage:
    """One attack of one entrant; times in seconds.

    cpu: of the process. bare: of the same passes through the model, at the same batch sizes, alone.
    forwards, backwards: samples times passes. robust: "1" for a sample that is classified correctly
    and for which nothing was found that the benchmark itself confirms: misclassified, in bounds and
    within eps in float64. refused: claimed by the entrant, not confirmed. distance: the largest of
    what was confirmed, over eps.
    """

    name: str
    attacked: int
    cpu: float
    wall: float
    forwards: int
    backwards: int
    bare: float
    robust: str
    refused: int
    distance: float

    @property
    def beside(self) -> float:
        """Seconds of the attack beside the model."""
        return self.cpu - self.bare


@dataclass
class Round:
    """One interleaved run: the stages of every entrant, and the clean verdict."""

    clean: str
    stages: dict[str, list[Stage]] = field(default_factory=dict)


def run_round(
    problem: Problem, eps: float, builds: dict[str, Build], budget: Budget, *, turn: int
) -> Round:
    """All attacks of all entrants, attack by attack in turn; turn: who begins."""
    _warm_up(problem, eps, builds)
    names = list(builds)
    first = turn % len(names)
    running = {name: builds[name](problem, eps, budget) for name in names[first:] + names[:first]}
    found = Round(_mask(_correct(problem, problem.x)), {name: [] for name in names})
    for index, stage in enumerate(STAGES):
        spent = {}
        for name, entrant in running.items():
            attacked = int(entrant.robust.sum())
            entrant.model.calls.clear()
            work = entrant.check if stage == "checks" else lambda e=entrant, i=index: e.attack(i)
            cpu, wall = _clock(work)
            calls = dict(entrant.model.calls)
            entrant.model.zero_grad(set_to_none=True)  # the authors' FAB leaves some
            # at once: a machine that others share is not as fast a minute later
            spent[name] = attacked, cpu, wall, calls, pass_seconds(problem, calls)
        for name, (attacked, cpu, wall, calls, costs) in spent.items():
            own = running[name]
            robust, refused, distance = verdict(problem, eps, own.robust, own.x_adv)
            found.stages[name].append(
                Stage(
                    name=stage,
                    attacked=len(problem.x) if stage == "checks" else attacked,
                    cpu=cpu,
                    wall=wall,
                    forwards=sum(rows * k for (rows, _), k in calls.items()),
                    backwards=sum(rows * k for (rows, back), k in calls.items() if back),
                    bare=sum(costs[call] * k for call, k in calls.items()),
                    robust=robust,
                    refused=refused,
                    distance=distance,
                )
            )
    return found


def _warm_up(problem: Problem, eps: float, builds: dict[str, Build]) -> None:
    """The first calls, which import and allocate: a few steps of everything on two samples."""
    few = replace(problem, x=problem.x[:2], y=problem.y[:2])
    for build in builds.values():
        entrant = build(few, eps, Budget(steps=4, queries=4, targets=1))
        for search in entrant.searches:
            search(few.x.clone(), few.y.clone())


def _clock(run: Callable[[], object]) -> tuple[float, float]:
    """(process time, wall time) of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def pass_seconds(problem: Problem, calls: dict[Call, int]) -> dict[Call, float]:
    """Process time of one pass of each kind through the model alone: the median of a twentieth of
    its calls, 7 at least.

    With a backward pass: to the input only, which is all that an attack needs, so that what a
    library spends on gradients of the weights counts as its own.
    """
    costs = {}
    for (rows, backward), count in calls.items():
        batch = problem.x[torch.arange(rows, device=problem.x.device) % len(problem.x)]

        def once(batch: torch.Tensor = batch, backward: bool = backward) -> None:
            if not backward:
                with torch.no_grad():
                    problem.model(batch)
                return
            leaf = batch.clone().requires_grad_()
            torch.autograd.grad(problem.model(leaf).sum(), leaf)

        once()
        repeats = max(_REPEATS[0], round(_REPEATS[1] * count))
        costs[rows, backward] = statistics.median(_clock(once)[0] for _ in range(repeats))
    return costs


def verdict(
    problem: Problem, eps: float, robust: torch.Tensor, x_adv: torch.Tensor
) -> tuple[str, int, float]:
    """(mask, claims refused, largest distance of the others over eps), by the benchmark itself.

    robust: (n,) bool, false where x_adv is claimed to fool the model.
    """
    correct = _correct(problem, problem.x)
    claimed = ~robust & correct
    inside = contains(fastadv.Linf(eps), x_adv, problem.x)
    rows = claimed.nonzero()[:, 0]
    confirmed = torch.zeros_like(claimed)
    with torch.no_grad():  # those alone: what fell by a hair was found in a batch of the fallen
        for some in rows.split(256):
            wrong = problem.model(x_adv[some]).argmax(1) != problem.y[some]
            confirmed[some] = wrong & inside[some]
    moved = (x_adv[confirmed].double() - problem.x[confirmed].double()).abs()
    distance = float(moved.max()) / eps if moved.numel() else 0.0
    return _mask(correct & ~confirmed), int((claimed & ~confirmed).sum()), distance


def _correct(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return problem.model(x).argmax(1) == problem.y


def _mask(flags: torch.Tensor) -> str:
    return "".join(str(int(flag)) for flag in flags)


def missed_and_beyond(own: str, other: str) -> tuple[int, int]:
    """(broken there and missed here, broken here beyond it), on the points of the shorter mask."""
    pairs = list(zip(own, other, strict=False))
    return pairs.count(("1", "0")), pairs.count(("0", "1"))


def rounds_of(
    settings: dict[str, Any], count: int, carry_out: Callable[[int], Round], path: Path | None
) -> list[Round]:
    """`count` rounds, each written to `path` as it ends; those that are there already are read.

    Raises ValueError if the file's settings are others, or if two rounds find other verdicts.
    """
    rounds = [] if path is None or not path.exists() else _read(path, settings)
    while len(rounds) < count:
        rounds.append(carry_out(len(rounds)))
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"settings": settings, "rounds": [asdict(r) for r in rounds]})
            unfinished = path.with_suffix(".part")
            unfinished.write_text(text)
            unfinished.replace(path)
    rounds = rounds[:count]
    masks = {name: {r.stages[name][-1].robust for r in rounds} for name in rounds[0].stages}
    unsteady = [name for name, found in masks.items() if len(found) > 1]
    if unsteady:
        raise ValueError(f"rounds of one seed disagree on which points are robust: {unsteady}")
    return rounds


def _read(path: Path, settings: dict[str, Any]) -> list[Round]:
    stored = json.loads(path.read_text())
    if stored["settings"] != settings:
        raise ValueError(
            f"{path.name} holds a run of {stored['settings']}, not {settings}: choose another --out"
        )
    return [
        Round(r["clean"], {name: [Stage(**s) for s in own] for name, own in r["stages"].items()})
        for r in stored["rounds"]
    ]
