"""Trust at first use: a kernel is compared with its reference before a process uses it on a device.

Compilers, drivers and devices that nobody has tried are met at a user's machine first. At an op's
first call there, the kernel and the reference both run on copies of a few samples of that call.
Where they differ, or the kernel cannot run, the reference takes its place.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fastadv import diagnostics
from fastadv.ops import agreement
from fastadv.ops.agreement import Difference, Result
from fastadv.version import installed_version

ROWS = 8  # samples that are compared


class Trial:
    """Of one op: the devices on which its kernel has passed, and where it has failed and why."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[str],
        *,
        reference: Callable[..., Any],
        launch: Callable[..., Any],
        shared: Sequence[str],
        tolerance: float,
        tolerance_with: Mapping[str, float],
    ) -> None:
        if unknown := {*shared, *tolerance_with} - set(parameters):
            raise ValueError(f"{name} has no arguments {sorted(unknown)}")
        self.name = name
        self.parameters = tuple(parameters)
        self.shared = frozenset(self.parameters.index(one) for one in shared)
        self._tolerance = tolerance
        self._with = {self.parameters.index(one): more for one, more in tolerance_with.items()}
        self.passed: set[torch.device] = set()
        self.failed: dict[torch.device, str] = {}
        self._reference, self._launch = reference, launch

    def trusts(self, arguments: Sequence[Any], *, insists: bool) -> bool:
        """Whether the kernel may run this call; tries it if it has not been tried on this device.

        A trial is left for another call while a graph is captured or traced, without samples and
        without memory. insists: raises where the kernel does, and RuntimeError if it differs; else
        the first failure on a device is warned of once.
        """
        device = arguments[0].device
        if device in self.failed and not insists:
            return False
        if _is_recorded() or not agreement.rows_of(arguments, self.shared):
            return True
        rows = min(ROWS, agreement.rows_of(arguments, self.shared))
        try:
            expected = self._results(self._reference, arguments, rows)
        except torch.OutOfMemoryError:
            return True
        except Exception:  # as for arguments that it does not take, or under deterministic rules
            self.passed.add(device)
            return True
        try:
            with _unobserved():
                found = self._results(self._launch, arguments, rows)
            failure = self._words(self._difference(found, expected, arguments, rows))
        except torch.OutOfMemoryError:
            return True
        except Exception as error:
            if insists:
                raise
            failure = f"failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if failure:
            self._refuse(device, failure, insists)
            return False
        self.passed.add(device)
        return True

    def tolerance_of(self, arguments: Sequence[Any]) -> float:
        """What implementations may differ by in this call, as it was registered."""
        given = [more for i, more in self._with.items() if arguments[i] is not None]
        return max([self._tolerance, *given])

    def difference(
        self, run: Callable[..., Any], arguments: Sequence[Any], rows: int
    ) -> Difference:
        """Between an implementation and the reference, on copies of the first `rows` samples."""
        expected = self._results(self._reference, arguments, rows)
        found = self._results(run, arguments, rows)
        return self._difference(found, expected, arguments, rows)

    def _results(
        self, run: Callable[..., Any], arguments: Sequence[Any], rows: int, sign: int = 0
    ) -> list[Result]:
        few = agreement.copies(arguments, self.shared, rows)
        if sign:
            agreement.round_otherwise(few, self.shared, sign)
        return agreement.results(run, self.parameters, few)

    def _difference(
        self, found: list[Result], expected: list[Result], arguments: Sequence[Any], rows: int
    ) -> Difference:
        """Of ops that add up, in a second look, beside how well-conditioned the samples are."""
        tolerance = self.tolerance_of(arguments)
        elements = agreement.elements_of(arguments, self.shared)
        apart = agreement.difference(found, expected, tolerance, elements)
        if apart.is_allowed or not tolerance:
            return apart
        otherwise = [self._results(self._reference, arguments, rows, sign) for sign in (1, -1)]
        return agreement.difference(found, expected, tolerance, elements, otherwise)

    def _words(self, found: Difference) -> str:
        if found.is_allowed:
            return ""
        return (
            f"differs from its eager reference by {found.largest:.3g} in {found.where}, where "
            f"{found.allowed:.3g} is allowed"
        )

    def _refuse(self, device: torch.device, failure: str, insists: bool) -> None:
        versions = f"torch {torch.__version__}, triton {installed_version('triton')}"
        said = f"the Triton kernel of {self.name} on {_described(device)} {failure} ({versions})"
        if insists:
            raise RuntimeError(f"{said}; the backend 'triton' is chosen, which has no fallback")
        self.failed[device] = failure  # before the warning, which may be an error
        diagnostics.emit(
            diagnostics.ExecutionWarning(
                f"{said}: the reference, which is slower, runs in its place for the rest of this "
                "process. Please report this; FASTADV_BACKEND=triton insists on the kernel"
            )
        )


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def _is_recorded() -> bool:
    capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    return capturing or torch.compiler.is_compiling()


@contextlib.contextmanager
def _unobserved() -> Iterator[None]:
    """Launches inside are not the caller's: what counts launches is not told of them."""
    launching = sys.modules.get("fastadv.kernels.launching")  # None: nothing can be watching
    with contextlib.nullcontext() if launching is None else launching.unobserved():
        yield
