"""Markdown tables of the AutoAttack comparison; every number in them comes from a row."""

import statistics
from collections.abc import Sequence

from benchmarks.autoattack.counts import UNIT
from benchmarks.autoattack.entrants import OURS
from benchmarks.autoattack.rows import TOTAL
from benchmarks.harness import formatting
from benchmarks.harness.schema import Row


def totals(rows: Sequence[Row]) -> str:
    """One line a model and library: seconds, the model's share, robust accuracy, parity."""
    chosen = [row for row in rows if row.case.endswith(f" {TOTAL}")]
    heads = ["model", "eps", "n", "library", "seconds", "model alone", "beside the model"]
    heads += ["clean", "robust accuracy", "missed / beyond", "of the stored verdict"]
    heads += ["refused", "distance / eps"]
    lines = []
    for row in chosen:
        found, extra = formatting.robustness(row), row.extra
        lines.append(
            [
                found.model,
                formatting.eps(found.eps),
                str(row.n),
                row.provider,
                formatting.time(row),
                f"{extra['bare']:.4g} s",
                _beside(row),
                formatting.percent(found.clean_accuracy),
                formatting.percent(found.robust_accuracy),
                f"{extra['missed']:g} / {extra['beyond']:g}",
                _stored(row),
                f"{extra['refused']:g}",
                f"{extra['distance']:.8f}",
            ]
        )
    note = (
        f"{_note(chosen)} Missed / beyond: points that {chosen[0].baseline} broke in this run "
        "and this library missed, and points broken beyond it. Of the stored verdict: the same "
        "against the cascade that the authors' code left beside the model, on its first points. "
        "Refused: claimed successes that are not confirmed by the model and, in float64, within "
        f"eps; distance: the largest of those that are. {_means(rows)}"
    )
    return f"{formatting.table(heads, lines)}\n\n{note}\n\n{formatting.provenance(rows)}"


def attacks(rows: Sequence[Row]) -> str:
    """One line an attack of each model and library, with its passes."""
    chosen = [row for row in rows if row.unit != UNIT]
    heads = ["model", "attack", "library", "attacked", "seconds", "wall", "forwards", "backwards"]
    heads += ["model alone", "beside the model", "robust accuracy after it"]
    lines = []
    for row in chosen:
        found, extra = formatting.robustness(row), row.extra
        lines.append(
            [
                found.model,
                _attack(row),
                row.provider,
                f"{extra['attacked']:g}",
                formatting.time(row),
                f"{extra['wall']:.4g} s",
                f"{extra['forwards']:,.0f}",
                f"{extra['backwards']:,.0f}",
                f"{extra['bare']:.4g} s",
                _beside(row),
                formatting.percent(found.robust_accuracy),
            ]
        )
    return f"{formatting.table(heads, lines)}\n\n{_note(chosen)}\n\n{formatting.provenance(rows)}"


def ops(rows: Sequence[Row]) -> str:
    """One line a counted attack and library."""
    heads = ["attack", "library", "ops a step", "host reads a step", "model calls a step"]
    chosen = [row for row in rows if row.unit == UNIT]
    lines = [
        [
            _attack(row).removesuffix(", one step"),
            row.provider,
            f"{row.q50:.3g}",
            f"{row.extra['data_dependent_ops']:.3g}",
            f"{row.extra['evaluations']:.3g}",
        ]
        for row in chosen
    ]
    note = (
        f"Ops dispatched beside the model in a step of the authors' loop, on {chosen[0].n} images "
        f"of {formatting.shape(chosen[0].shape[1:])}, where nothing falls; the mean over many "
        "steps, with what the engine does every few of them. Host reads: ops whose result the "
        "host has to wait for. Counted, not timed."
    )
    return f"{formatting.table(heads, lines)}\n\n{note}\n\n{formatting.provenance(chosen)}"


def _attack(row: Row) -> str:
    found = row.robustness
    return row.case if found is None else row.case.removeprefix(f"{found.model} ")


def _beside(row: Row) -> str:
    ratio = row.extra.get("beside_ratio")
    more = formatting.EMPTY if ratio is None else f"{ratio:.2f}x"
    return f"{row.extra['beside']:.4g} s ({more})"


def _stored(row: Row) -> str:
    if "reference_points" not in row.extra:
        return formatting.EMPTY
    missed, beyond, points = (
        row.extra[f"reference_{name}"] for name in ("missed", "beyond", "points")
    )
    return f"{missed:g} / {beyond:g} of {points:g}"


def _note(rows: Sequence[Row]) -> str:
    row = rows[0]
    rounds = " or ".join(map(str, sorted({row.rounds for row in rows})))
    return (
        f"Seconds of process time, {rounds} interleaved runs, medians; in brackets the "
        f"speed-up over {row.baseline}. Timed: {row.timed}. Not timed: {row.not_timed}. Model "
        "alone: the same passes at the same batch sizes, repeated without an attack, backward to "
        "the input only; beside the model: the difference."
    )


def _means(rows: Sequence[Row]) -> str:
    """Our geometric means over the models, of which there must be several."""
    own = [row for row in rows if row.provider == OURS and row.unit != UNIT]
    whole = [row for row in own if row.case.endswith(f" {TOTAL}")]
    if len(whole) < 2 or whole[0].baseline == OURS:
        return ""
    fab = [row for row in own if row.case.endswith(" FAB-T")]
    parts = [
        f"end to end {statistics.geometric_mean(row.ratio for row in whole):.2f}x",
        f"FAB-T {statistics.geometric_mean(row.ratio for row in fab):.2f}x",
    ]
    beside = [row.extra["beside_ratio"] for row in whole if "beside_ratio" in row.extra]
    if len(beside) == len(whole):
        parts.append(f"beside the model {statistics.geometric_mean(beside):.2f}x")
    missed = sum(row.extra["missed"] - row.extra["beyond"] for row in whole)
    return (
        f"Geometric means of {OURS} over the {len(whole)} models: {', '.join(parts)}; net misses "
        f"{missed:g} of {sum(row.n for row in whole)} points."
    )
