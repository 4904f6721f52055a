"""The processes that `torch.distributed` joins: what they tell each other, and their files."""

import contextlib
import datetime
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

T = TypeVar("T")

# a share may take a day longer than another; a process that is gone is noticed by its connection
_PATIENCE = datetime.timedelta(days=30)
_LOOK_EVERY = 0.02  # seconds; a wait inside of the collective would not see Ctrl-C


class Place(NamedTuple):
    """This is process `rank` of `world`."""

    rank: int = 0
    world: int = 1


class Exchange:
    """What the processes of one evaluation tell each other; kept: what to do if one is gone."""

    def __init__(self, place: Place, group: Any, kept: str) -> None:
        self.place = place
        self._group = group
        self._kept = kept

    def gathered(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each process, by rank, once all are done.

        An exception on one process is raised on all of them: on the others as a RuntimeError that
        names the process. A process that is gone, also by Ctrl-C, is a RuntimeError on the others.
        """
        if self.place.world == 1:
            return [work()]
        mine: T | None = None
        failure: Exception | None = None
        try:
            mine = work()
        except Exception as error:
            failure = error
        said = None if failure is None else f"{type(failure).__name__}: {failure}"
        everything: list[tuple[T, str | None]] = [None] * self.place.world  # type: ignore[list-item]
        with _said_if_gone(self.place, self._kept):
            arrived: Any = dist.barrier(group=self._group, async_op=True)
            while not arrived.is_completed():
                time.sleep(_LOOK_EVERY)
            arrived.wait()
            dist.all_gather_object(everything, (mine, said), group=self._group)
        if failure is not None:
            raise failure
        for rank, (_, text) in enumerate(everything):
            if text is not None:
                raise RuntimeError(f"process {rank} of {self.place.world} failed: {text}")
        return [result for result, _ in everything]


@contextlib.contextmanager
def exchange_of_processes(path: Path | None) -> Iterator[Exchange]:
    """An `Exchange` with a process group of its own: gloo, whatever the backend of the others, so
    that waiting for a slower process is no error; closed at the end, also by an exception, so that
    the others do not wait for a process that has left."""
    if not (dist.is_available() and dist.is_initialized()):
        yield Exchange(Place(), None, kept_in(path))
        return
    place = Place(dist.get_rank(), dist.get_world_size())
    if place.world == 1:
        yield Exchange(place, None, kept_in(path))
        return
    with _said_if_gone(place, kept_in(path)):
        # all are there within the timeout of the user's own group, not in _PATIENCE
        dist.all_gather_object([None] * place.world, place.rank)
        group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield Exchange(place, group, kept_in(path))
    finally:
        dist.destroy_process_group(group)


def kept_in(path: Path | None) -> str:
    """What an evaluation that ends early leaves."""
    if path is None:
        return "no checkpoint was given, so nothing is kept"
    return (
        "all finished blocks, and all finished attacks of an ensemble, are in the checkpoint "
        f"{path}: the same call goes on from there, with any number of processes"
    )


@contextlib.contextmanager
def _said_if_gone(place: Place, kept: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the collective: a connection that closed, or a timeout
        raise RuntimeError(
            f"process {place.rank} of {place.world} cannot go on: another process is gone, killed "
            f"or interrupted, or does not answer; {kept}"
        ) from error


def path_of(path: Path, place: Place) -> Path:
    """The file that a process writes: run.pt, or run.rank0of2.pt, ...; each has one of its own."""
    if place.world == 1:
        return path
    return path.with_name(f"{path.stem}.rank{place.rank}of{place.world}{path.suffix}")


def files_of(path: Path) -> list[Path]:
    """The files that are there, of any number of processes.

    Raises FileNotFoundError if there is not even a folder for them.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"checkpoint {path}: there is no folder {path.parent}")
    name = rf"{re.escape(path.stem)}(\.rank\d+of\d+)?{re.escape(path.suffix)}"
    return sorted(found for found in path.parent.iterdir() if re.fullmatch(name, found.name))
