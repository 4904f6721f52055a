"""Adversarial examples on the disk while an attack goes on: killed at any moment, none is lost."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastadv.attacks import Attack, AttackResult
from fastadv.cli.user_error import UserError
from fastadv.ensemble.constructor import AutoAttack
from fastadv.execution import Execution
from fastadv.files import save_tensors
from fastadv.isolation import Model

# beside examples the checkpoint of `evaluate`, of each process, and what is being written
_OWN = re.compile(r"\.?(examples-\d+|evaluation(\.rank\d+of\d+)?)\.pt(\.tmp)?")
_COLUMNS = ("ids", "x_adv", "prediction", "clean_prediction")


@dataclass(frozen=True)
class KeptExamples:
    """One file a block in a folder, written before the checkpoint of `evaluate` counts the block,
    so that what that has finished is here; a block that is attacked again has the same bits."""

    folder: Path

    def put(self, ids: torch.Tensor, result: AttackResult) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        assert result.clean_prediction is not None, "no attack of the command line leaves it out"
        columns = (ids, result.x_adv, result.prediction, result.clean_prediction)
        content = {name: c.cpu() for name, c in zip(_COLUMNS, columns, strict=True)}
        save_tensors(self.folder / f"examples-{int(ids[0]):09d}.pt", content)

    def count(self) -> int:
        return len({i for part in self._parts() for i in part["ids"].tolist()})

    def joined(self, n: int) -> dict[str, torch.Tensor]:
        """x_adv, prediction and clean_prediction of samples 0 to n - 1."""
        parts = self._parts()
        if not parts:
            raise UserError(f"{self.folder} holds no examples: delete it, and begin anew")
        ids = torch.cat([part["ids"] for part in parts])
        at = torch.full((n,), -1, dtype=torch.int64)
        at[ids] = torch.arange(len(ids))
        if bool((at < 0).any()):
            raise UserError(
                f"{self.folder} lacks the examples of {int((at < 0).sum())} of {n} samples, which "
                "the checkpoint has finished: delete both, and begin anew"
            )
        return {name: torch.cat([part[name] for part in parts])[at] for name in _COLUMNS[1:]}

    def check(self, option: str) -> None:
        """UserError for a folder in which other files are, too: it is deleted in the end."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{option} must be a folder; got the file {self.folder}")
        others = [file.name for file in self._files() if not _OWN.fullmatch(file.name)]
        if others:
            raise UserError(
                f"{option} must be a folder of its own, a new one say: {self.folder} holds "
                f"{others[0]}, too"
            )

    def discard(self) -> None:
        """Delete what was kept, and the folder, unless something else has come into it."""
        for file in self._files():
            if _OWN.fullmatch(file.name):
                file.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _files(self) -> Iterator[Path]:
        yield from sorted(self.folder.iterdir()) if self.folder.is_dir() else ()

    def _parts(self) -> list[dict[str, torch.Tensor]]:
        return [
            torch.load(file, map_location="cpu", weights_only=True)
            for file in sorted(self.folder.glob("examples-*.pt"))
        ]


@dataclass
class Recorder:
    """An attack or ensemble that keeps its examples, for `evaluate` reports none; and has targets.

    goal: (n,) classes, None where it is untargeted; target: how they were chosen.
    """

    attack: Attack | AutoAttack
    kept: KeptExamples
    goal: torch.Tensor | None = None
    target: int | str | None = None

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        sample_ids: torch.Tensor | None = None,
        execution: Execution | None = None,
    ) -> AttackResult:
        assert sample_ids is not None, "evaluate gives them"
        common: dict[str, Any] = dict(sample_ids=sample_ids, execution=execution)
        if self.goal is not None:
            common["target"] = self.goal.to(x.device)[sample_ids]
        result = self.attack.run(model, x, y, **common)
        self.kept.put(sample_ids.cpu(), result)
        return result

    @property
    def constructor(self) -> str:
        return getattr(self.attack, "constructor", "AutoAttack")

    def __repr__(self) -> str:
        towards = "" if self.target is None else f" with target={self.target!r}"
        return f"{self.attack!r}{towards}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)
