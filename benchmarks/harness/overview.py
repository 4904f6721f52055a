"""README's table of reasons to switch, and its line on what is not faster; figures from rows."""

import statistics
from collections.abc import Sequence

from benchmarks.autoattack.rows import TOTAL
from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

SUITES = ("autoattack", "training", "attacks")
_OURS, _TEXTBOOK = "fastadv", "textbook, preloaded"
_EARLY = "fastadv, first success"
_HEADS = ["task", "fastadv", "plain PyTorch", "torchattacks", "AutoAttack's authors"]
# what no row can measure: read in the peers' code
_CONFIRMED = [
    "A success is",
    "confirmed on the tensor that is returned, and lies within eps in float64",
    "not confirmed",
    "not confirmed: PGD gives its last iterate",
    "confirmed, its distance is not",
]
_RESUMED = [
    "Killed, and started again:",
    "goes on to the same bits",
    "starts anew",
    "starts anew",
    "starts anew",
]


def why_switch(rows: Sequence[Row]) -> str:
    """AutoAttack, verification, resuming and training work in five columns, then what is slower."""
    by_suite = {suite: [row for row in rows if row.suite == suite] for suite in SUITES}
    lines = [
        *_autoattack(by_suite["autoattack"]),
        _CONFIRMED,
        _RESUMED,
        *(_units(by_suite["training"], case) for case in ("MNIST: Fast-AT", "MNIST: PGD-5")),
    ]
    threads = sorted({row.environment.threads for row in rows})
    devices = formatting.distinct(row.environment.device for row in rows)
    note = (
        f"Measured on {' and '.join(devices)}, torch threads: {', '.join(map(str, threads))}; no "
        "GPU has been measured. In brackets the speed-up: of AutoAttack over its authors' code, "
        "the mean over networks, and of training over the plain loop on preloaded data. Passes: "
        "forward, backward to the input, backward to the weights. torchattacks: its attacks in the "
        "same cascade."
    )
    slower = _slower(by_suite["attacks"], by_suite["training"])
    return f"{formatting.table(_HEADS, lines)}\n\n{note}\n\n{slower}"


def _autoattack(rows: Sequence[Row]) -> list[list[str]]:
    """Seconds over all models with the mean speed-up, and points missed."""
    chosen = [row for row in rows if row.case.endswith(f" {TOTAL}")]
    columns = {_OURS: 1, "torchattacks, cascade": 3, "autoattack": 4}
    own = [row for row in chosen if row.provider == _OURS]
    n = sum(row.n for row in own)
    times = [f"AutoAttack on {len(own)} networks, {n} images", *[formatting.EMPTY] * 4]
    missed = ["... robust here, broken by its authors' code", *[formatting.EMPTY] * 4]
    for provider, column in columns.items():
        found = [row for row in chosen if row.provider == provider]
        mean = statistics.geometric_mean(row.ratio for row in found)
        times[column] = f"{sum(row.q50 for row in found):.0f} s ({mean:.2f}x)"
        missed[column] = f"{sum(row.extra['missed'] for row in found):g} of {n}"
    missed[columns["autoattack"]] = formatting.EMPTY
    return [times, missed]


def _units(rows: Sequence[Row], case: str) -> list[str]:
    """Seconds an epoch, and passes an optimizer step."""
    data, _, name = case.partition(": ")
    cells = [f"An epoch of {name} on {data}", *[formatting.EMPTY] * 4]
    for column, provider in ((1, _OURS), (2, _TEXTBOOK)):
        (row,) = (r for r in rows if (r.case, r.provider) == (case, provider))
        passes = f"{row.extra['units']:g} passes a step"
        cells[column] = f"{row.q50:.3g} {row.unit} ({formatting.ratio(row)}), {passes}"
    return cells


def _slower(attacks: Sequence[Row], training: Sequence[Row]) -> str:
    """The sentence on what is not faster."""
    early = [row for row in attacks if row.provider == _EARLY]
    fgsm, pgd = (
        sorted(1 / row.ratio for row in early if row.case.startswith(f"{name} "))
        for name in ("FGSM", "PGD-10")
    )
    free = next(r for r in training if "Free-AT" in r.case and r.provider == _OURS)
    return (
        "Where it is not faster: short attacks on a CPU, where the model is nearly all of the time "
        f"and successes are confirmed on top. FGSM takes {fgsm[-1]:.1f} times as long as "
        f"torchattacks', PGD-10 {pgd[0]:.2f} to {pgd[-1]:.2f} times. Free-AT trains as fast as the "
        f"plain loop ({formatting.ratio(free)})."
    )
