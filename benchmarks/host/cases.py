"""What is timed on the host, and what each is compared with."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.host import calls, graphed

if TYPE_CHECKING:
    from benchmarks.host.driver import StubDriver

OWN = "fastadv"


@dataclass(frozen=True)
class HostCase:
    """A call, and the same call `without` what makes it fast.

    outcome: what both must have come to; metric says what that is.
    """

    name: str
    shape: tuple[int, ...]
    call: Callable[[], object]
    outcome: Callable[[], torch.Tensor]
    metric: str
    baseline: str
    without: Callable[[], AbstractContextManager[None]]


def cases(stub: "StubDriver") -> dict[str, HostCase]:
    """All of them, by name."""
    found = [
        HostCase(
            name,
            calls.SHAPE,
            call,
            lambda: torch.tensor(stub.last_launch()),
            "function, programs, threads and shared memory that the driver is told to launch",
            "through Triton's binder",
            _through_triton,
        )
        for name, call in calls.calls().items()
    ]
    step = graphed.RecordedStep()
    found.append(
        HostCase(
            graphed.NAME,
            graphed.SHAPE,
            step,
            lambda: torch.tensor([step.backend.recorded]),
            "graphs recorded",
            "all facts read at every step",
            graphed.read_every_time,
        )
    )
    return {case.name: case for case in found}


@contextmanager
def _through_triton() -> Iterator[None]:
    """Nothing is launched by what earlier calls have compiled."""
    from fastadv.kernels import launching

    before = launching._is_altered
    launching._is_altered = lambda kernel: True
    try:
        yield
    finally:
        launching._is_altered = before
