"""AutoAttack against its authors' package and torchattacks: `python -m benchmarks.autoattack`.

On each model the attacks are run in one process in turn: the authors' APGD-CE, ours, torchattacks',
then the next attack, each library on the samples that its own attacks left robust. The model's
passes are then repeated alone, which leaves what an attack costs beside the model. Every success is
verified again, and verdicts compared point by point. L-infinity, standard version, seed 0, fp32.

    python -m benchmarks.autoattack --models DIR --authors DIR --out DIR --threads 1 --rounds 3
    python -m benchmarks.autoattack --models DIR --case mnist_kw_0.1 --samples 10

Rows are written when all cases are done; ops a step are counted at the end. With --out, a killed
run goes on with the round where it was; a run of another commit, or with other libraries, needs
another --out.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.autoattack import cases as autoattack_cases
from benchmarks.autoattack import counts as autoattack_counts
from benchmarks.autoattack import rows as autoattack_rows
from benchmarks.autoattack import runs as autoattack_runs
from benchmarks.autoattack import tables as autoattack_tables
from benchmarks.autoattack.entrants import Budget, Build
from benchmarks.autoattack.parties import authors_version, entrants
from benchmarks.harness import environment, output, schema
from benchmarks.harness.networks import Problem


def run_case(
    problem: Problem,
    eps: float,
    builds: dict[str, Build],
    budget: Budget,
    where: schema.Environment,
    *,
    rounds: int,
    path: Path | None,
    reference: str | None,
) -> list[schema.Row]:
    """The rows of a case; path: the file that its rounds are kept in."""
    settings = {
        "model": problem.name,
        "eps": eps,
        "n": len(problem.x),
        "threads": where.threads,
        "entrants": list(builds),
        "steps": budget.steps,
        "queries": budget.queries,
        "targets": budget.targets,
        "commit": where.commit,
    }

    def carry_out(turn: int) -> autoattack_runs.Round:
        return autoattack_runs.run_round(problem, eps, builds, budget, turn=turn)

    found = autoattack_runs.rounds_of(settings, rounds, carry_out, path)
    return autoattack_rows.rows_of(problem, eps, found, where, budget, reference=reference)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.autoattack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, help="folder of load_models.py")
    parser.add_argument(
        "--authors",
        type=Path,
        help="folder of the package autoattack; else AUTOATTACK_PATH, or what is importable",
    )
    parser.add_argument(
        "--case",
        choices=autoattack_cases.CASES,
        nargs="+",
        default=autoattack_cases.DEFAULT,
        help="by default all but mnist_tf",
    )
    parser.add_argument("--samples", type=int, help="at most so many samples a case")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=1, help="interleaved runs of each case")
    parser.add_argument("--out", type=Path, help="folder in which finished rounds are kept")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    builds = entrants(options.authors)
    where = environment.describe(
        ["torchattacks"],
        device=torch.device("cpu"),
        module="benchmarks.autoattack",
        arguments=arguments,
    )
    where = replace(where, versions=where.versions | authors_version())
    rows = []
    for name in options.case:
        case = autoattack_cases.CASES[name]
        n = min(case.samples, options.samples or case.samples)
        print(f"{name}, eps {case.eps_text}, n={n}, {options.rounds} rounds", file=sys.stderr)
        found = run_case(
            autoattack_cases.load(case, options.models, n),
            case.eps,
            builds,
            Budget(),
            where,
            rounds=options.rounds,
            reference=autoattack_cases.reference(case, options.models),
            path=options.out and options.out / f"{name}.json",
        )
        print(f"{autoattack_tables.attacks(found)}\n", flush=True)
        rows += found
    print(f"{autoattack_tables.totals(rows)}\n", flush=True)
    counted = autoattack_counts.rows(builds, where)
    print(autoattack_tables.ops(counted))
    output.record(rows + counted, options.results)


if __name__ == "__main__":
    main()
