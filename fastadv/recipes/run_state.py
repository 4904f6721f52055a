"""The checkpoint of a run: all that decides how it goes on, safe to load, and whose it is."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastadv.evaluation.checkpoint import DataDigest
from fastadv.files import save_tensors
from fastadv.recipes.settings import Recipe
from fastadv.version import __version__

_FORMAT = 1  # raised when what is saved changes


_WHOSE = {
    "data": "other data",
    "fastadv_version": "another version of fastadv",
    "torch_version": "another version of torch",
}
# fields that older checkpoints lack
_NEW_FIELDS = {"norm": "linf", "classes": 10}
# what may differ where a run is resumed for more epochs
_RAISED_WITH_EPOCHS = ("epochs", "learning_rate", "eps_warmup", "on_collapse")


class Stateful(Protocol):
    """What a checkpoint asks of its parts: network, optimizer, average, step, sentinel, loader."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class Position:
    """Where a run is, in plain values.

    epoch: epochs done. epochs: to do in all, more than the recipe's after a rescue. batches: done,
    of all epochs. updates, loss_sum: of the one in progress. rescued_at: `batches` at the last
    rollback.
    best, best_epoch: by PGD accuracy of held-out samples. rate: the learning rate last used.
    seconds: of the epochs done and, apart, of the one in progress. threads: torch's.
    """

    epochs: int
    epoch: int = 0
    batches: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    rescued_at: int | None = None
    best: float = -1.0
    best_epoch: int = 0
    rate: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    log_length: int = 0
    threads: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Identity:
    """Whose checkpoint it is: a recipe, the data that it was trained on, the code."""

    recipe: Recipe
    data: str
    fastadv_version: str
    torch_version: str

    @classmethod
    def of(cls, recipe: Recipe, images: torch.Tensor, labels: torch.Tensor) -> "Identity":
        digest = DataDigest()
        digest.update(images, labels)
        return cls(recipe, digest.hexdigest(), __version__, str(torch.__version__))


def save_run(
    path: Path, identity: Identity, position: Position, parts: Mapping[str, Stateful | None]
) -> None:
    """Write the checkpoint atomically."""
    states = {name: part.state_dict() for name, part in parts.items() if part is not None}
    content = {"format": _FORMAT, **asdict(identity), "position": asdict(position), **states}
    save_tensors(path, content)


def read_checkpoint(path: Path, identity: Identity) -> dict[str, Any] | None:
    """What `save_run` wrote, tensors on the CPU; None if there is no file.

    Raises ValueError if it is damaged, or belongs to another recipe, other data or other code; the
    recipe may have more epochs, and what goes with them.
    """
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise ValueError(
            f"{path} is not a checkpoint of fastadv.recipes.train: {type(error).__name__}. Choose "
            "another folder, or delete it to start again"
        ) from error
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of this version of fastadv.recipes.train. Choose another "
            "folder, or delete it to start again"
        )
    _check_recipe(path, saved["recipe"], asdict(identity.recipe))
    for name, what in _WHOSE.items():
        theirs, mine = saved[name], getattr(identity, name)
        if theirs != mine:
            raise ValueError(
                f"{path} belongs to {what}: {theirs[:12]}, not {mine[:12]}. Resume with what it "
                "began with, or choose another folder"
            )
    return saved


def _check_recipe(path: Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    theirs = {**_NEW_FIELDS, **theirs}
    names = {**theirs, **mine}
    if mine["epochs"] > theirs["epochs"]:
        names = [name for name in names if name not in _RAISED_WITH_EPOCHS]
    changed = [
        f"{name} is {theirs.get(name)!r} there and {mine.get(name)!r} here"
        for name in names
        if theirs.get(name) != mine.get(name)
    ]
    if changed:
        raise ValueError(
            f"{path} belongs to another recipe: {', '.join(changed)}. Resume with the recipe it "
            "began with, or choose another folder"
        )


def check_folder(out: str | os.PathLike[str], *, resume: bool) -> Path:
    """The folder, which need not be there; ValueError if it holds a run and that is not resumed."""
    folder = Path(out)
    held = [name for name in ("last.pt", "model.pt") if (folder / name).exists()]
    if held and not resume:
        raise ValueError(
            f"out: {folder} holds a run already ({', '.join(held)}). Resume it, or choose another "
            "folder"
        )
    return folder
