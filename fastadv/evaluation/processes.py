"""The share of one process among those that `torch.distributed` joins, and what they exchange."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class Place(NamedTuple):
    """This is process `rank` of `world`; it attacks the samples rank, rank + world, ..."""

    rank: int = 0
    world: int = 1

    def of(self, total: int) -> int:
        """How many of `total` samples are this process's."""
        return len(range(self.rank, total, self.world))


def current_place() -> Place:
    """(0, 1) where no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), dist.get_world_size())
    return Place()


def gathered(work: Callable[[], T], place: Place) -> list[T]:
    """What `work` returns on each process, by rank: one collective, at the end (with nccl, on the
    current CUDA device).

    An exception on one process is raised on all of them, once all are done: on the others as a
    RuntimeError that names the process.
    """
    if place.world == 1:
        return [work()]
    mine: T | None = None
    failure: Exception | None = None
    try:
        mine = work()
    except Exception as error:
        failure = error
    said = None if failure is None else f"{type(failure).__name__}: {failure}"
    everything: list[tuple[T, str | None]] = [None] * place.world  # type: ignore[list-item]
    dist.all_gather_object(everything, (mine, said))
    if failure is not None:
        raise failure
    for rank, (_, text) in enumerate(everything):
        if text is not None:
            raise RuntimeError(f"process {rank} of {place.world} failed: {text}")
    return [result for result, _ in everything]


def path_of(path: Path, place: Place) -> Path:
    """The file of this process: run.pt, or run.rank0of2.pt, ...; each has one of its own.

    Raises ValueError if there are files of another number of processes.
    """
    for found in sorted(path.parent.glob("*")):
        world = _world_of(found, path)
        if world is not None and world != place.world:
            raise ValueError(
                f"checkpoint {found} belongs to an evaluation by {world} "
                f"process{'' if world == 1 else 'es'}, not {place.world}. Run as many, choose "
                "another path, or delete it to start again"
            )
    if place.world == 1:
        return path
    return path.with_name(f"{path.stem}.rank{place.rank}of{place.world}{path.suffix}")


def _world_of(found: Path, path: Path) -> int | None:
    """Of how many processes `found` is a checkpoint at `path`; None if it is none."""
    if found.name == path.name:
        return 1
    name = rf"{re.escape(path.stem)}\.rank\d+of(\d+){re.escape(path.suffix)}"
    match = re.fullmatch(name, found.name)
    return int(match[1]) if match else None
