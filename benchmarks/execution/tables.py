"""Markdown tables of the fast searches; every number in them comes from a row."""

import statistics
from collections.abc import Sequence

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

_REFUSED = "no row"
_LACKING = f": {_REFUSED}"  # ends what the row of fp32 says of a search without one


def execution(rows: Sequence[Row]) -> str:
    """One line an execution, over all cases; then one line a case and execution."""
    return "\n\n".join([_summary(rows), _whole(rows), _note(rows), formatting.provenance(rows)])


def _summary(rows: Sequence[Row]) -> str:
    heads = ["search", "cases", "speed-up (least to most)", "missed / beyond", "of attacked"]
    heads += ["denied", "in the model", "share of limit", "cases without a row"]
    lines = []
    for name in _names(rows):
        own = [row for row in rows if row.provider == name]
        counted = [(_count(row, "missed"), _count(row, "beyond"), _attacked(row)) for row in own]
        refused = _refused(rows, name)
        counted += [(*counts, _attacked(row)) for row, counts in refused if counts]
        missed, beyond, attacked = (sum(values) for values in zip((0, 0, 0), *counted, strict=True))
        lines.append(
            [
                name,
                str(len(own)),
                _speed_up(own),
                f"{missed} / {beyond}",
                str(attacked),
                f"{sum(_count(row, 'denied') for row in own)}",
                _median(own, "model_share"),
                _median(own, "share_of_limit"),
                str(len(refused)),
            ]
        )
    return formatting.table(heads, lines)


def _whole(rows: Sequence[Row]) -> str:
    heads = ["model", "attack", "eps", "n", "search", "time", "clean", "robust accuracy"]
    heads += ["missed / beyond", "denied", "forwards", "backwards", "in the model"]
    heads += ["share of limit", "preparation"]
    lines = []
    for case in formatting.cases(rows):
        for row in case:
            found, extra = formatting.robustness(row), row.extra
            lines.append(
                [
                    *_which(row),
                    row.provider,
                    _time(row),
                    formatting.percent(found.clean_accuracy),
                    formatting.percent(found.robust_accuracy),
                    f"{extra['missed']:g} / {extra['beyond']:g}",
                    f"{extra['denied']:g}",
                    f"{extra['forwards']:,.0f}",
                    f"{extra['backwards']:,.0f}",
                    _median([row], "model_share"),
                    _median([row], "share_of_limit"),
                    f"{extra['preparation']:.2g} s",
                ]
            )
        for name in _names(rows):
            for row, counts in _refused(case, name):
                off = "{} / {}".format(*counts) if counts else formatting.EMPTY
                known = [*_which(row), name, _REFUSED, formatting.EMPTY, formatting.EMPTY, off]
                lines.append(known + [formatting.EMPTY] * (len(heads) - len(known)))
    return formatting.table(heads, lines)


def _names(rows: Sequence[Row]) -> list[str]:
    """Of all searches, those without any row too."""
    lacking = [name for row in rows for name in row.extra if name.endswith(_LACKING)]
    return formatting.distinct(
        [*(row.provider for row in rows), *(name.removesuffix(_LACKING) for name in lacking)]
    )


def _speed_up(rows: Sequence[Row]) -> str:
    ratios = [row.ratio for row in rows]
    if not ratios:
        return formatting.EMPTY
    mean = statistics.geometric_mean(ratios)
    return f"{mean:.2f}x ({min(ratios):.2f}x to {max(ratios):.2f}x)"


def _time(row: Row) -> str:
    assert row.unit == "ms", "as the benchmark writes it"
    low, middle, high = (f"{value / 1e3:.3g}" for value in (row.q20, row.q50, row.q80))
    return f"{middle} s ({low} to {high}), {formatting.ratio(row)}"


def _which(row: Row) -> list[str]:
    found = formatting.robustness(row)
    return [found.model, formatting.attack_name(row), formatting.eps(found.eps), str(row.n)]


def _refused(rows: Sequence[Row], name: str) -> list[tuple[Row, tuple[int, int] | None]]:
    """(row of fp32, (missed, beyond)) of the cases in which `name` has no row; None: it failed."""
    found = []
    for row in rows:
        if f"{name}{_LACKING}" in row.extra:
            counts = None
            if f"{name}: missed" in row.extra:
                counts = _count(row, f"{name}: missed"), _count(row, f"{name}: beyond")
            found.append((row, counts))
    return found


def _count(row: Row, name: str) -> int:
    return int(row.extra[name])


def _attacked(row: Row) -> int:
    return round(row.n * formatting.robustness(row).clean_accuracy)


def _median(rows: Sequence[Row], name: str) -> str:
    """Of a share, over the rows that have it."""
    shares = [row.extra[name] for row in rows if name in row.extra]
    return f"{100 * statistics.median(shares):.0f} %" if shares else formatting.EMPTY


def _note(rows: Sequence[Row]) -> str:
    rounds = " or ".join(str(count) for count in sorted({row.rounds for row in rows}))
    base = rows[0].baseline
    return (
        f"Time: median of {rounds} interleaved calls (q20 to q80), and the speed-up over {base} "
        "(median of ratios within a round; below 1 is slower), over cases the geometric mean. "
        f"Timed: {rows[0].timed}. Not timed: {rows[0].not_timed}. Missed / beyond: samples that "
        f"{base} broke in the same run and this search left, and samples that it alone broke, each "
        f"success confirmed by the benchmark on the {base} model within eps; where the two add up "
        f'to more than one, there is no time ("{_REFUSED}"). Attacked: samples that the model gets '
        f"right, over cases. Denied: successes of the search that the {base} model denied, after "
        "which the sample was attacked further. In the model, share of limit: the time in forward "
        "and backward passes, and what the same passes take on their own in the same precision, "
        "over the time of the first call; over cases the median. The limit is measured by a few "
        "passes of up to 64 samples: on a shared machine, and where an attack has fewer left, it "
        "may come out above 100 %. Preparation: a first attack of one step, in which the model is "
        "copied, checked and compiled."
    )
