"""The Markdown table of masked networks; every number in it comes from a row."""

import statistics
from collections.abc import Sequence

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row
from benchmarks.masked.networks import JUDGED

_WARNED = "warned: "


def masked(rows: Sequence[Row]) -> str:
    """One line a network: what both versions left standing and what "fast" missed, seed by seed."""
    heads = ["network", "eps", "n", "robust, standard", "robust, fast", "missed", "beyond"]
    heads += ["share of standard's passes", "of its time", "fast warned of"]
    lines = []
    for case in formatting.cases(rows):
        standard, fast = case[::2], case[1::2]
        lines.append(
            [
                case[0].case,
                formatting.eps(formatting.robustness(case[0]).eps),
                str(case[0].n),
                _robust(standard),
                _robust(fast),
                _each(fast, "missed"),
                _each(fast, "beyond"),
                f"{statistics.mean(row.extra['share of passes'] for row in fast):.2f}",
                f"{statistics.mean(1 / row.ratio for row in fast):.2f}",
                ", ".join(_warned(fast)) or "nothing",
            ]
        )
    return "\n\n".join([formatting.table(heads, lines), _note(rows), formatting.provenance(rows)])


def _note(rows: Sequence[Row]) -> str:
    fast = [row for row in rows if "missed" in row.extra]
    judged = [row for row in fast if row.case.endswith(JUDGED)]
    net = sum(row.extra["missed"] - row.extra["beyond"] for row in judged)
    seeds = ", ".join(formatting.distinct(f"{row.extra['seed']:g}" for row in fast))
    return (
        f"Seeds {seeds}, in this order. Missed: points that standard broke with this seed and fast "
        f"did not; beyond: the other way about. {JUDGED}: no constant of fast was chosen on these "
        f"three; net {net:g} of {sum(row.n for row in judged)} missed on them. Shares: means over "
        "the seeds; one backward pass counts as one. In brackets after a warning: in how many of "
        "the runs, if not in all."
    )


def _robust(runs: Sequence[Row]) -> str:
    shares = [formatting.robustness(row).robust_accuracy for row in runs]
    return ", ".join(formatting.percent(share) for share in shares)


def _each(runs: Sequence[Row], name: str) -> str:
    return ", ".join(f"{row.extra[name]:g}" for row in runs)


def _warned(runs: Sequence[Row]) -> list[str]:
    said = [key for row in runs for key in row.extra if key.startswith(_WARNED)]
    times = {key: said.count(key) for key in said}
    return [
        f"`{key.removeprefix(_WARNED)}`" + ("" if n == len(runs) else f" ({n} of {len(runs)})")
        for key, n in times.items()
    ]
