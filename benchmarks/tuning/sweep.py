"""Every batch size of every copy, timed; and what `tune` chose beside the fastest of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

import fastadv
from benchmarks.execution.runs import process_clock
from benchmarks.harness import harness, schema
from benchmarks.harness.networks import Problem
from fastadv.attacks.automatic import tuning_table
from fastadv.isolation import isolated
from fastadv.tuning.candidates import EXACT, Shadows, folds
from fastadv.tuning.passes import USES, Use, pass_of
from fastadv.tuning.table import in_words

SUITE = "tuning"
BEST = "fastest of the sweep"
DEFAULT = "default"
_TIMED = (
    "process time of n samples by forward passes and by steps with their way back, in equal parts "
    "by the default's times, in batches of each choice; passes alone"
)
_METRIC = "largest difference of logits from the model's, over the largest logit"
_SLOW = 3.0  # seconds of a pass, beyond which no larger batch is swept


_SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)  # samples repeated where there are fewer


class Sweep:
    """Timed passes of one network; must be used inside `isolated`."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.shadows = Shadows(problem.model, problem.x[:64], ())
        self._runs: dict[tuple[fastadv.Execution, Use], Callable[[], None]] = {}

    def run(self, execution: fastadv.Execution, use: Use) -> Callable[[], None]:
        """One pass of a batch of it."""
        if (execution, use) not in self._runs:
            model = self.shadows.of(replace(execution, batch_size=None))
            assert model is not None, self.shadows.notes
            rows = execution.batch_size or 1
            x = self.problem.x[torch.arange(rows) % len(self.problem.x)]
            if execution.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            self._runs[execution, use] = pass_of(use, model, x, ())
        return self._runs[execution, use]

    def seconds(self, execution: fastadv.Execution, use: Use) -> float:
        """A sample, of one pass."""
        return process_clock(self.run(execution, use)) / (execution.batch_size or 1)

    def candidates(self) -> list[fastadv.Execution]:
        """All that can be had in fp32, in sizes up to slow passes."""
        variants = [EXACT]
        if folds(self.problem.model):
            variants.append(fastadv.Execution(fold_batchnorm=True))
        if self.problem.x.ndim == 4:
            variants += [replace(one, channels_last=True) for one in variants]
        variants = [one for one in variants if self.shadows.of(one) is not None]
        sizes = []
        for size in _SIZES:
            sizes.append(size)
            if self.seconds(replace(EXACT, batch_size=size), "gradient") * size > _SLOW:
                break
        found = [replace(one, batch_size=size) for one in variants for size in sizes]
        default = replace(EXACT, batch_size=len(self.problem.x))
        return [*found, *([] if default in found else [default])]

    def fastest(self, candidates: list[fastadv.Execution], *, rounds: int) -> fastadv.Execution:
        """By the medians of interleaved rounds, of both kinds of passes in equal parts."""
        times: dict[tuple[fastadv.Execution, Use], list[float]] = {}
        for turn in range(rounds + 1):
            first = turn % len(candidates)
            for one in candidates[first:] + candidates[:first]:
                for use in USES:
                    spent = self.seconds(one, use)
                    if turn:  # the first is the warm-up
                        times.setdefault((one, use), []).append(spent)
        medians = {key: statistics.median(values) for key, values in times.items()}
        least = {use: min(medians[one, use] for one in candidates) for use in USES}
        return min(candidates, key=lambda one: sum(medians[one, u] / least[u] for u in USES))


def run_network(
    problem: Problem, where: schema.Environment, *, rounds: int, seconds: float, tunings: int
) -> list[schema.Row]:
    """Rows of the fastest of the sweep, of the default, and of each time that `tune` was asked."""
    n = len(problem.x)
    choices: dict[str, fastadv.Execution] = {}
    took: dict[str, float] = {}
    held_to = replace(EXACT, batch_size=n)
    for number in range(tunings):
        began = time.perf_counter()
        table = tuning_table(problem.model, problem.x, seconds=seconds)
        name = f"fastadv.tune, {number + 1}"
        took[name] = round(time.perf_counter() - began, 2)
        held_to = table.default
        choices[name] = held_to if table.choice == fastadv.Execution() else table.choice
    with isolated(problem.model, device=problem.x.device, seed=0):
        sweep = Sweep(problem)
        best = sweep.fastest(sweep.candidates(), rounds=rounds)
        default = held_to
        ways = {BEST: best, DEFAULT: default, **choices}
        looks = max(
            1, round(sweep.seconds(default, "gradient") / sweep.seconds(default, "forward"))
        )
        with torch.no_grad():
            own = problem.model(problem.x[:64])

        total = max(way.batch_size or n for way in ways.values())

        def timed(execution: fastadv.Execution) -> Callable[[], torch.Tensor]:
            size = execution.batch_size or n

            def run() -> torch.Tensor:
                for done in range(0, total, size):
                    part = replace(execution, batch_size=min(size, total - done))
                    sweep.run(part, "gradient")()
                    for _ in range(looks):
                        sweep.run(part, "forward")()
                return problem.x

            return run

        def check(name: str, _: torch.Tensor) -> schema.Equality:
            forward = sweep.shadows.of(replace(ways[name], batch_size=None))
            assert forward is not None
            with torch.no_grad():
                off = float((forward(problem.x[:64]) - own).abs().max() / own.abs().max())
            return schema.Equality(off, 1e-4, _METRIC, "the model")

        rows = harness.measure(
            harness.Case(
                suite=SUITE,
                name=problem.name,
                shape=tuple(problem.x.shape),
                dtype="float32",
                n=total,
                timed=_TIMED,
                not_timed="tuning, the sweep, the attack beside the model",
                baseline=BEST,
            ),
            {name: timed(way) for name, way in ways.items()},
            check,
            where,
            harness.Timing(rounds, clock=process_clock),
        )
    return [
        dataclasses.replace(row, extra=_told(ways[row.provider], took.get(row.provider)))
        for row in rows
    ]


def _told(execution: fastadv.Execution, seconds: float | None) -> dict[str, float]:
    """The execution in the row's words."""
    told: dict[str, float] = {in_words(execution): execution.batch_size or 0}
    return told if seconds is None else told | {"tuned in s": seconds}
