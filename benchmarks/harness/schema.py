"""One row a measurement: what a result must say before it may be written down."""

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Equality:
    """How far a provider's result is from the reference's: the licence to have a time.

    error, tolerance: in the units of `metric`, which also says where the tolerance comes from.
    outliers: samples beyond the tolerance, where the metric admits some. Raises ValueError unless
    0 <= error <= tolerance.
    """

    error: float
    tolerance: float
    metric: str
    reference: str
    outliers: int = 0

    def __post_init__(self) -> None:
        _require(
            0 <= self.error <= self.tolerance and math.isfinite(self.tolerance),
            f"equality error {self.error:g} against {self.reference} must lie in "
            f"[0, {self.tolerance:g}] ({self.metric}): a wrong result has no time",
        )


@dataclass(frozen=True)
class Bandwidth:
    """Bytes an op must move, and its share of the copy bandwidth measured in the same run."""

    bytes_moved: int
    copy_gb_s: float
    percent_of_copy: float


@dataclass(frozen=True)
class Robustness:
    """Robust accuracy with all that makes it a number; n: samples attacked, in one batch."""

    attack: str
    norm: str
    eps: float
    step_size: float
    steps: int
    restarts: int
    seed: int
    n: int
    model: str
    data: str
    clean_accuracy: float
    robust_accuracy: float

    def __post_init__(self) -> None:
        _require(
            0 <= self.robust_accuracy <= self.clean_accuracy <= 1,
            f"robust_accuracy must lie in [0, clean_accuracy]; got {self.robust_accuracy} and "
            f"{self.clean_accuracy}",
        )
        _require(
            min(self.steps, self.restarts, self.n) >= 1 and bool(self.model and self.data),
            f"a robust accuracy needs steps, restarts, n, model and data; got {self}",
        )


@dataclass(frozen=True)
class Environment:
    """Where and when a run was made. versions: distribution to version; load: 1-minute average."""

    device: str
    threads: int
    load: float
    versions: dict[str, str]
    commit: str
    date: str
    command: str

    def __post_init__(self) -> None:
        _require(
            self.device == normalise_device(self.device),
            f"device must be a folder name such as {normalise_device(self.device)!r}; "
            f"got {self.device!r}",
        )
        for name in ("fastadv", "torch"):
            _require(name in self.versions, f"versions must name {name}; got {self.versions}")
        _require(
            not any(word.startswith(("/", "~")) or "=/" in word for word in self.command.split()),
            f"command must hold no absolute path; got {self.command!r}",
        )


@dataclass(frozen=True)
class Row:
    """One measurement. `n`: samples or rows processed a call; `rounds`: timed calls.

    ratio: median over rounds of (baseline's time / this time) in the same round, above 1 is faster.
    Times in `unit`. Raises ValueError for anything missing, above all the equality.
    """

    suite: str
    case: str
    provider: str
    shape: tuple[int, ...]
    dtype: str
    n: int
    rounds: int
    q20: float
    q50: float
    q80: float
    unit: str
    timed: str
    not_timed: str
    baseline: str
    ratio: float
    equality: Equality
    environment: Environment
    robustness: Robustness | None = None
    bandwidth: Bandwidth | None = None
    extra: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(
            isinstance(self.equality, Equality),
            f"{self.provider} on {self.case}: a row needs its equality error; "
            f"got equality={self.equality!r}",
        )
        _require(
            isinstance(self.environment, Environment),
            f"environment must be an Environment; got {self.environment!r}",
        )
        for name in ("suite", "case", "provider", "dtype", "unit", "timed", "baseline"):
            _require(bool(getattr(self, name)), f"{name} must not be empty")
        _require(self.n >= 1 and self.rounds >= 1, "n and rounds must be at least 1")
        _require(
            0 < self.q20 <= self.q50 <= self.q80 and math.isfinite(self.q80),
            f"times must be 0 < q20 <= q50 <= q80; got {self.q20}, {self.q50}, {self.q80}",
        )
        _require(self.ratio > 0, f"ratio must be positive; got {self.ratio}")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Row":
        """The inverse of `to_json`; ValueError for a row that could not have been created."""
        values: dict[str, Any] = json.loads(line)
        try:
            for name, kind in _PARTS.items():
                values[name] = _part(kind, values.get(name))
            values["shape"] = tuple(values["shape"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a result row: {error}") from error


_PARTS = {
    "equality": Equality,
    "environment": Environment,
    "robustness": Robustness,
    "bandwidth": Bandwidth,
}


def _part(kind: type, values: dict[str, Any] | None) -> Any:
    return None if values is None else kind(**values)


def normalise_device(name: str) -> str:
    """A device's marketing name as a folder name: "AMD EPYC 9B14" is "amd-epyc-9b14"."""
    for mark in ("(R)", "(TM)", "(r)", "(tm)"):
        name = name.replace(mark, " ")
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def append_rows(rows: list[Row], results: Path) -> list[Path]:
    """Append rows to <results>/<device>/<suite>.jsonl, in one write a file; never rewrites."""
    files: dict[Path, list[str]] = {}
    for row in rows:
        path = results / row.environment.device / f"{row.suite}.jsonl"
        files.setdefault(path, []).append(row.to_json() + "\n")
    for path, lines in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, "".join(lines).encode())
        finally:
            os.close(descriptor)
    return list(files)


def read_rows(suite: str, results: Path = RESULTS, device: str | None = None) -> list[Row]:
    """Every row of a suite, all devices or one; ValueError names the line that is not a row."""
    rows = []
    for path in sorted(results.glob(f"{device or '*'}/{suite}.jsonl")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                rows.append(Row.from_json(line))
            except ValueError as error:
                where = path.relative_to(results)
                raise ValueError(f"{where}, line {number}: {error}") from error
    return rows


def newest_of_each_case(rows: list[Row]) -> list[Row]:
    """Of each case the rows of its newest run, on the device of the newest of all: for suites whose
    cases take hours together, and are measured apart."""
    if not rows:
        return []
    _, device = max((row.environment.date, row.environment.device) for row in rows)
    there = [row for row in rows if row.environment.device == device]
    latest: dict[str, str] = {}
    for row in there:
        latest[row.case] = max(latest.get(row.case, ""), row.environment.date)
    return [row for row in there if row.environment.date == latest[row.case]]


def newest_run(rows: list[Row]) -> list[Row]:
    """The rows of the run with the latest date; a run's rows share date and device."""
    if not rows:
        return []
    latest = max((row.environment.date, row.environment.device) for row in rows)
    return [row for row in rows if (row.environment.date, row.environment.device) == latest]
