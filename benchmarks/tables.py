"""Markdown tables and SVG charts from result rows; every number in them comes from a row."""

import statistics
from collections.abc import Callable, Sequence
from html import escape

from benchmarks.schema import Robustness, Row

_EMPTY = "–"
# ablations of the columns beside them: too wide for a first screen
_FULL_TABLE_ONLY = ("fastadv, first success, plain", "fastadv.compat.torchattacks")


def first_screen(rows: Sequence[Row]) -> str:
    """One line a case: each provider's median and speed-up, worst error, robust accuracy."""
    rows = [row for row in rows if row.provider not in _FULL_TABLE_ONLY]
    providers = _distinct(row.provider for row in rows)
    heads = ["attack", "model", "n", "eps", *providers, "largest error", "robust accuracy"]
    lines = []
    for case in _cases(rows):
        by_provider = {row.provider: row for row in case}
        first = _robustness(case[0])
        cells = [_attack_name(case[0]), first.model, str(first.n), _eps(first.eps)]
        cells += [_time(by_provider.get(name)) for name in providers]
        cells += [_largest_error(case), _accuracies(case)]
        lines.append(cells)
    row = rows[0]
    rounds = sorted({row.rounds for row in rows})
    restarted = _distinct(
        f"{_attack_name(row)}: {_robustness(row).steps} steps from each of "
        f"{_robustness(row).restarts} random starts; "
        for row in rows
        if _robustness(row).restarts > 1
    )
    seeds = _distinct(str(_robustness(row).seed) for row in rows)
    note = (
        f"Median of {' or '.join(map(str, rounds))} interleaved calls; in brackets the speed-up "
        f"over {' or '.join(_distinct(row.baseline for row in rows))} (median of ratios within a "
        f"round; below 1 is slower). Timed: {row.timed}. Not timed: {row.not_timed}. Errors: "
        "against the textbook loop from the same start, checked before any time is taken; with "
        f"restarts, of robust accuracy. {_beyond_note(rows)}"
        f"{''.join(restarted)}without restarts from the clean sample; seed {', '.join(seeds)}."
    )
    return _table(heads, lines) + f"\n\n{note}\n\n{_provenance(rows)}"


def attacks(rows: Sequence[Row]) -> str:
    """One line a row, with quantiles and tolerances."""
    heads = ["case", "provider", "shape", "q50 (q20 to q80)", "speed-up", "error (tolerance)"]
    heads += ["robust accuracy", "steps", "restarts", "eps", "step size"]
    lines = []
    for row in rows:
        r = _robustness(row)
        lines.append(
            [
                row.case,
                row.provider,
                _shape(row.shape),
                f"{_quantiles(row)} {row.unit}",
                _ratio(row),
                _error(row),
                _percent(r.robust_accuracy),
                str(r.steps),
                str(r.restarts),
                _eps(r.eps),
                f"{r.step_size:.4g}",
            ]  # fmt: skip
        )
    notes = [note for note in (_beyond_note(rows).strip(), _provenance(rows)) if note]
    return "\n\n".join([_table(heads, lines), *notes])


def ops(rows: Sequence[Row]) -> str:
    """One line a row, with the share of the copy bandwidth."""
    heads = ["op", "shape", "dtype", "provider", "q50 (q20 to q80)", "speed-up"]
    heads += ["of copy bandwidth", "error (tolerance)"]
    lines = []
    for row in rows:
        share = f"{row.bandwidth.percent_of_copy:.0f} %" if row.bandwidth else _EMPTY
        lines.append(
            [
                row.case,
                _shape(row.shape),
                row.dtype,
                row.provider,
                f"{_quantiles(row)} {row.unit}",
                _ratio(row),
                share,
                _error(row),
            ]  # fmt: skip
        )
    row = rows[0]
    note = (
        f"Median of {row.rounds} interleaved calls; speed-up over the {row.baseline}. "
        f"Timed: {row.timed}."
    )
    if row.bandwidth:
        note += f" Copy bandwidth in the same run: {row.bandwidth.copy_gb_s:.0f} GB/s."
    return _table(heads, lines) + f"\n\n{note}\n\n{_provenance(rows)}"


def step_cost(rows: Sequence[Row]) -> str:
    """One line a row: what a step costs beside the model."""
    heads = ["attack", "library", "ops", "launches", "bytes per element", "host reads", "error"]
    lines = [
        [
            row.case.removesuffix(", one step"), row.provider, f"{row.extra['ops']:.0f}",
            f"{row.extra['launches']:.0f}", f"{row.q50:.1f}",
            f"{row.extra['data_dependent_ops']:.0f}", _error(row),
        ]
        for row in rows
    ]  # fmt: skip
    note = (
        f"One step on a batch of {rows[0].n} images of {_shape(rows[0].shape[1:])}, fp32, beside "
        "the forward and backward of the model to its input; counted, not timed. Bytes: read and "
        "written by each eager op, or by the loads and stores of an interpreted kernel."
    )
    return _table(heads, lines) + f"\n\n{note}\n\n{_provenance(rows)}"


def training(rows: Sequence[Row]) -> str:
    """One line a row: seconds an epoch, work and ops a step, distance from the textbook."""
    trained = any(row.robustness for row in rows)
    heads = ["training", "provider", "s/epoch", "over per-sample loader", "units a step"]
    heads += ["ops a step", "host reads a step", "largest error of a weight (tolerance)"]
    heads += ["robust accuracy"] if trained else []
    lines = []
    for row in rows:
        extra = row.extra
        cells = [row.case, row.provider, _time(row), f"{extra['over_per_sample']:.2f}x"]
        cells += [f"{extra[key]:.4g}" for key in ("units", "ops", "data_dependent_ops")]
        cells.append(_error(row))
        if trained:
            cells.append(_percent(row.robustness.robust_accuracy) if row.robustness else _EMPTY)
        lines.append(cells)
    row = rows[0]
    note = (
        f"Median of {row.rounds} interleaved calls; in brackets the speed-up over {row.baseline}. "
        f"Timed: {' or '.join(_distinct(row.timed for row in rows))}. Not timed: {row.not_timed}. "
        "Step: an optimizer step; units: passes through a layer, forward, to its input and to its "
        "weights, counted, as are ops and host reads beside the loader. Error: "
        f"{row.equality.metric}."
    )
    if trained:
        r = next(row.robustness for row in rows if row.robustness)
        note += f" Attack: PGD-{r.steps}, {r.restarts} restarts, seed {r.seed}, n={r.n}."
    return _table(heads, lines) + f"\n\n{note}\n\n{_provenance(rows)}"


def attacks_chart(rows: Sequence[Row]) -> str:
    """Horizontal bars of the speed-up over the baseline, a group a case, as an SVG document."""
    bar, gap, left, width = 14, 12, 250, 430
    largest = max(row.ratio for row in rows)
    colours = dict(zip(_distinct(row.provider for row in rows), _COLOURS, strict=False))
    parts, y = [], 28
    for case in _cases(rows):
        parts.append(_text(4, y + 11, case[0].case, weight="bold"))
        y += bar + 4
        for row in case:
            length = max(1.0, width * row.ratio / largest)
            label = f"{row.ratio:.2f}x, {row.q50:.4g} {row.unit}"
            colour = colours.get(row.provider, "#888888")
            parts.append(_text(left - 6, y + 11, row.provider, anchor="end"))
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 2}" '
                f'fill="{colour}"/>'
            )
            parts.append(_text(left + length + 4, y + 11, label))
            y += bar
        y += gap
    where = rows[0].environment
    title = f"Speed-up over {rows[0].baseline}, {where.device}, {where.date[:10]}, n in the table"
    size = f'width="{left + width + 140}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">\n'
        '<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([_text(4, 16, title, weight="bold"), *parts])
        + "\n</svg>\n"
    )


def mnist(rows: Sequence[Row]) -> str:
    """One line a provider: robust accuracy of every seed, the median and the worst, flags, time."""
    heads = ["training", "PGD-50-10, by seed", "median", "worst", "clean", "flagged at epoch"]
    heads += ["epochs", "seconds"]
    lines = []
    for name in _distinct(row.provider for row in rows):
        own = sorted((r for r in rows if r.provider == name), key=lambda r: r.extra["seed"])
        robust = [_robustness(row).robust_accuracy for row in own]
        clean = sorted(_robustness(row).clean_accuracy for row in own)
        flags = [row.extra["flagged_at_epoch"] for row in own]
        lines.append(
            [
                f"{name} ({own[0].case})",
                ", ".join(
                    f"{row.extra['seed']:g}: {_percent(r)}"
                    for row, r in zip(own, robust, strict=True)
                ),
                _percent(statistics.median(robust)),
                _percent(min(robust)),
                f"{_percent(clean[0])} to {_percent(clean[-1])}",
                ", ".join(_EMPTY if flag < 0 else f"{flag:g}" for flag in flags),
                ", ".join(f"{row.extra['epochs']:g}" for row in own),
                ", ".join(f"{row.q50:.0f}" for row in own),
            ]
        )
    first = _robustness(rows[0])
    note = (
        f"MNIST, L-infinity, eps {first.eps:g}, {rows[0].n:,} training samples, 1,000 held out for "
        f"the sentinel; final weights under PGD-50-10 (step {first.step_size:g}, seed "
        f"{first.seed}) on the first {first.n:,} test images, fp32. Flagged: the first verdict of "
        f"the sentinel that is not good or suspect. Seconds: {rows[0].timed}."
    )
    return f"{_table(heads, lines)}\n\n{note}\n\n{_provenance(rows)}"


TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "first-screen": ("attacks", first_screen),
    "attacks": ("attacks", attacks),
    "ops": ("ops", ops),
    "step-cost": ("counts", step_cost),
    "training": ("training", training),
    "mnist": ("mnist", mnist),
}
CHARTS: dict[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "attacks-chart": ("attacks", attacks_chart),
}
# Okabe and Ito's colours, which the colour-blind can tell apart
_COLOURS = (
    "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#999999", "#E69F00", "#D55E00", "#CC79A7",
)  # fmt: skip


def _provenance(rows: Sequence[Row]) -> str:
    """Where the rows come from: device, versions, commit, date and the command that made them."""
    where = rows[0].environment
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    return (
        f"{where.device}, torch threads: {where.threads}, load average {where.load:g} before the "
        f"run; {versions}; commit {where.commit}, {where.date[:10]}: `{where.command}`"
    )


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in rows)


def _cases(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by case and shape, in the order of their first row."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.shape), []).append(row)
    return list(groups.values())


def _distinct(values) -> list[str]:  # noqa: ANN001
    return list(dict.fromkeys(values))


def _attack_name(row: Row) -> str:
    return row.case.rpartition(" ")[0] or row.case


def _eps(eps: float) -> str:
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-9 else f"{eps:g}"


def _time(row: Row | None) -> str:
    return _EMPTY if row is None else f"{row.q50:.4g} {row.unit} ({_ratio(row)})"


def _ratio(row: Row) -> str:
    return f"{row.ratio:.2f}x"


def _quantiles(row: Row) -> str:
    return f"{row.q50:.4g} ({row.q20:.4g} to {row.q80:.4g})"


def _error(row: Row) -> str:
    beyond = _beyond([row])
    tolerance = f"{row.equality.tolerance:.1g}"
    return f"{row.equality.error:.1g} ({tolerance}{f'; {beyond}' if beyond else ''})"


def _largest_error(case: Sequence[Row]) -> str:
    beyond = _beyond(case)
    return f"{max(row.equality.error for row in case):.1g}{f' ({beyond})' if beyond else ''}"


def _beyond(case: Sequence[Row]) -> str:
    """Samples beyond the tolerance, of the provider with the most; empty if there are none."""
    row = max(case, key=lambda row: row.equality.outliers)
    outliers = row.equality.outliers
    return f"{outliers} of {row.n} samples beyond" if outliers else ""


def _beyond_note(rows: Sequence[Row]) -> str:
    """What "samples beyond" means, with a space behind; empty if no row has any."""
    rows = [row for row in rows if row.equality.outliers]
    if not rows:
        return ""
    tolerances = " or ".join(_distinct(f"{row.equality.tolerance:.1g}" for row in rows))
    metrics = " or ".join(_distinct(row.equality.metric.partition(":")[0] for row in rows))
    return (
        f"Samples beyond: further off than the tolerance ({tolerances}) and left out of the error "
        f"({metrics}): rounding decides the sign of gradients near zero there. "
    )


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _robustness(row: Row) -> Robustness:
    assert row.robustness is not None, "the attack suite writes no row without"
    return row.robustness


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _accuracies(case: Sequence[Row]) -> str:
    """One number where all providers agree, else the lowest and highest."""
    values = sorted(_robustness(row).robust_accuracy for row in case)
    low, high = _percent(values[0]), _percent(values[-1])
    return low if low == high else f"{low} to {high}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    attributes = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {attributes}>{escape(text)}</text>"
