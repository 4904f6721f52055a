"""Markdown tables of tuning; every number in them comes from a row."""

import statistics
from collections.abc import Sequence

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row


def sweep(rows: Sequence[Row]) -> str:
    """One line a network: the fastest of the sweep, the default, and the choices of `tune`."""
    heads = ["network", "n", "fastest of the sweep", "ms", "default", "tune chose"]
    heads += ["share of the fastest's speed (median)", "tuned in"]
    lines = []
    for case in formatting.cases(rows):
        best, default, *tuned = case
        ratios = [row.ratio for row in tuned]
        lines.append(
            [
                best.case,
                str(best.n),
                _execution(best),
                f"{best.q50:.4g}",
                formatting.ratio(default),
                ", ".join(formatting.distinct(_execution(row) for row in tuned)),
                f"{', '.join(f'{r:.2f}' for r in ratios)} ({statistics.median(ratios):.2f})",
                ", ".join(f"{row.extra['tuned in s']:.1f} s" for row in tuned),
            ]
        )
    note = (
        f"Timed: {rows[0].timed}. The sweep tries every batch size of the model itself and of its "
        "fp32 copies, medians of interleaved rounds; its fastest, the default and each choice were "
        "then timed anew, in turn. 1.00 is as fast as the fastest of the sweep; above it the sweep "
        "was misled by noise."
    )
    return "\n\n".join([formatting.table(heads, lines), note, formatting.provenance(rows)])


def _execution(row: Row) -> str:
    name = next(key for key in row.extra if key.startswith("fastadv.Execution"))
    return f"`{name.removeprefix('fastadv.')}`"


def short(rows: Sequence[Row]) -> str:
    """One line an attack and a network, then the geometric mean."""
    heads = ["case", "n", *formatting.distinct(row.provider for row in rows), "found", "first call"]
    lines = []
    for case in formatting.cases(rows):
        auto = case[-1]
        lines.append(
            [
                auto.case,
                str(auto.n),
                *(formatting.time(row) for row in case),
                _found(auto),
                f"{auto.extra['first call in s']:.1f} s",
            ]
        )
    name = rows[-1].provider
    ratios = [row.ratio for row in rows if row.provider == name]
    note = (
        f"{name}: {statistics.geometric_mean(ratios):.2f}x in the geometric mean, "
        f"{min(ratios):.2f}x at least. Timed: {rows[0].timed}. First call: wall time, with tuning "
        "where the network had not been tuned for."
    )
    return "\n\n".join([formatting.table(heads, lines), note, formatting.provenance(rows)])


def ensembles(rows: Sequence[Row]) -> str:
    heads = ["case", "eps", "n", "robust, default", "robust, tuned", "other verdicts", "default"]
    heads += ["tuned", "found", "final pass", "it broke", "tuned in"]
    lines = []
    for default, tuned in formatting.cases(rows):
        found = formatting.robustness(tuned)
        final = tuned.extra.get("final pass in s")
        lines.append(
            [
                tuned.case,
                f"{found.eps:.3g}",
                str(tuned.n),
                formatting.percent(formatting.robustness(default).robust_accuracy),
                formatting.percent(found.robust_accuracy),
                f"{tuned.equality.error:g}",
                f"{default.q50:.4g} {default.unit}",
                formatting.time(tuned),
                _found(tuned),
                formatting.EMPTY if final is None else f"{final:.1f} s",
                f"{tuned.extra.get('final pass broke', 0):g}",
                f"{tuned.extra['tuned in s']:.1f} s",
            ]
        )
    ratios = [row.ratio for row in rows if row.extra]
    note = (
        f"{statistics.geometric_mean(ratios):.2f}x in the geometric mean. Timed: {rows[0].timed}."
    )
    return "\n\n".join([formatting.table(heads, lines), note, formatting.provenance(rows)])


def _found(row: Row) -> str:
    words = [f"batch {row.extra['batch']:g}"] if row.extra["batch"] else ["default batch"]
    words += [name for name in ("channels_last", "folded", "bf16") if row.extra.get(name)]
    return ", ".join(words)
