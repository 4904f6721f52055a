"""The accuracy at every radius: from the distances of minimum_norm, and from AutoAttack at each."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fastadv
from benchmarks.autoattack.cases import EnsembleCase, load
from benchmarks.execution.runs import process_clock
from benchmarks.harness import schema
from benchmarks.harness.networks import Problem

SUITE = "minimum_norm_curve"
BUDGET = 4000  # passes a sample
REFERENCE, OURS = "autoattack at each radius", f"minimum_norm, {BUDGET} passes"
_SAMPLES = 250
_CASES = (("mnist_kw_0.1", "0.1"), ("cifar_madry_8px", "8/255"), ("cifar_wide_kw", "2/255"))
_SHARES = tuple(part / 4 for part in range(1, 9))  # of the radius that the network was trained for
_METRIC = "samples that are robust by the distances and that AutoAttack breaks, at the worst radius"


def problems(folder: Path, only: list[str]) -> Iterator[tuple[Problem, float]]:
    """(network with its first test points, the radius that it was trained for)."""
    for name, eps in _CASES:
        if name in only:
            case = EnsembleCase(name, eps, _SAMPLES)
            yield load(case, folder, _SAMPLES), case.eps


def rows_of(
    problem: Problem, eps: float, environment: schema.Environment, *, budget: int = BUDGET
) -> list[schema.Row]:
    """AutoAttack's row, then that of the distances."""
    radii = [share * eps for share in _SHARES]
    data = problem.x, problem.y
    curves: dict[str, fastadv.Curve] = {}

    def at_each() -> None:
        attack = fastadv.autoattack(fastadv.Linf(eps))
        curves[REFERENCE] = fastadv.robustness_curve(
            problem.model, data, attack, radii, progress=False
        )

    def of_distances() -> None:
        attack = fastadv.minimum_norm(fastadv.Linf(), budget=budget)
        report = fastadv.evaluate(problem.model, data, attack, progress=False)
        assert isinstance(report, fastadv.DistanceReport)
        curves[OURS] = report.curve(radii)

    seconds = {name: process_clock(run) for name, run in _named(at_each, of_distances)}
    above = (curves[OURS].robust.sum(0) - curves[REFERENCE].robust.sum(0)).tolist()
    rows = []
    for name, curve in curves.items():
        milliseconds = 1e3 * seconds[name]
        counts = curve.robust.sum(0).tolist()
        extra: dict[str, float] = {
            f"robust at {radius:.6g}": count for radius, count in zip(radii, counts, strict=True)
        }
        extra["passes"] = sum(curve.forwards) + sum(curve.backwards)
        rows.append(
            schema.Row(
                suite=SUITE,
                case=problem.name,
                provider=name,
                shape=tuple(problem.x.shape),
                dtype="float32",
                n=len(problem.x),
                rounds=1,
                q20=milliseconds,
                q50=milliseconds,
                q80=milliseconds,
                unit="ms",
                timed="process time of one run over all radii",
                not_timed="import, loading",
                baseline=REFERENCE,
                ratio=seconds[REFERENCE] / seconds[name],
                equality=schema.Equality(
                    max(0, *above) if name == OURS else 0, len(problem.x), _METRIC, REFERENCE
                ),
                environment=environment,
                extra=extra,
            )
        )
    return rows


def _named(*runs: Callable[[], None]) -> zip:
    return zip((REFERENCE, OURS), runs, strict=True)
