"""What a section of `benchmarks.gpu` runs in: its time, its rows, and errors that cost one case."""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import harness, schema
from benchmarks.harness.peers import Unavailable

DEVICE_LOST = 70  # exit status: nothing more can be computed in this process
ERRORS = "errors.txt"
_MEASURED_FOR = 0.2  # of the time left, at most, one case's rounds
_REHEARSED = 1  # rounds of a case, whose times mean nothing


@dataclass(frozen=True)
class Plan:
    """What the parent tells a section's process; paths as text, so that it travels as JSON."""

    section: str
    device: str
    tiny: bool
    seconds: float
    out: str
    begun: str
    environment: dict[str, Any]
    authors: str | None = None
    data: str | None = None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Plan":
        return cls(**json.loads(path.read_text()))


@dataclass
class Session:
    """One process of one section. tiny: a rehearsal on small shapes. where: of every row."""

    plan: Plan
    rows: list[schema.Row] = field(default_factory=list)
    errors: int = 0

    def __post_init__(self) -> None:
        self.device = torch.device(self.plan.device)
        self.tiny = self.plan.tiny
        self.out = Path(self.plan.out)
        self.where = schema.Environment(**self.plan.environment)
        self._end = time.monotonic() + self.plan.seconds
        begun = Path(self.plan.begun)
        # cases of an earlier process of this section, of which the last one ended it
        self._begun = set(begun.read_text().splitlines()) if begun.exists() else set()

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds until the section's end."""
        return self._end - time.monotonic()

    def may_begin(self, case: str, *, seconds: float = 0.0) -> bool:
        """Whether to run a case that takes about `seconds`; notes it, and says why not."""
        if case in self._begun:
            return False
        if self.left <= seconds:
            print(f"  not run, no time left: {case} (about {seconds:.1f} s of {self.left:.1f})")
            return False
        with Path(self.plan.begun).open("a") as file:
            file.write(f"{case}\n")
        return True

    def measure(
        self,
        case: harness.Case,
        providers: Mapping[str, harness.Run],
        check: harness.Check,
        timing: harness.Timing,
        *,
        copy_gb_s: float | None = None,
    ) -> list[schema.Row]:
        """`harness.measure` within the time left; who fails is reported and left out.

        A rehearsal is cut to one round and no warm-up but the calls that results are taken from.
        """
        if self.tiny:
            timing = replace(timing, rounds=min(timing.rounds, _REHEARSED), warmup=0)
        limit = min(timing.seconds or 1e9, max(0.1, _MEASURED_FOR * self.left))
        return harness.measure(
            case,
            providers,
            check,
            self.where,
            replace(timing, seconds=limit),
            copy_gb_s=copy_gb_s,
            on_refusal=lambda name, error: self.report(f"{case.name}, {name}", error),
        )

    def add(self, rows: list[schema.Row]) -> None:
        """Print rows and append them to the suite's file at once: a kill loses none."""
        harness.print_rows(rows)
        schema.append_rows(rows, self.out / "results")
        self.rows += rows
        sys.stdout.flush()

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Reports an exception of the block, after which the section goes on."""
        try:
            yield
        except Exception as error:
            self.report(name, error)

    def report(self, name: str, error: Exception) -> None:
        """One line on the screen; for what is not just missing the traceback in errors.txt.

        Ends the process where the device is lost, as after an access out of bounds.
        """
        first = (str(error).splitlines() or [""])[0][:160]
        if isinstance(error, NotImplementedError | Unavailable):
            print(f"  without {name}: {first}", flush=True)
            return
        self.errors += 1
        print(f"  FAILED {name}: {type(error).__name__}: {first}", flush=True)
        self.write_error(name, "".join(traceback.format_exception(error)))
        if not self.on_gpu:
            return
        try:
            torch.cuda.synchronize(self.device)
        except Exception as lost:
            self.write_error(name, f"the device is lost: {lost}\n")
            print(f"  DEVICE LOST in {name}", flush=True)
            sys.exit(DEVICE_LOST)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()

    def write_error(self, name: str, text: str) -> None:
        with (self.out / ERRORS).open("a") as file:
            file.write(f"=== {self.plan.section}: {name}\n{text}\n")
