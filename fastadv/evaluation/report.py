"""What an evaluation found, with everything that defines the number."""

import importlib.metadata
import json
import math
import os
import platform
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastadv.evaluation.checkpoint import write_atomically
from fastadv.ops import backend

_Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True, eq=False)
class Report:
    """Clean and robust accuracy of a model on n samples under one attack.

    A sample is robust if the model classifies it correctly and the attack has no success on it.
    clean_correct, robust, success (bool), step (int64, -1 if none) and distance (float64, in the
    threat model's norm) are (n,) CPU tensors in the order of the data. model: its class, number of
    parameters and the start of the SHA-256 of its structure and weights. eps, steps,
    restarts, seed: None where the attack has no such thing. forwards, backwards: samples times
    passes. seconds: attacking, without loading data. warnings: samples for each code of
    `AttackWarning`.
    """

    model: str
    attack: str
    threat: str
    norm: str
    eps: float | None
    steps: int | None
    restarts: int | None
    seed: int | None
    clean_correct: torch.Tensor
    robust: torch.Tensor
    success: torch.Tensor
    step: torch.Tensor
    distance: torch.Tensor
    forwards: int
    backwards: int
    seconds: float
    warnings: dict[str, int]
    environment: dict[str, str]

    @property
    def n(self) -> int:
        return len(self.robust)

    @property
    def clean_accuracy(self) -> float:
        return int(self.clean_correct.sum()) / self.n

    @property
    def robust_accuracy(self) -> float:
        return int(self.robust.sum()) / self.n

    @property
    def confidence_interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the robust accuracy: over samples, not over seeds."""
        return wilson_interval(int(self.robust.sum()), self.n)

    def summary(self) -> dict[str, Any]:
        """All but the per-sample results, in plain Python values."""
        low, high = self.confidence_interval
        shown = {
            "n": self.n,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_95": [low, high],
        }
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, torch.Tensor):
                shown[field.name] = value
        return shown

    def to_json(self) -> str:
        """The summary and the per-sample results, as strict JSON."""
        samples = {
            name: value.tolist()
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return json.dumps({**self.summary(), "samples": samples}, allow_nan=False, indent=None)

    def to_markdown(self) -> str:
        """The headline, and a table of what defines it."""
        rows = {
            "model": self.model,
            "attack": f"`{self.attack}`",
            "threat model": f"`{self.threat}`",
            "steps, restarts, seed": f"{_or_dash(self.steps)}, {_or_dash(self.restarts)}, "
            f"{_or_dash(self.seed)}",
            "samples": f"{self.n:,}",
            "clean accuracy": _percent(self.clean_accuracy),
            "robust accuracy": self._robust_text(),
            "passes": f"{self.forwards:,} forward, {self.backwards:,} backward (samples)",
            "time": f"{self.seconds:.2f} s",
            "warnings": self._warnings_text(),
            **self.environment,
        }
        # a repr may hold the character that ends a table cell
        lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
        headline = f"**{_percent(self.robust_accuracy)} robust accuracy**"
        return "\n".join([headline, "", "| | |", "|---|---|", *lines, ""])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a .json or .md file, by suffix, atomically."""
        path = Path(path)
        writers = {".json": self.to_json, ".md": self.to_markdown}
        if path.suffix not in writers:
            raise ValueError(f"path must end in .json or .md; got {path}")
        write_atomically(path, writers[path.suffix]().encode())

    def __str__(self) -> str:
        return (
            f"{self.model}\n{self.attack}\n"
            f"clean accuracy  {_percent(self.clean_accuracy)}\n"
            f"robust accuracy {self._robust_text()}\n"
            f"{self.n:,} samples, {self.seconds:.2f} s, warnings: {self._warnings_text()}"
        )

    def _robust_text(self) -> str:
        low, high = self.confidence_interval
        return (
            f"{_percent(self.robust_accuracy)} (95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )

    def _warnings_text(self) -> str:
        found = [f"{code} ({count:,} samples)" for code, count in self.warnings.items()]
        return ", ".join(found) or "none"


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion, within [0, 1].

    Wilson 1927, Probable inference, the law of succession, and statistical inference, JASA 22.
    """
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def describe_environment(device: torch.device, *, version: str) -> dict[str, str]:
    """What ran: versions, device and backend, in words."""
    chosen, reason = backend.explain(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "fastadv": version,
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "python": platform.python_version(),
        "device": f"{device} ({name})",
        "backend": f"{chosen} ({reason})",
    }


def installed_version(package: str) -> str:
    """The version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
