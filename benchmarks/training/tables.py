"""Markdown tables of the training suites; every number in them comes from a row."""

import statistics
from collections.abc import Sequence

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row


def training(rows: Sequence[Row]) -> str:
    """One line a row: seconds an epoch, work and ops a step, distance from the textbook."""
    trained = any(row.robustness for row in rows)
    heads = ["training", "provider", "s/epoch", "over per-sample loader", "units a step"]
    heads += ["ops a step", "host reads a step", "largest error of a weight (tolerance)"]
    heads += ["robust accuracy"] if trained else []
    lines = []
    for row in rows:
        extra = row.extra
        cells = [row.case, row.provider, formatting.time(row), f"{extra['over_per_sample']:.2f}x"]
        cells += [f"{extra[key]:.4g}" for key in ("units", "ops", "data_dependent_ops")]
        cells.append(formatting.error(row))
        if trained:
            cells.append(
                formatting.percent(row.robustness.robust_accuracy)
                if row.robustness
                else formatting.EMPTY
            )
        lines.append(cells)
    row = rows[0]
    timed = " or ".join(formatting.distinct(row.timed for row in rows))
    note = (
        f"Median of {row.rounds} interleaved calls; in brackets the speed-up over {row.baseline}. "
        f"Timed: {timed}. Not timed: {row.not_timed}. "
        "Step: an optimizer step; units: passes through a layer, forward, to its input and to its "
        "weights, counted, as are ops and host reads beside the loader. Error: "
        f"{row.equality.metric}."
    )
    if trained:
        r = next(row.robustness for row in rows if row.robustness)
        trained_for = formatting.distinct(x.robustness.model for x in rows if x.robustness)
        note += f" Attack: PGD-{r.steps}, {r.restarts} restarts, seed {r.seed}, n={r.n}, on "
        note += f"{'; '.join(trained_for)}, of which one seed says little."
    return formatting.table(heads, lines) + f"\n\n{note}\n\n{formatting.provenance(rows)}"


def mnist(rows: Sequence[Row]) -> str:
    """One line a provider: robust accuracy of every seed, the median and the worst, flags, time."""
    heads = ["training", "PGD-50-10, by seed", "median", "worst", "clean", "flagged at epoch"]
    heads += ["epochs", "seconds"]
    lines = []
    for name in formatting.distinct(row.provider for row in rows):
        own = sorted((r for r in rows if r.provider == name), key=lambda r: r.extra["seed"])
        robust = [formatting.robustness(row).robust_accuracy for row in own]
        clean = sorted(formatting.robustness(row).clean_accuracy for row in own)
        flags = [row.extra["flagged_at_epoch"] for row in own]
        lines.append(
            [
                f"{name} ({own[0].case})",
                ", ".join(
                    f"{row.extra['seed']:g}: {formatting.percent(r)}"
                    for row, r in zip(own, robust, strict=True)
                ),
                formatting.percent(statistics.median(robust)),
                formatting.percent(min(robust)),
                f"{formatting.percent(clean[0])} to {formatting.percent(clean[-1])}",
                ", ".join(formatting.EMPTY if flag < 0 else f"{flag:g}" for flag in flags),
                ", ".join(f"{row.extra['epochs']:g}" for row in own),
                ", ".join(f"{row.q50:.0f}" for row in own),
            ]
        )
    first = formatting.robustness(rows[0])
    note = (
        f"MNIST, L-infinity, eps {first.eps:g}, {rows[0].n:,} training samples, 1,000 held out for "
        f"the sentinel; final weights under PGD-50-10 (step {first.step_size:g}, seed "
        f"{first.seed}) on the first {first.n:,} test images, fp32. Flagged: the first verdict of "
        f"the sentinel that is not good or suspect. Seconds: {rows[0].timed}."
    )
    return f"{formatting.table(heads, lines)}\n\n{note}\n\n{formatting.provenance(rows)}"
