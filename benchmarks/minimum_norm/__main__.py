"""How near attacks come to the nearest adversarial examples: `python -m benchmarks.minimum_norm`.

run: every algorithm in every norm, of fastadv and of the peers that are installed (adv-lib,
foolbox: `pip install --no-deps adv-lib foolbox eagerpy`), on six third-party networks. Passes are
counted by a wrapper of the model, the nearest wrong query counts, and time is taken without it.
least: the nearest examples that are known, of the references beside the models, of every attack of
fastadv with about 2,000 passes, and of minimum_norm with 4,000 and three seeds, kept in
benchmarks/minimum_norm/least.json.

curve: the accuracy of 250 samples at eight radii of L-infinity, from the distances that
minimum_norm finds with 4,000 passes, beside AutoAttack at each radius, on three of the networks.

    python -m benchmarks.minimum_norm run --models DIR --norms l2 --threads 1 --rounds 3
    python -m benchmarks.minimum_norm run --models DIR --only "FAB|DDN" --networks mnist_kw_0.1
    python -m benchmarks.minimum_norm least --models DIR --out DIR

Each attack of `least` is kept in --out, and not run again.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.execution.runs import process_clock
from benchmarks.harness import environment, harness, output, schema, selection
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Unavailable
from benchmarks.minimum_norm import curves, least, points, runs
from benchmarks.minimum_norm.counted import NORMS
from benchmarks.minimum_norm.entrants import ALGORITHMS, Algorithm
from benchmarks.minimum_norm.optimality import optimality

SUITE = "minimum_norm"
_METRIC = "returned points that are not finite or lie outside of [0, 1]"


def run_case(
    algorithm: Algorithm,
    norm: str,
    problem: Problem,
    known: torch.Tensor,
    environment: schema.Environment,
    *,
    rounds: int,
) -> list[schema.Row]:
    """A row a library that is installed. known: (n,) the least distances."""
    attacks = {}
    for entrant in algorithm.entrants:
        try:
            attacks[entrant.library] = entrant.make(norm, algorithm.steps)
        except Unavailable as missing:
            print(f"  {entrant.library}: {missing}")
    if not attacks:
        return []
    found = {name: runs.Found(attack, problem, norm) for name, attack in attacks.items()}

    def check(_: str, x_adv: torch.Tensor) -> schema.Equality:
        return schema.Equality(runs.outside(x_adv), len(problem.x), _METRIC, "the box")

    rows = harness.measure(
        harness.Case(
            suite=SUITE,
            name=f"{algorithm.name} x {algorithm.steps}, {norm}, {problem.name}",
            shape=tuple(problem.x.shape),
            dtype="float32",
            n=len(problem.x),
            timed="process time of one call on n samples in memory, warm",
            not_timed="import, construction, loading, the first call",
            baseline=next(iter(attacks)),
        ),
        {name: _call(attack, problem) for name, attack in attacks.items()},
        check,
        environment,
        harness.Timing(rounds, warmup=0, clock=process_clock),
    )
    return [replace(row, extra=_extra(row, found, problem, known)) for row in rows]


def _call(attack: Callable[..., torch.Tensor], problem: Problem) -> Callable[[], torch.Tensor]:
    return lambda: attack(problem.model, problem.x, problem.y).detach()


def _extra(
    row: schema.Row, found: Mapping[str, runs.Found], problem: Problem, known: torch.Tensor
) -> dict[str, float]:
    own = found[row.provider]
    alone = runs.process_seconds(runs.model_alone(problem, own.counted))
    extra = {
        "optimality": optimality(own.nearest, known),
        "optimality, returned": optimality(own.returned, known),
        "failed": float(own.returned.isinf().sum()),
        "forwards": own.counted.forwards,
        "backwards": own.counted.backwards,
        "model alone ms": 1e3 * alone,
    }
    marks = {f"optimality at {p}": optimality(d, known) for p, d in own.counted.marks.items()}
    return {name: float(f"{value:.4g}") for name, value in (extra | marks).items()}


def _where(arguments: list[str] | None) -> schema.Environment:
    return environment.describe(
        ["adv-lib", "foolbox"],
        device=torch.device("cpu"),
        module="benchmarks.minimum_norm",
        arguments=arguments,
    )


def _curves(options: argparse.Namespace, arguments: list[str] | None) -> None:
    where, rows = _where(arguments), []
    for problem, eps in curves.problems(options.models, options.networks):
        print(problem.name, flush=True)
        new = curves.rows_of(problem, eps, where)
        for row in new:
            print(f"    {row.provider}: {row.extra}", flush=True)
        rows += new
    output.record(rows, options.results)


def _run(options: argparse.Namespace, arguments: list[str] | None) -> None:
    names = [f"{a.name} x {a.steps}" for a in ALGORITHMS]
    wanted = selection.matching(options.only, names, option="--only")
    where, rows = _where(arguments), []
    for network in options.networks:
        problem = points.load(options.models, network, options.points)
        for norm in options.norms:
            known = least.read(options.models, network, norm, options.points)
            for algorithm, name in zip(ALGORITHMS, names, strict=True):
                if name in wanted and norm in algorithm.norms:
                    print(f"{name}, {norm}, {network}", flush=True)
                    new = run_case(algorithm, norm, problem, known, where, rounds=options.rounds)
                    harness.print_rows(new)
                    for row in new:
                        print(f"    {row.provider}: {row.extra}", flush=True)
                    rows += new
    output.record(rows, options.results)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.minimum_norm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=("run", "least", "curve"))
    parser.add_argument("--models", type=Path, required=True, help="folder of load_models.py")
    parser.add_argument("--networks", nargs="+", choices=points.MODELS, default=points.MODELS)
    parser.add_argument("--norms", nargs="+", choices=tuple(NORMS), default=tuple(NORMS))
    parser.add_argument("--only", default="", help="algorithms whose name matches")
    parser.add_argument("--points", choices=("report", "tune"), default="report")
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--out", type=Path, help="of least: folder in which runs are kept")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.part == "run":
        _run(options, arguments)
    elif options.part == "curve":
        _curves(options, arguments)
    elif options.out is None:
        parser.error("least needs --out, a folder in which its runs are kept")
    else:
        least.write(options.models, options.out, options.networks, options.norms, options.points)


if __name__ == "__main__":
    main()
