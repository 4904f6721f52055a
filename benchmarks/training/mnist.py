"""Robust MNIST networks from `fastadv.recipes`, seed by seed: how robust, how long, who collapsed.

    python -m benchmarks.training.mnist --data DIR --out DIR --run fast:0,1,2 pgd:0,1,2 collapse

eps 0.3, all training images but the 1,000 that the sentinel watches, PGD-50-10 (step 0.01, seed 0)
on the first 1,000 test images, fp32. Runs: "single-step", the published recipe, its sentinel only
warning; "fast", the same rolling back; "collapse", the same with the random start clamped, which
collapses; "pgd", PGD-5 with eps warm-up; "best", the same for longer, with averaged weights. A
killed run goes on where it was, and a finished one is read: several runs in one command are one
table.
"""

import argparse
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastadv
from benchmarks.harness import environment, output, schema
from benchmarks.training import plans
from fastadv.data import load_mnist, to_unit_interval
from fastadv.recipes import Recipe, Result, recipe, train
from fastadv.training import TrainingWarning

SUITE = "mnist"
_ATTACKED = 1000
_THREAT = fastadv.Linf(0.3)
_ATTACK = fastadv.pgd(_THREAT, steps=50, restarts=10, step_size=0.01, seed=0)


def recipe_of(run: str, seed: int) -> tuple[str, Recipe]:
    """The provider's name and the recipe of a run."""
    fast, pgd = (recipe("mnist", method, seed=seed) for method in ("fast", "pgd"))
    return {
        "single-step": ("Fast-AT, sentinel warns", replace(fast, on_collapse="warn")),
        "fast": ("Fast-AT, sentinel rolls back", fast),
        "collapse": ("Fast-AT, start clamped", replace(fast, clamp_start=True)),
        "pgd": ("PGD-5, eps warm-up", pgd),
        "best": (
            "PGD-5, eps warm-up, 20 epochs, EMA",
            recipe("mnist", "pgd", seed=seed, epochs=20, ema=0.995),
        ),
    }[run]


def carry_out(
    name: str, chosen: Recipe, data: Path, out: Path, where: schema.Environment
) -> schema.Row:
    """Train, or go on training, then attack the final weights."""
    folder = out / f"{name}, seed {chosen.seed}".replace(", ", "_").replace(" ", "-")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingWarning)
        result = train(chosen, load_mnist(data), folder, resume=True, progress=False)
    for warning in caught:
        print(f"  {warning.message}")
    images, labels = load_mnist(data, "test")
    x, y = to_unit_interval(images[:_ATTACKED]), labels[:_ATTACKED]
    report = fastadv.evaluate(
        result.model,
        (x, y),
        _ATTACK,
        batch_size=250,
        checkpoint=folder / "attack.pt",
        progress=False,
    )
    return _row(name, chosen, result, report, where, data)


def _row(
    name: str,
    chosen: Recipe,
    result: Result,
    report: fastadv.Report,
    where: schema.Environment,
    data: Path,
) -> schema.Row:
    seconds = sum(row["seconds"] for row in result.epochs)
    flagged = _first_flag(result.rows)
    extra = {
        "seed": chosen.seed,
        "epochs": len(result.epochs),
        "flagged_at_epoch": flagged,
        "rollbacks": sum(row["event"] == "rollback" for row in result.rows),
        "best_held_out_pgd10": max(row["robust"] for row in result.epochs),
        "last_held_out_pgd10": result.epochs[-1]["robust"],
    }
    images, labels = load_mnist(data)
    plan = plans.PLANS["mnist"]
    if chosen.method == "fast":
        plan = replace(plan, method="fast", step=chosen.step_size)
    equality = plans.parity(plan, to_unit_interval(images[:32]), labels[:32])
    return schema.Row(
        suite=SUITE,
        case=f"{chosen.model}, {chosen.method}",
        provider=name,
        shape=(1, 28, 28),
        dtype="float32",
        n=len(images) - chosen.held_out,
        rounds=1,
        q20=seconds,
        q50=seconds,
        q80=seconds,
        unit="s",
        timed="all epochs, with the sentinel, on a shared machine",
        not_timed="the attack on test images",
        baseline=name,
        ratio=1.0,
        equality=equality,
        environment=where,
        extra=extra,
        robustness=schema.Robustness(
            attack="PGD",
            norm="linf",
            eps=0.3,
            step_size=0.01,
            steps=50,
            restarts=10,
            seed=0,
            n=_ATTACKED,
            model=f"{chosen.model}, seed {chosen.seed}, final weights",
            data="MNIST",
            clean_accuracy=report.clean_accuracy,
            robust_accuracy=report.robust_accuracy,
        ),
    )


def _first_flag(rows: tuple[Mapping[str, Any], ...]) -> float:
    """The epoch of the first verdict that is not good or suspect; -1 if there is none."""
    batches = next(row["batches"] for row in rows if row["event"] == "epoch")
    for row in rows:
        if row["event"] == "check" and row["verdict"] not in ("good", "suspect"):
            return round(row["batch"] / batches, 2)
    return -1.0


_RUNS = ("single-step", "fast", "collapse", "pgd", "best")


def _run(text: str) -> list[tuple[str, int]]:
    """Of "pgd:0,1": [("pgd", 0), ("pgd", 1)]."""
    name, _, seeds = text.partition(":")
    if name not in _RUNS:
        raise argparse.ArgumentTypeError(
            f"no run is called {name!r}; there are: {', '.join(_RUNS)}"
        )
    try:
        return [(name, int(seed)) for seed in (seeds or "0").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"seeds must be integers; got {seeds!r}") from None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.mnist",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--run", type=_run, nargs="+", required=True, help="NAME or NAME:SEED,SEED,..."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training runs")
    parser.add_argument("--threads", type=int, default=1)
    output.add_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.training.mnist", arguments=arguments
    )
    rows = []
    for run, seed in itertools.chain.from_iterable(options.run):
        name, chosen = recipe_of(run, seed)
        rows.append(carry_out(name, chosen, options.data, options.out, where))
        robust = rows[-1].robustness
        print(
            f"seed {seed}  {name}: clean {robust.clean_accuracy:.1%}, PGD-50-10 "
            f"{robust.robust_accuracy:.1%}, flagged at epoch {rows[-1].extra['flagged_at_epoch']}, "
            f"{rows[-1].extra['epochs']} epochs, {rows[-1].q50:.0f} s",
            flush=True,
        )
    output.record(rows, options.results)


if __name__ == "__main__":
    main()
