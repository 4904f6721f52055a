"""Robust MNIST networks from `fastadv.recipes`, seed by seed: how robust, how long, who collapsed.

    python -m benchmarks.mnist --data DIR --out DIR --run fast --seeds 0 1 2 3 4 5
    python -m benchmarks.mnist --data DIR --out DIR --run pgd --seeds 0 1 2 3 4

eps 0.3, all training images but the 1,000 that the sentinel watches, PGD-50-10 (step 0.01, seed 0)
on the first 1,000 test images, fp32. Runs: "fast", the published single-step recipe, its sentinel
rolling back and, where it did, once more only warning; "collapse", the same with the random start
clamped, which collapses; "pgd", PGD-5 with eps warm-up; "best", the same for longer, with averaged
weights. A killed run goes on where it was.
"""

import argparse
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastadv
from benchmarks import environment, schema, speedrun
from fastadv.data import load_mnist, to_unit_interval
from fastadv.recipes import Recipe, Result, recipe, train
from fastadv.training import TrainingWarning

SUITE = "mnist"
_ATTACKED = 1000
_THREAT = fastadv.Linf(0.3)
_ATTACK = fastadv.pgd(_THREAT, steps=50, restarts=10, step_size=0.01, seed=0)


def recipes(run: str, seed: int) -> dict[str, Recipe]:
    """The recipes of a run by the name of their provider; the second only if the first rolled
    back."""
    if run == "pgd":
        return {"PGD-5, eps warm-up": recipe("mnist", "pgd", seed=seed)}
    if run == "best":
        chosen = recipe("mnist", "pgd", seed=seed, epochs=20, ema=0.995)
        return {"PGD-5, eps warm-up, 20 epochs, EMA": chosen}
    name, fast = "Fast-AT", recipe("mnist", "fast", seed=seed)
    if run == "collapse":
        name, fast = "Fast-AT, start clamped", replace(fast, clamp_start=True)
    return {
        f"{name}, sentinel rolls back": fast,
        f"{name}, sentinel warns": replace(fast, on_collapse="warn"),
    }


def carry_out(
    name: str, chosen: Recipe, data: Path, out: Path, where: schema.Environment
) -> schema.Row:
    """Train, or go on training, then attack the final weights."""
    folder = out / f"{name}, seed {chosen.seed}".replace(", ", "_").replace(" ", "-")
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingWarning)
        result = train(chosen, load_mnist(data), folder, resume=True, progress=False)
    seconds = time.perf_counter() - began
    for warning in caught:
        print(f"  {warning.message}")
    images, labels = load_mnist(data, "test")
    x, y = to_unit_interval(images[:_ATTACKED]), labels[:_ATTACKED]
    report = fastadv.evaluate(result.model, (x, y), _ATTACK, batch_size=250, progress=False)
    return _row(name, chosen, result, report, seconds, where, data)


def _row(
    name: str, chosen: Recipe, result: Result, report: fastadv.Report, seconds: float,
    where: schema.Environment, data: Path,
) -> schema.Row:  # fmt: skip
    flagged = _first_flag(result.rows)
    extra = {
        "seed": chosen.seed, "epochs": len(result.epochs), "flagged_at_epoch": flagged,
        "rollbacks": sum(row["event"] == "rollback" for row in result.rows),
        "training_seconds": sum(row["seconds"] for row in result.epochs),
        "best_held_out_pgd10": max(row["robust"] for row in result.epochs),
        "last_held_out_pgd10": result.epochs[-1]["robust"],
    }  # fmt: skip
    images, labels = load_mnist(data)
    plan = speedrun.PLANS["mnist"]
    if chosen.method == "fast":
        plan = replace(plan, method="fast", step=chosen.step_size)
    equality = speedrun.parity(plan, to_unit_interval(images[:32]), labels[:32])
    return schema.Row(
        suite=SUITE, case=f"{chosen.model}, {chosen.method}", provider=name, shape=(1, 28, 28),
        dtype="float32", n=len(images) - chosen.held_out, rounds=1, q20=seconds, q50=seconds,
        q80=seconds, unit="s", timed="the whole run, with the sentinel and the evaluation of "
        "held-out samples after each epoch, on a shared machine",
        not_timed="the attack on test images", baseline=name, ratio=1.0, equality=equality,
        environment=where, extra=extra,
        robustness=schema.Robustness(
            attack="PGD", norm="linf", eps=0.3, step_size=0.01, steps=50, restarts=10, seed=0,
            n=_ATTACKED, model=f"{chosen.model}, seed {chosen.seed}, final weights", data="MNIST",
            clean_accuracy=report.clean_accuracy, robust_accuracy=report.robust_accuracy,
        ),
    )  # fmt: skip


def _first_flag(rows: tuple[Mapping[str, Any], ...]) -> float:
    """The epoch of the first verdict that is not good or suspect; -1 if there is none."""
    batches = next(row["batches"] for row in rows if row["event"] == "epoch")
    for row in rows:
        if row["event"] == "check" and row["verdict"] not in ("good", "suspect"):
            return round(row["batch"] / batches, 2)
    return -1.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mnist", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--run", choices=("fast", "collapse", "pgd", "best"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the training runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.mnist", arguments=arguments
    )
    for seed in options.seeds:
        for name, chosen in recipes(options.run, seed).items():
            row = carry_out(name, chosen, options.data, options.out, where)
            robust = row.robustness
            assert robust is not None
            print(
                f"seed {seed}  {name}: clean {robust.clean_accuracy:.1%}, PGD-50-10 "
                f"{robust.robust_accuracy:.1%}, flagged at epoch {row.extra['flagged_at_epoch']}, "
                f"{row.extra['epochs']} epochs, {row.q50:.0f} s",
                flush=True,
            )
            schema.append_rows([row], options.results)
            if not row.extra["rollbacks"]:
                break


if __name__ == "__main__":
    main()
