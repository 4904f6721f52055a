"""Cells, columns and notes that the tables have in common; every number comes from a row."""

from collections.abc import Sequence

from benchmarks.harness.schema import Environment, Robustness, Row

EMPTY = "–"


def provenance(rows: Sequence[Row]) -> str:
    """Where the rows come from: device, versions, commit, date and the command that made them; one
    paragraph a run."""
    runs = {row.environment.date: row.environment for row in rows}
    return "\n\n".join(_run(where) for where in runs.values())


def _run(where: Environment) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in where.versions.items())
    return (
        f"{where.device}, torch threads: {where.threads}, load average {where.load:g} before the "
        f"run; {versions}; commit {where.commit}, {where.date[:10]}: `{where.command}`"
    )


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in rows)


def cases(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by case and shape, in the order of their first row."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.shape), []).append(row)
    return list(groups.values())


def distinct(values) -> list[str]:  # noqa: ANN001
    return list(dict.fromkeys(values))


def attack_name(row: Row) -> str:
    return row.case.rpartition(" ")[0] or row.case


def eps(eps: float) -> str:
    levels = eps * 255
    in_levels = levels < 255 and abs(levels - round(levels)) < 1e-9
    return f"{round(levels)}/255" if in_levels else f"{eps:g}"


def time(row: Row | None) -> str:
    return EMPTY if row is None else f"{row.q50:.4g} {row.unit} ({ratio(row)})"


def ratio(row: Row) -> str:
    return f"{row.ratio:.2f}x"


def quantiles(row: Row) -> str:
    return f"{row.q50:.4g} ({row.q20:.4g} to {row.q80:.4g})"


def error(row: Row) -> str:
    outside = beyond([row])
    tolerance = f"{row.equality.tolerance:.1g}"
    return f"{row.equality.error:.1g} ({tolerance}{f'; {outside}' if outside else ''})"


def largest_error(case: Sequence[Row]) -> str:
    outside = beyond(case)
    return f"{max(row.equality.error for row in case):.1g}{f' ({outside})' if outside else ''}"


def beyond(case: Sequence[Row]) -> str:
    """Samples beyond the tolerance, of the provider with the most; empty if there are none."""
    row = max(case, key=lambda row: row.equality.outliers)
    outliers = row.equality.outliers
    return f"{outliers} of {row.n} samples beyond" if outliers else ""


def beyond_note(rows: Sequence[Row]) -> str:
    """What "samples beyond" means, with a space behind; empty if no row has any."""
    rows = [row for row in rows if row.equality.outliers]
    if not rows:
        return ""
    tolerances = " or ".join(distinct(f"{row.equality.tolerance:.1g}" for row in rows))
    metrics = " or ".join(distinct(row.equality.metric.partition(":")[0] for row in rows))
    return (
        f"Samples beyond: further off than the tolerance ({tolerances}) and left out of the error "
        f"({metrics}): rounding decides the sign of gradients near zero there. "
    )


def shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def robustness(row: Row) -> Robustness:
    assert row.robustness is not None, "the attack suite writes no row without"
    return row.robustness


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def accuracies(case: Sequence[Row]) -> str:
    """One number where all providers agree, else the lowest and highest."""
    values = sorted(row.robustness.robust_accuracy for row in case if row.robustness)
    low, high = percent(values[0]), percent(values[-1])
    return low if low == high else f"{low} to {high}"
