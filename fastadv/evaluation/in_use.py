"""Which implementations of the ops results are made with: the same from first to last.

Kernels, CPU paths and references agree to rounding, so that a sample may fall to one of them and
not to another: reports say what ran, and checkpoints go on with nothing else.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from fastadv.evaluation.samples import Data
from fastadv.ops import backend, registry

_START_AGAIN = "or choose another path, or delete it to start again"


def in_words(chosen: str, fell_back: Sequence[str]) -> str:
    """As "triton", or "triton, but references of linf_step_" where kernels have failed."""
    return f"{chosen}, but references of {', '.join(fell_back)}" if fell_back else chosen


def backend_ahead(device: torch.device | None, data: Data) -> str:
    """What ops will run with, before data are read; device: the model's, None if it names none."""
    first = data[0] if isinstance(data, tuple | list) else None
    if device is None:
        device = first.device if isinstance(first, torch.Tensor) else torch.device("cpu")
    return backend.explain(device)[0]


def check_backend(path: Path, saved: str, here: str) -> None:
    """Raises ValueError if the checkpoint was made with another backend."""
    if saved != here:
        raise ValueError(
            f"checkpoint {path} was made with the backend {saved!r}, and {here!r} would run here, "
            "whose results agree to rounding only. Go on with the same one (on such a device, or "
            f"by FASTADV_BACKEND or fastadv.ops.use_backend; `fastadv info` says what runs), "
            f"{_START_AGAIN}"
        )


class Fallen:
    """The ops whose kernels have failed on a device, here or where an evaluation was begun.

    resumed: whether there are results of them. Then kernels that failed there are not run here, and
    one that fails here, but did not there, is a ValueError.
    """

    def __init__(self, path: Path | None, ops: Collection[str], *, resumed: bool) -> None:
        self._path, self._there, self._resumed = path, set(ops), resumed

    def begin(self, device: torch.device) -> None:
        """Run the references that ran there; ValueError if these kernels have been run here."""
        if not self._resumed:
            return
        for name in sorted(self._there):
            trial = registry.implementations()[name].trial
            if device in trial.passed or backend.is_triton_chosen():
                raise ValueError(
                    f"checkpoint {self._path} was made with the reference of {name}, whose kernel "
                    "failed there, and that kernel runs here. Go on with FASTADV_BACKEND=auto in "
                    f"a new process, {_START_AGAIN}"
                )
            trial.failed.setdefault(device, "failed where the evaluation was begun")

    def now(self, device: torch.device) -> list[str]:
        """All of them so far; ValueError if kernels that made results have failed since."""
        here = registry.fallen_back(device)
        if self._resumed and not self._there.issuperset(here):
            news = ", ".join(sorted(set(here) - self._there))
            raise ValueError(
                f"checkpoint {self._path} was made with kernels that fail on {device}: {news}. Go "
                f"on where they did not, {_START_AGAIN}"
            )
        return sorted(self._there.union(here))
