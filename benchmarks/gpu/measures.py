"""What of a GPU run's rows and checks a bar is compared with."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.autoattack.entrants import AUTHORS
from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

SMALL = 10**7  # bytes moved below which a launch, not the memory, decides

Measured = tuple[str, float]  # where, and the value
Measure = Callable[[Sequence[Row], Mapping[str, float]], Iterator[Measured]]
Choice = Callable[[Row], bool]


def op(*names: str, shapes: Sequence[tuple[int, ...]] = ()) -> Choice:
    """fp32 rows of the ops; without shapes, of those where the memory decides."""

    def choose(row: Row) -> bool:
        if row.suite != "gpu_ops" or row.dtype != "float32" or row.case not in names:
            return False
        if shapes:
            return row.shape in shapes
        return row.bandwidth is not None and row.bandwidth.bytes_moved >= SMALL

    return choose


def sized(name: str, side: int) -> Choice:
    """fp32 rows of an op on colour images of side x side, whatever their number."""
    return lambda row: op(name, shapes=[row.shape])(row) and row.shape[1:] == (3, side, side)


def of_case(suite: str, name: str) -> Choice:
    return lambda row: row.suite == suite and row.case == name


def place(row: Row) -> str:
    return f"{row.case} {formatting.shape(row.shape)}, {row.provider}"


def share(choose: Choice) -> Measure:
    """Percent of the copy bandwidth of the same run."""

    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            if choose(row) and row.bandwidth and row.provider.startswith("fastadv"):
                yield place(row), row.bandwidth.percent_of_copy

    return measure


def over(
    choose: Choice, theirs: str, ours: Callable[[str], bool] | None = None, *, best: bool = False
) -> Measure:
    """How many times faster than the provider `theirs` of the same case and shape in the same run.

    ours: names of providers, all of fastadv if not given. best: only the fastest of each case.
    """

    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for case in formatting.cases([row for row in rows if choose(row)]):
            base = next((row for row in case if row.provider == theirs), None)
            # each over its own baseline, beside which it was timed: not always in the same rounds
            found = [
                (place(row), row.ratio / base.ratio)
                for row in case
                if base
                and row.baseline == base.baseline
                and row.provider.startswith("fastadv")
                and (ours is None or ours(row.provider))
            ]
            yield from [max(found, key=lambda pair: pair[1])] if best and found else found

    return measure


def host(case: str) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            if row.case == f"{case}, host time" and row.provider.startswith("fastadv"):
                yield row.provider, row.q50

    return measure


def extra(choose: Choice, name: str, ours: Callable[[str], bool]) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            if choose(row) and name in row.extra and ours(row.provider):
                yield f"{row.case}, {row.provider}", row.extra[name]

    return measure


def kernels(case: str) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            is_ours = row.suite == "gpu_steps" and row.provider.startswith("fastadv")
            if is_ours and row.case == f"{case} step":
                yield row.provider, row.q50

    return measure


def steps(row: Row) -> bool:
    return row.suite == "gpu_steps" and row.provider.startswith("fastadv")


def standard(row: Row) -> bool:
    """AutoAttack's standard version, unshortened, on 1,000 images."""
    found = row.robustness
    return (
        row.suite == "gpu_autoattack"
        and row.n >= 1000
        and row.baseline == AUTHORS
        and found is not None
        and found.attack == "AutoAttack, standard"
        and found.model.startswith("preact_resnet18")
    )


def flags(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
    """Images of 250 of which this and the authors' code say different things."""
    for row in rows:
        if standard(row) and row.provider.startswith("fastadv"):
            yield row.provider, 250 * (row.extra["missed"] + row.extra["beyond"]) / row.n


def net_misses(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
    for row in rows:
        is_ours = row.suite == "gpu_autoattack" and row.provider.startswith("fastadv")
        if is_ours and row.baseline == AUTHORS:
            yield place(row), 250 * (row.extra["missed"] - row.extra["beyond"]) / row.n


def speed_run(data: str, eps: float, goal: float, seeds: int) -> Measure:
    """Seconds (median over seeds); infinite where PGD-50-10 (mean over seeds) is below `goal`."""

    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            found = row.robustness
            if row.suite != "speedrun" or found is None or found.data != data:
                continue
            is_whole = (found.steps, found.restarts, found.n) == (50, 10, 10_000)
            if is_whole and abs(found.eps - eps) < 1e-9 and row.extra["seeds"] >= seeds:
                robust = found.robust_accuracy
                where = f"{row.case}, {100 * robust:.2f} %, {row.extra['seeds']:g} seeds"
                yield where, row.q50 if robust >= goal else math.inf

    return measure


def number(*names: str) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for name in names:
            if name in numbers:
                yield name, numbers[name]

    return measure


def confirmed_bf16(provider: str) -> bool:
    return provider.startswith("fastadv bf16") and "all steps" not in provider


def same_work(provider: str) -> bool:
    """In fp32, every step of every sample, as torchattacks makes them."""
    return provider.startswith("fastadv fp32") and "all steps" in provider


def graph_all_steps(provider: str) -> bool:
    return "graph" in provider and "all steps" in provider
