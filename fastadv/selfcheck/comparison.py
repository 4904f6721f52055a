"""Kernels, compiled loops and CPU paths against the eager references, op by op."""

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from fastadv.ops import agreement, backend, registry
from fastadv.ops.agreement import Difference
from fastadv.selfcheck.recording import Calls, calls_of_attacks

Kind = Literal["kernel", "compiled", "cpu"]
_SHORT = (3, 8, 8)
# of a GPU: also several blocks a sample, and rows that do not fit into one program
_ON_GPUS = (_SHORT, (3, 56, 56))


_calls = functools.cache(calls_of_attacks)  # of which only copies are run


class Target(NamedTuple):
    """Implementations that can run here."""

    kind: Kind
    device: torch.device

    def __str__(self) -> str:
        if self.kind == "cpu":
            return "CPU paths"
        if self.kind == "compiled":
            return "compiled loops"
        if self.device.type == "cuda":
            return f"Triton kernels on {self.device} ({torch.cuda.get_device_name(self.device)})"
        return f"Triton kernels on {self.device}, interpreted"


class Verdict(NamedTuple):
    """Of one op: its worst form, or how it failed, and the seconds that all took; tolerance: what
    was registered for its forms, before it is scaled to them."""

    op: str
    forms: int
    tolerance: float
    worst: Difference
    failure: str
    seconds: float

    @property
    def is_right(self) -> bool:
        return not self.failure and self.worst.is_allowed


def targets() -> list[Target]:
    """CPU paths, loops where they are compiled, and kernels on every GPU, or on the CPU where
    Triton interprets them."""
    cpu = torch.device("cpu")
    found = [Target("cpu", cpu)]
    if backend.runs_compiled():
        found.append(Target("compiled", cpu))
    if not backend.triton_is_installed():
        return found
    gpus = [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    if not gpus and backend.interpreting():
        gpus = [cpu]
    return found + [Target("kernel", device) for device in gpus]


def verdicts(target: Target) -> Iterator[Verdict]:
    """Of every op that has such an implementation, on what attacks give it in mid-attack."""
    shapes = _ON_GPUS if target.device.type == "cuda" else (_SHORT,)
    recorded = [_calls(shape, target.device) for shape in shapes]
    for name, one in sorted(registry.implementations().items()):
        if _run_of(target, one) is not None:
            yield _verdict(target, name, recorded)


def _run_of(target: Target, one: registry.Implementations) -> Any:
    return {"kernel": one.launch, "compiled": one.compiled, "cpu": one.cpu}[target.kind]


def _verdict(target: Target, name: str, recorded: list[Calls]) -> Verdict:
    one = registry.implementations()[name]
    run = _run_of(target, one)
    forms = [arguments for calls in recorded for arguments in calls.get(name, ())]
    began, worst, failure = time.perf_counter(), Difference(0.0, "", 0.0), ""
    for arguments in forms:
        try:
            found = _apart(one, run, arguments)
        except Exception as error:  # of a compiler, a driver or a kernel
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            break
        worst = max(worst, found, key=agreement.severity)
    tolerance = max((one.trial.tolerance_of(arguments) for arguments in forms), default=0.0)
    return Verdict(name, len(forms), tolerance, worst, failure, time.perf_counter() - began)


def _apart(one: registry.Implementations, run: Any, arguments: Sequence[Any]) -> Difference:
    samples = agreement.rows_of(arguments, one.trial.shared)
    # a GPU divides by zero without a word, numpy does not
    quietly = np.errstate(divide="ignore", invalid="ignore")
    with torch.no_grad(), backend.on_device_of(arguments[0]), quietly:
        return one.trial.difference(run, arguments, samples)
