"""The Markdown table of minimum-norm attacks; every number in it comes from a row."""

import statistics
from collections.abc import Sequence

from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

_ROBUST = "robust at "


def attacks(rows: Sequence[Row]) -> str:
    """One line an algorithm and a norm, each library's figures over all networks beside each
    other."""
    heads = ["algorithm x steps", "norm", "library", "networks", "optimality", "least of them"]
    heads += ["not found", "forward + backward passes", "time, the first library / this"]
    heads += ["beside the model, the same"]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        name, norm, _ = row.case.rsplit(", ", 2)
        groups.setdefault((name, norm, row.provider), []).append(row)
    baselines = {row.case: row for row in rows if row.provider == row.baseline}
    lines = []
    for (name, norm, library), own in groups.items():
        optimal = [row.extra["optimality"] for row in own]
        forwards, backwards = (
            statistics.mean(row.extra[key] for row in own) for key in ("forwards", "backwards")
        )
        ratios = [_beside(baselines[row.case]) / _beside(row) for row in own if _beside(row) > 0]
        beside = statistics.geometric_mean(ratios) if ratios and min(ratios) > 0 else None
        lines.append(
            [
                name,
                norm,
                library,
                str(len(own)),
                f"{statistics.mean(optimal):.3f}",
                f"{min(optimal):.3f}",
                f"{sum(row.extra['failed'] for row in own):g} of {sum(row.n for row in own)}",
                f"{forwards:.0f} + {backwards:.0f}",
                f"{statistics.geometric_mean(row.ratio for row in own):.2f}x",
                formatting.EMPTY if beside is None else f"{beside:.2f}x",
            ]
        )
    note = (
        "Optimality: 1 where the nearest example known was found for every point, 0 where none "
        "nearer than the farthest of them was; the mean over the networks. The nearest wrong query "
        f"of an attack counts. Passes a sample, counted by the model. Timed: {rows[0].timed}; "
        "beside the model: what is left when the same passes, repeated alone, are taken away."
    )
    return "\n\n".join([formatting.table(heads, lines), note, formatting.provenance(rows)])


def curves(rows: Sequence[Row]) -> str:
    """One line a network and a radius: how many samples are robust by each."""
    heads = ["network", "eps", "n", *formatting.distinct(row.provider for row in rows), "above"]
    lines = []
    for reference, ours in formatting.cases(rows):
        for name in (key for key in ours.extra if key.startswith(_ROBUST)):
            counts = [row.extra[name] for row in (reference, ours)]
            radius = name.removeprefix(_ROBUST)
            numbers = [f"{count:g}" for count in (*counts, counts[1] - counts[0])]
            lines.append([ours.case, radius, str(ours.n), *numbers])
    times = ", ".join(f"{ours.case} {ours.ratio:.1f}x" for _, ours in formatting.cases(rows))
    note = (
        "Robust samples of n at each radius of L-infinity: AutoAttack, version standard, attacks "
        "at every radius, seed 0; minimum_norm once, for distances. Above: how many more the "
        "distances leave robust. Process time of AutoAttack at all radii over that of "
        f"minimum_norm: {times}."
    )
    return "\n\n".join([formatting.table(heads, lines), note, formatting.provenance(rows)])


def _beside(row: Row) -> float:
    return row.q50 - row.extra["model alone ms"]
