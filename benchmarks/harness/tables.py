"""Markdown tables and SVG charts from result rows; every number in them comes from a row."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

# ablations of the columns beside them: in the full table only
_FULL_TABLE_ONLY = ("fastadv, first success, plain", "fastadv.compat.torchattacks")


def attacks_by_case(rows: Sequence[Row]) -> str:
    """One line a case: each provider's median and speed-up, worst error, robust accuracy."""
    rows = [row for row in rows if row.provider not in _FULL_TABLE_ONLY and row.robustness]
    providers = formatting.distinct(row.provider for row in rows)
    heads = ["attack", "model", "n", "eps", *providers, "largest error", "robust accuracy"]
    lines = []
    for case in formatting.cases(rows):
        by_provider = {row.provider: row for row in case}
        first = formatting.robustness(case[0])
        cells = [
            formatting.attack_name(case[0]),
            first.model,
            str(first.n),
            formatting.eps(first.eps),
        ]
        cells += [formatting.time(by_provider.get(name)) for name in providers]
        cells += [formatting.largest_error(case), formatting.accuracies(case)]
        lines.append(cells)
    row = rows[0]
    rounds = sorted({row.rounds for row in rows})
    restarted = formatting.distinct(
        f"{formatting.attack_name(row)}: {formatting.robustness(row).steps} steps from each of "
        f"{formatting.robustness(row).restarts} random starts; "
        for row in rows
        if formatting.robustness(row).restarts > 1
    )
    seeds = formatting.distinct(str(formatting.robustness(row).seed) for row in rows)
    baselines = " or ".join(formatting.distinct(row.baseline for row in rows))
    note = (
        f"Median of {' or '.join(map(str, rounds))} interleaved calls; in brackets the speed-up "
        f"over {baselines} (median of ratios within a "
        f"round; below 1 is slower). Timed: {row.timed}. Not timed: {row.not_timed}. Errors: "
        "against the textbook loop from the same start, checked before any time is taken; with "
        f"restarts, of robust accuracy. {formatting.beyond_note(rows)}"
        f"{''.join(restarted)}without restarts from the clean sample; seed {', '.join(seeds)}."
    )
    return formatting.table(heads, lines) + f"\n\n{note}\n\n{formatting.provenance(rows)}"


def attacks(rows: Sequence[Row]) -> str:
    """One line a row of an attack, with quantiles and tolerances."""
    rows = [row for row in rows if row.robustness]  # passes alone have none
    heads = ["case", "provider", "shape", "q50 (q20 to q80)", "speed-up", "error (tolerance)"]
    heads += ["robust accuracy", "steps", "restarts", "eps", "step size"]
    lines = []
    for row in rows:
        r = formatting.robustness(row)
        lines.append(
            [
                row.case,
                row.provider,
                formatting.shape(row.shape),
                f"{formatting.quantiles(row)} {row.unit}",
                formatting.ratio(row),
                formatting.error(row),
                formatting.percent(r.robust_accuracy),
                str(r.steps),
                str(r.restarts),
                formatting.eps(r.eps),
                f"{r.step_size:.4g}",
            ]
        )
    notes = [
        note for note in (formatting.beyond_note(rows).strip(), formatting.provenance(rows)) if note
    ]
    return "\n\n".join([formatting.table(heads, lines), *notes])


def ops(rows: Sequence[Row]) -> str:
    """One line a row, with the share of the copy bandwidth."""
    heads = ["op", "shape", "dtype", "provider", "q50 (q20 to q80)", "speed-up"]
    heads += ["of copy bandwidth", "error (tolerance)"]
    lines = []
    for row in rows:
        share = f"{row.bandwidth.percent_of_copy:.0f} %" if row.bandwidth else formatting.EMPTY
        lines.append(
            [
                row.case,
                formatting.shape(row.shape),
                row.dtype,
                row.provider,
                f"{formatting.quantiles(row)} {row.unit}",
                formatting.ratio(row),
                share,
                formatting.error(row),
            ]
        )
    row = rows[0]
    note = (
        f"Median of {row.rounds} interleaved calls; speed-up over the {row.baseline}. "
        f"Timed: {row.timed}."
    )
    if row.bandwidth:
        note += f" Copy bandwidth in the same run: {row.bandwidth.copy_gb_s:.0f} GB/s."
    return formatting.table(heads, lines) + f"\n\n{note}\n\n{formatting.provenance(rows)}"


def step_cost(rows: Sequence[Row]) -> str:
    """One line a row: what a step costs beside the model."""
    heads = ["attack", "library", "ops", "launches", "bytes per element", "host reads", "error"]
    lines = [
        [
            row.case.removesuffix(", one step"),
            row.provider,
            f"{row.extra['ops']:.0f}",
            f"{row.extra['launches']:.0f}",
            f"{row.q50:.1f}",
            f"{row.extra['data_dependent_ops']:.0f}",
            formatting.error(row),
        ]
        for row in rows
    ]
    note = (
        f"One step on a batch of {rows[0].n} images of {formatting.shape(rows[0].shape[1:])}, "
        "fp32, beside the forward and backward of the model to its input; counted, not timed. "
        "Bytes: read and written by each eager op, or by the loads and stores of an interpreted "
        "kernel."
    )
    return formatting.table(heads, lines) + f"\n\n{note}\n\n{formatting.provenance(rows)}"


def host(rows: Sequence[Row]) -> str:
    """One line a call: the host's time, and without what makes it fast."""
    heads = ["call", "batch", "us a call", "us without", "speed-up", "without: the same call"]
    own = [row for row in rows if row.provider != row.baseline]
    other = {row.case: row for row in rows if row.provider == row.baseline}
    lines = [
        [
            row.case,
            formatting.shape(row.shape),
            formatting.quantiles(row),
            formatting.quantiles(other[row.case]),
            formatting.ratio(row),
            row.baseline,
        ]
        for row in own
    ]
    note = (
        f"Median (q20 to q80) of {rows[0].rounds} interleaved rounds; timed: {rows[0].timed}. "
        f"Not timed: {rows[0].not_timed}."
    )
    return formatting.table(heads, lines) + f"\n\n{note}\n\n{formatting.provenance(rows)}"


def attacks_chart(rows: Sequence[Row]) -> str:
    """Horizontal bars of the speed-up over the baseline, a group a case, as an SVG document."""
    rows = [row for row in rows if row.robustness]
    where = rows[0].environment
    title = f"Speed-up over {rows[0].baseline}, {where.device}, {where.date[:10]}, n in the table"
    groups = [
        (
            case[0].case,
            [Bar(r.provider, r.ratio, f"{r.ratio:.2f}x, {r.q50:.4g} {r.unit}") for r in case],
        )
        for case in formatting.cases(rows)
    ]
    return bar_chart(title, groups)


class Bar(NamedTuple):
    """One bar of a chart: its name, its length in any unit, what is written beside it."""

    name: str
    value: float
    label: str


def bar_chart(title: str, groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Horizontal bars under a heading a group, one colour a name, as an SVG document."""
    bar, gap, left, width = 14, 12, 250, 430
    every = [one for _, bars in groups for one in bars]
    largest = max(one.value for one in every)
    colours = dict(zip(formatting.distinct(one.name for one in every), _COLOURS, strict=False))
    parts, y = [], 28
    for heading, bars in groups:
        parts.append(_text(4, y + 11, heading, weight="bold"))
        y += bar + 4
        for one in bars:
            length = max(1.0, width * one.value / largest)
            colour = colours.get(one.name, "#888888")
            parts.append(_text(left - 6, y + 11, one.name, anchor="end"))
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" '
                f'fill="{colour}"/>'
            )
            parts.append(_text(left + length + 4, y + 11, one.label))
            y += bar
        y += gap
    size = f'width="{left + width + 140}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        '<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([_text(4, 16, title, weight="bold"), *parts])
        + "\n</svg>\n"
    )


# Okabe and Ito's colours, which the colour-blind can tell apart
_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#999999", "#E69F00", "#D55E00", "#CC79A7")


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {attributes}>{escape(text)}</text>"
