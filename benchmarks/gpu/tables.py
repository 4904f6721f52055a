"""Tables of the GPU suites, for the screen and for documents; every number comes from a row."""

from collections.abc import Callable, Sequence

from benchmarks.harness import formatting, tables
from benchmarks.harness.schema import Row

Cells = tuple[list[str], list[list[str]]]  # heads and lines


def op_tables(rows: Sequence[Row]) -> list[Cells]:
    """Images and logits apart, and each dtype: one line an op, one column a shape.

    A cell is the percent of the copy bandwidth and the speed-up over the eager chain.
    """
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row.provider.startswith("fastadv"):
            groups.setdefault((len(row.shape), row.dtype), []).append(row)
    return [_op_cells(group) for group in groups.values()]


def _op_cells(rows: Sequence[Row]) -> Cells:
    columns = formatting.distinct(_column(row) for row in rows)
    lines = []
    for op in formatting.distinct(row.case for row in rows):
        found = {_column(row): row for row in rows if row.case == op}
        lines.append([op, *(_op_cell(found.get(column)) for column in columns)])
    return ["op", *columns], lines


def _column(row: Row) -> str:
    return f"{formatting.shape(row.shape)} {row.dtype.replace('float', 'fp').replace('bfp', 'bf')}"


def _op_cell(row: Row | None) -> str:
    if row is None:
        return formatting.EMPTY
    share = f"{row.bandwidth.percent_of_copy:.0f} %" if row.bandwidth else f"{row.q50:.3g} us"
    return f"{share}, {row.ratio:.1f}x"


def host_cells(rows: Sequence[Row]) -> Cells:
    heads = ["host time of a call", "provider", "us", "over eager"]
    return heads, [
        [row.case.removesuffix(", host time"), row.provider, f"{row.q50:.2f}", f"{row.ratio:.1f}x"]
        for row in rows
    ]


def attack_cells(rows: Sequence[Row]) -> Cells:
    heads = ["attack", "provider", "ms (q20 to q80)", "speed-up", "over bare passes", "peak MiB"]
    heads += ["net misses (tolerance)"]
    return heads, [
        [
            row.case,
            row.provider,
            formatting.quantiles(row),
            formatting.ratio(row),
            _figure(row, "over_bare_percent", "{:.1f} %"),
            _figure(row, "peak_memory_mib", "{:.0f}"),
            f"{row.equality.error:.2g} ({row.equality.tolerance:.2g})",
        ]
        for row in rows
    ]


def autoattack_cells(rows: Sequence[Row]) -> Cells:
    heads = ["model", "attack", "eps", "n", "provider", "seconds", "speed-up", "clean"]
    heads += ["robust accuracy", "missed / beyond"]
    lines = []
    for row in rows:
        found = formatting.robustness(row)
        lines.append(
            [
                found.model,
                found.attack,
                formatting.eps(found.eps),
                str(row.n),
                row.provider,
                f"{row.q50:.4g}",
                formatting.ratio(row),
                formatting.percent(found.clean_accuracy),
                formatting.percent(found.robust_accuracy),
                f"{row.extra['missed']:g} / {row.extra['beyond']:g}",
            ]
        )
    return heads, lines


def training_cells(rows: Sequence[Row]) -> Cells:
    heads = ["training", "provider", "ms a minibatch", "s an epoch", "speed-up", "peak MiB"]
    heads += ["error (tolerance)"]
    return heads, [
        [
            row.case,
            row.provider,
            f"{row.extra['ms_per_minibatch']:.3g}",
            _figure(row, "seconds_per_epoch", "{:.3g}"),
            formatting.ratio(row),
            _figure(row, "peak_memory_mib", "{:.0f}"),
            formatting.error(row),
        ]
        for row in rows
    ]


def step_cells(rows: Sequence[Row]) -> Cells:
    heads = ["step", "provider", "kernels beside the model", "copies"]
    heads += ["host launches, the model's included", "synchronisations"]
    return heads, [
        [
            row.case.removesuffix(" step"),
            row.provider,
            f"{row.q50:.2f}",
            _figure(row, "copies", "{:.2f}"),
            _figure(row, "host_launches", "{:.2f}"),
            _figure(row, "synchronisations", "{:g}"),
        ]
        for row in rows
    ]


def _figure(row: Row, name: str, form: str) -> str:
    value = row.extra.get(name)
    return formatting.EMPTY if value is None else form.format(value)


def timed_ops(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if not row.case.endswith(", host time")]


def host_times(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.case.endswith(", host time")]


def ops(rows: Sequence[Row]) -> str:
    timed, host = timed_ops(rows), host_times(rows)
    parts = []
    if timed:
        copied = next((row.bandwidth.copy_gb_s for row in timed if row.bandwidth), 0.0)
        parts += [formatting.table(*cells) for cells in op_tables(timed)]
        parts.append(
            "Percent of the copy bandwidth measured in the same run "
            f"({copied:.0f} GB/s), or the time where the bytes depend on data; speed-up over the "
            f"eager chain. Timed: {timed[0].timed}."
        )
    if host:
        parts += [formatting.table(*host_cells(host)), f"Timed: {host[0].timed}."]
    return "\n\n".join([*parts, formatting.provenance(rows)])


def _document(cells: Callable[[Sequence[Row]], Cells]) -> Callable[[Sequence[Row]], str]:
    def write(rows: Sequence[Row]) -> str:
        bases = " or ".join(formatting.distinct(row.baseline for row in rows))
        timed = "; or ".join(formatting.distinct(row.timed for row in rows))
        not_timed = "; or ".join(formatting.distinct(row.not_timed for row in rows))
        note = (
            f"Medians; speed-up over {bases} in the same run. Timed: {timed}. Not timed: "
            f"{not_timed}. Error: {rows[0].equality.metric}."
        )
        table = formatting.table(*cells(rows))
        return f"{table}\n\n{note}\n\n{formatting.provenance(rows)}"

    return write


attacks = _document(attack_cells)
autoattack = _document(autoattack_cells)
training = _document(training_cells)
steps = _document(step_cells)


def attacks_chart(rows: Sequence[Row]) -> str:
    return tables.attacks_chart(rows)


def ops_chart(rows: Sequence[Row]) -> str:
    """Bars of the percent of the copy bandwidth in fp32, a group a shape."""
    chosen = [
        row
        for row in timed_ops(rows)
        if row.bandwidth and row.provider.startswith("fastadv") and row.dtype == "float32"
    ]
    where = rows[0].environment
    title = f"Percent of the copy bandwidth, fp32, {where.device}, {where.date[:10]}"
    groups = []
    for shape in formatting.distinct(formatting.shape(row.shape) for row in chosen):
        bars = [
            tables.Bar(row.case, row.bandwidth.percent_of_copy, f"{row.q50:.4g} us")
            for row in chosen
            if row.bandwidth and formatting.shape(row.shape) == shape
        ]
        groups.append((shape, bars))
    return tables.bar_chart(title, groups)


# suite -> what the screen shows of it
SCREEN: dict[str, Callable[[Sequence[Row]], list[Cells]]] = {
    "gpu_ops": lambda rows: [*op_tables(timed_ops(rows)), host_cells(host_times(rows))],
    "gpu_attacks": lambda rows: [attack_cells(rows)],
    "gpu_autoattack": lambda rows: [autoattack_cells(rows)],
    "gpu_training": lambda rows: [training_cells(rows)],
    "gpu_steps": lambda rows: [step_cells(rows)],
}
