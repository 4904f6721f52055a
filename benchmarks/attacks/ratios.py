"""The table of ratios: fastadv beside each other library and beside its own passes, by case."""

import math
from collections.abc import Sequence

from benchmarks.attacks.clocks import BARE
from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

_LAST = "fastadv, last iterate"
_FIRST = "fastadv, first success"
# (head, provider of the row, the other one): the other's time over fastadv's
_COLUMNS = (
    ("last iterate, torchattacks / fastadv", _LAST, "torchattacks"),
    ("first success, foolbox / fastadv", _FIRST, "foolbox"),
    ("first success, ART / fastadv", _FIRST, "art"),
)


def table(rows: Sequence[Row]) -> str:
    """One line a case: above 1 fastadv is faster; under it the geometric mean of each column."""
    heads = ["attack", "model", "n", *(head for head, *_ in _COLUMNS)]
    heads += ["last iterate / bare passes", "ms beyond the bare passes"]
    lines, columns = [], [[] for _ in _COLUMNS]
    for case in formatting.cases(rows):
        by_provider = {row.provider: row for row in case}
        model = formatting.robustness(next(row for row in case if row.robustness)).model
        cells = [formatting.attack_name(case[0]), model, str(case[0].n)]
        for values, (_, provider, other) in zip(columns, _COLUMNS, strict=True):
            ratio = _extra(by_provider.get(provider), f"{other} / this")
            cells.append(formatting.EMPTY if ratio is None else f"{ratio:.2f}")
            values += [] if ratio is None else [ratio]
        last = by_provider.get(_LAST)
        share, beyond = _extra(last, f"{BARE} / this"), _extra(last, "ms_beyond_bare")
        cells.append(formatting.EMPTY if share is None else f"{1 / share:.3f}")
        cells.append(formatting.EMPTY if beyond is None else f"{beyond:.3g}")
        lines.append(cells)
    means = [f"{_geometric_mean(values):.3f}" if values else formatting.EMPTY for values in columns]
    lines.append(["geometric mean", "", "", *means, "", ""])
    lines.append(["smallest", "", "", *(_smallest(values) for values in columns), "", ""])
    both = [ratio for values in columns[1:] for ratio in values]
    rounds = sorted({row.rounds for row in rows})
    note = (
        f"Medians of the ratios of {' or '.join(map(str, rounds))} interleaved rounds. Timed: "
        f"{rows[0].timed}. Bare passes: as many forward and backward passes to the input by the "
        "same model with frozen weights, nothing else."
    )
    if both:
        note += (
            " First success over the two that verify too, foolbox and ART together: geometric "
            f"mean {_geometric_mean(both):.3f}."
        )
    return formatting.table(heads, lines) + f"\n\n{note}\n\n{formatting.provenance(rows)}"


def _extra(row: Row | None, name: str) -> float | None:
    return None if row is None else row.extra.get(name)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _smallest(values: Sequence[float]) -> str:
    return f"{min(values):.2f}" if values else formatting.EMPTY
