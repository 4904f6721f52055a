"""Whether a fast search is as strong, and how much faster: `python -m benchmarks.execution`.

Attacks on third-party models and a small network with BatchNorm, searched in bf16, channels_last,
folded or compiled, against the search with the user's model itself (fp32), in turn in one process.
Every success is confirmed again on the fp32 model, and verdicts are compared sample by sample: an
execution of which more than one differs has no time. It is named, and the exit status is 1.
L-infinity, seed 0, 64 slots.

    python -m benchmarks.execution --models DIR --threads 1 --rounds 3
    python -m benchmarks.execution --models DIR --only "PGD-20 cifar" --samples 50
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

import fastadv
from benchmarks.execution import cases as execution_cases
from benchmarks.execution import tables as execution_tables
from benchmarks.execution.cases import ATTACKS, EXACT, FOLDABLE, AnyAttack, most_rounds
from benchmarks.execution.runs import Search, Searcher, Verdicts, process_clock
from benchmarks.harness import environment, harness, output, schema, selection
from benchmarks.harness.networks import Problem
from fastadv.ensemble.constructor import AutoAttack

SUITE = "execution"
_TIMED = (
    "process time of one call of the attack on n samples in memory, warm: search, confirmation and "
    "verification by the user's fp32 model"
)
_NOT_TIMED = "import, construction, preparation (copy, check, compile), the first call, evaluation"


def run_case(
    attack: str,
    problem: Problem,
    eps: float,
    searchers: dict[str, Searcher],
    where: schema.Environment,
    *,
    rounds: int,
    refusals: list[str],
) -> list[schema.Row]:
    """The rows of an attack on a model; refusals: gets a line for each execution without a row."""
    threat = fastadv.Linf(eps)
    made = ATTACKS[attack](threat)
    searches = {name: Search(searcher, made) for name, searcher in searchers.items()}
    verdicts = Verdicts(problem, eps, searches)
    case = f"{attack} {problem.name}"

    def refuse(name: str, error: Exception) -> None:
        if name == EXACT:
            raise error
        told = f"{name}: " + str(error).removeprefix(f"{name}: ")
        if name in verdicts.masks:
            missed, beyond = verdicts.differences(name)
            told = f"{name}: {missed} missed and {beyond} beyond {EXACT}, more than one sample"
        refusals.append(told)
        print(f"  no row for {told}", file=sys.stderr)

    rows = harness.measure(
        harness.Case(
            suite=SUITE,
            name=case,
            shape=tuple(problem.x.shape),
            dtype="float32",
            n=len(problem.x),
            timed=_TIMED,
            not_timed=_NOT_TIMED,
            baseline=EXACT,
        ),
        searches,
        verdicts.check,
        where,
        harness.Timing(most_rounds(attack, rounds), warmup=0, clock=process_clock),
        on_refusal=refuse,
    )
    told = [
        replace(
            row,
            extra=_figures(searches[row.provider], verdicts, row.provider),
            robustness=_robustness(attack, made, problem, eps, verdicts.masks[row.provider]),
        )
        for row in rows
    ]
    return [_with_refused(told[0], verdicts, told), *told[1:]]


def _figures(search: Search, verdicts: Verdicts, name: str) -> dict[str, float]:
    found = search.first
    assert found is not None and search.searcher.preparation is not None
    missed, beyond = verdicts.differences(name)
    share = found.cost.share_of_limit
    return {
        "missed": missed,
        "beyond": beyond,
        "denied": found.cost.denied,
        "forwards": found.forwards,
        "backwards": found.backwards,
        "preparation": round(search.searcher.preparation, 3),
        "model_share": round(found.cost.model_seconds / found.cost.seconds, 3),
    } | ({} if share is None else {"share_of_limit": round(share, 3)})


def _with_refused(exact: schema.Row, verdicts: Verdicts, rows: list[schema.Row]) -> schema.Row:
    """The row of fp32, which also names executions without one, and says how far off they were."""
    extra = dict(exact.extra)
    measured = {row.provider for row in rows}
    for name in verdicts.searches:
        if name in measured:
            continue
        extra[f"{name}: no row"] = 1
        if name in verdicts.masks:
            missed, beyond = verdicts.differences(name)
            extra |= {f"{name}: missed": missed, f"{name}: beyond": beyond}
    return replace(exact, extra=extra)


def _robustness(
    attack: str, made: AnyAttack, problem: Problem, eps: float, mask: str
) -> schema.Robustness:
    first = made.attacks[0] if isinstance(made, AutoAttack) else made
    with torch.no_grad():
        clean = float((problem.model(problem.x).argmax(1) == problem.y).double().mean())
    return schema.Robustness(
        attack=attack,
        norm="linf",
        eps=eps,
        step_size=float(first.effective_step_size),
        steps=first.steps,
        restarts=1,
        seed=0,
        n=len(problem.x),
        model=problem.name,
        data=problem.data,
        clean_accuracy=clean,
        robust_accuracy=mask.count("1") / len(mask),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.execution",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, required=True, help="folder of load_models.py")
    parser.add_argument("--only", default="", help='cases that match: "PGD-20 mnist_kw_0.1", ...')
    parser.add_argument("--samples", type=int, help="at most so many samples a case")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved timed calls")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    names = (case for model in execution_cases.MODELS for case in model.cases)
    wanted = selection.matching(options.only, names, option="--only")
    torch.set_num_threads(options.threads)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.execution", arguments=arguments
    )
    rows, refusals = [], []
    for model in execution_cases.MODELS:
        chosen = [
            attack
            for attack, case in zip(model.attacks, model.cases, strict=True)
            if case in wanted
        ]
        if not chosen:
            continue
        problem = model.load(options.models, options.samples)
        searchers = {name: Searcher(problem, FOLDABLE[name]) for name in model.executions}
        for attack in chosen:
            print(f"{attack} {problem.name}, n={len(problem.x)}", flush=True)
            found = run_case(
                attack,
                problem,
                model.source.eps,
                searchers,
                where,
                rounds=options.rounds,
                refusals=refusals,
            )
            harness.print_rows(found)
            rows += found
    output.record(rows, options.results)
    print(execution_tables.execution(rows))
    if refusals:
        sys.exit(f"{len(refusals)} searches have no row, as said above")


if __name__ == "__main__":
    main()
