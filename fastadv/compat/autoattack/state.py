"""An evaluation so far, in a file that can be read again: flags, stages, adversarial examples."""

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fastadv.attacks.call.result import Stage
from fastadv.diagnostics import emit
from fastadv.ensemble.cascade import Progress
from fastadv.files import save_tensors
from fastadv.ops import doubles

_FORMAT = 2  # raised when the fields of the file change


@dataclass
class EvaluationState:
    """What of `attacks_to_run` has been run, and which samples are robust still.

    Assigning `robust_flags` or `clean_accuracy` and `add_run_attack` write the file at `path`, if
    there is one, atomically. The authors' file cannot be read again; this one also holds what
    `AutoAttack` needs to go on: `identity` (of what the results are), `seed`, `progress`.

    Example: `EvaluationState.from_disk(Path("state.pt")).robust_accuracy`.
    """

    _attacks_to_run: set[str]
    path: Path | None = None
    _run_attacks: set[str] = field(default_factory=set)
    _robust_flags: torch.Tensor | None = None
    _clean_accuracy: float = math.nan
    identity: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    progress: dict[str, Any] | None = None

    def to_disk(self, force: bool = False) -> None:
        """Write the file, if there is a path. force: every call writes, as the authors' does."""
        if self.path is None:
            return
        flags = self._robust_flags
        save_tensors(
            self.path,
            {
                "format": _FORMAT,
                "attacks_to_run": sorted(self._attacks_to_run),
                "run_attacks": sorted(self._run_attacks),
                "robust_flags": None if flags is None else flags.cpu(),
                "clean_accuracy": self._clean_accuracy,
                "identity": self.identity,
                "seed": self.seed,
                "progress": self.progress,
            },
        )

    @classmethod
    def from_disk(cls, path: str | os.PathLike[str]) -> "EvaluationState":
        """The state in the file, without running any code that it may hold; ValueError if none."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:  # a damaged or foreign file raises nearly anything
            raise ValueError(f"{path} is {_NOT_A_STATE}: {type(error).__name__}") from error
        if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
            raise ValueError(f"{path} is {_NOT_A_STATE}")
        return cls(
            set(saved["attacks_to_run"]),
            Path(path),
            set(saved["run_attacks"]),
            saved["robust_flags"],
            saved["clean_accuracy"],
            saved["identity"],
            saved["seed"],
            saved["progress"],
        )

    def record(self, progress: Progress, names: list[str], *, clean_accuracy: float) -> None:
        """Take over what is known after a stage, and write it. names: of the attacks, in order."""
        columns = _columns_of(progress)
        fallen = (progress.broken_by >= 0).nonzero()[:, 0]
        self.progress = {
            "columns": {name: getattr(progress, name).cpu() for name in columns},
            "fallen": progress.x_adv[fallen].cpu(),
            "stages": [list(stage) for stage in progress.stages],
            "inset": progress.inset,
        }
        self._run_attacks = set(names[: len(progress.stages)])
        self._robust_flags = progress.robust.cpu()
        self._clean_accuracy = clean_accuracy
        self.to_disk()

    def restored(self, progress: Progress, x: torch.Tensor) -> Progress:
        """`progress` of x with all values that were recorded."""
        assert self.progress is not None, "a state is written with its progress"
        for name, values in self.progress["columns"].items():
            setattr(progress, name, values.to(x.device))
        fallen = (progress.broken_by >= 0).nonzero()[:, 0]
        progress.x_adv = x.clone(memory_format=torch.preserve_format)
        progress.x_adv[fallen] = self.progress["fallen"].to(x.device)
        progress.inset = self.progress["inset"]
        progress.stages = [Stage(*stage) for stage in self.progress["stages"]]
        return progress

    @property
    def robust_flags(self) -> torch.Tensor | None:
        """(n,) bool: no attack so far has broken the sample; on the CPU once read from a file."""
        return self._robust_flags

    @robust_flags.setter
    def robust_flags(self, robust_flags: torch.Tensor) -> None:
        self._robust_flags = robust_flags
        self.to_disk(force=True)

    @property
    def run_attacks(self) -> set[str]:
        return self._run_attacks

    def add_run_attack(self, attack: str) -> None:
        self._run_attacks.add(attack)
        self.to_disk()

    @property
    def attacks_to_run(self) -> set[str]:
        return self._attacks_to_run

    @attacks_to_run.setter
    def attacks_to_run(self, _: set[str]) -> None:
        raise ValueError("attacks_to_run is set by the constructor only")

    @property
    def clean_accuracy(self) -> float:
        return self._clean_accuracy

    @clean_accuracy.setter
    def clean_accuracy(self, accuracy: float) -> None:
        self._clean_accuracy = accuracy
        self.to_disk(force=True)

    @property
    def robust_accuracy(self) -> float:
        """Share of robust samples; warns while attacks are missing, ValueError before the first."""
        if self._robust_flags is None:
            raise ValueError("robust_flags is not set yet: run the evaluation first")
        if self._attacks_to_run - self._run_attacks:
            emit(UserWarning("`robust_accuracy` is read before all attacks have run"))
        return doubles.doubled(self._robust_flags).mean().item()


_NOT_A_STATE = (
    "not a state of fastadv.compat.autoattack (that of the authors' package cannot be read again). "
    "Choose another state_path, or delete it to start again"
)


def _columns_of(progress: Progress) -> list[str]:
    names = [f.name for f in fields(progress) if f.name != "x_adv"]
    return [name for name in names if isinstance(getattr(progress, name), torch.Tensor)]
