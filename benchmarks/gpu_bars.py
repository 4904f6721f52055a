"""What a GPU run is held to: each bar beside its worst measured value, met or not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks import formatting
from benchmarks.schema import Row

_LARGE_OPS = ("linf_step_", "l2_step_", "loss_head_ (ce)", "apgd_linf_step_", "random_start")
_SMALL = 10**7  # bytes moved below which a launch, not the memory, decides

Measured = tuple[str, float]  # where, and the value
Measure = Callable[[Sequence[Row], Mapping[str, float]], Iterator[Measured]]


@dataclass(frozen=True)
class Bar:
    """goal: None where none is set, and the value is shown alone. source: of the goal.

    measure: every value that the goal holds for, from the rows and the numbers of the checks; the
    worst one is compared.
    """

    name: str
    goal: float | None
    higher: bool
    unit: str
    source: str
    measure: Measure

    def judged(self, rows: Sequence[Row], numbers: Mapping[str, float]) -> list[str]:
        """Cells: name, goal, worst value, where, verdict."""
        found = list(self.measure(rows, numbers))
        sign = ">=" if self.higher else "<="
        goal = "none set" if self.goal is None else f"{sign} {self.goal:g} {self.unit}".strip()
        if not found:
            return [self.name, goal, formatting.EMPTY, "", "not measured"]
        where, worst = (min if self.higher else max)(found, key=lambda pair: pair[1])
        verdict = "no bar"
        if self.goal is not None:
            met = worst >= self.goal if self.higher else worst <= self.goal
            verdict = "met" if met else "NOT MET"
        return [self.name, goal, f"{worst:.3g} {self.unit}".strip(), where, verdict]


def _share(large: bool) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            if row.suite != "gpu_ops" or not row.bandwidth:
                continue
            is_main = row.case.startswith(_LARGE_OPS)
            if row.provider.startswith("fastadv") and is_main == large:
                if row.bandwidth.bytes_moved >= _SMALL:
                    where = f"{row.case} {formatting.shape(row.shape)} {row.dtype}"
                    yield where, row.bandwidth.percent_of_copy

    return measure


def _host(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
    for row in rows:
        if row.case.endswith(", host time") and row.provider.startswith("fastadv"):
            yield row.case.removesuffix(", host time"), row.q50


def _ratio(
    suite: str, provider: str, baseline: str, *, part: str = "", best: bool = False
) -> Measure:
    """Speed-ups of the rows whose provider begins so; best: only the fastest of each case."""

    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        chosen = [
            row
            for row in rows
            if row.suite == suite and row.provider.startswith(provider) and part in row.case
            and row.baseline == baseline
        ]  # fmt: skip
        for case in formatting.cases(chosen):
            for row in [max(case, key=lambda row: row.ratio)] if best else case:
                yield f"{row.case}, {row.provider}", row.ratio

    return measure


def _extra(suite: str, name: str, provider: str = "fastadv", part: str = "") -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            if row.suite == suite and row.provider.startswith(provider) and part in row.case:
                if name in row.extra:
                    yield f"{row.case}, {row.provider}", row.extra[name]

    return measure


def _kernels(case: str) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for row in rows:
            is_ours = row.suite == "gpu_steps" and row.provider.startswith("fastadv")
            if is_ours and row.case == f"{case} step":
                yield row.provider, row.q50

    return measure


def _missed(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
    for row in rows:
        if row.suite == "gpu_autoattack" and row.provider.startswith("fastadv"):
            yield row.provider, row.extra["missed"] - row.extra["beyond"]


def _number(*names: str) -> Measure:
    def measure(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
        for name in names:
            if name in numbers:
                yield name, numbers[name]

    return measure


def _over_compiled(rows: Sequence[Row], numbers: Mapping[str, float]) -> Iterator[Measured]:
    for case in formatting.cases([row for row in rows if row.suite == "gpu_ops"]):
        times = {(row.provider, row.dtype): row.q50 for row in case}
        for (provider, dtype), seconds in times.items():
            compiled = times.get(("torch.compile of the chain", dtype))
            if provider.startswith("fastadv") and compiled:
                yield f"{case[0].case} {formatting.shape(case[0].shape)}", compiled / seconds


# Goals of None: the bar is named in the plan, its number was not at hand here; enter it, once.
BARS = (
    Bar("GPU tests that fail", 0, False, "", "issue 5", _number("tests failed", "tests error")),
    Bar("sanitizer errors", 0, False, "", "issue 5",
        _number("memcheck errors", "racecheck errors")),
    Bar("main ops, of the copy bandwidth", None, True, "%", "", _share(True)),
    Bar("other ops, of the copy bandwidth", None, True, "%", "", _share(False)),
    Bar("ops over torch.compile's chain", None, True, "x", "", _over_compiled),
    Bar("host time of a call", None, False, "us", "", _host),
    Bar("PGD-20 over torchattacks, best of ours", None, True, "x", "",
        _ratio("gpu_attacks", "fastadv", "torchattacks", part="PGD-20", best=True)),
    Bar("PGD-50-10 over torchattacks, best of ours", None, True, "x", "",
        _ratio("gpu_attacks", "fastadv", "torchattacks", part="PGD-50-10", best=True)),
    Bar("time over bare passes, graph", None, False, "%", "",
        lambda rows, numbers: (
            pair for pair in _extra("gpu_attacks", "over_bare_percent")(rows, numbers)
            if "graph" in pair[0]
        )),
    Bar("AutoAttack over the authors' code", None, True, "x", "",
        _ratio("gpu_autoattack", "fastadv", "autoattack", best=True)),
    Bar("AutoAttack, net misses", 0, False, "", "issue 4", _missed),
    Bar("training over the textbook, graphed", None, True, "x", "",
        _ratio("gpu_training", "fastadv graphed", "textbook")),
    Bar("training over the textbook, eager", None, True, "x", "",
        _ratio("gpu_training", "fastadv", "textbook", best=True)),
    Bar("kernels of a PGD step", 2, False, "", "contract C5", _kernels("PGD")),
    Bar("kernels of an APGD step", 3, False, "", "contract C5", _kernels("APGD-CE")),
    Bar("synchronisations of a step", 0, False, "", "contract C5",
        _extra("gpu_steps", "synchronisations")),
)  # fmt: skip

HEADS = ["bar", "goal", "worst measured", "where", "verdict"]


def judged(rows: Sequence[Row], numbers: Mapping[str, float]) -> list[list[str]]:
    """A line a bar, in the order of `BARS`, as `HEADS` names the cells."""
    return [bar.judged(rows, numbers) for bar in BARS]
