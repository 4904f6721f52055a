"""Starting the processes of sharded_runs.py, and what can be compared of what they leave."""

import json
from pathlib import Path

import sharded_runs
import torch
from forked import Forked

# torchrun as forked.py runs it, with ranks that are forked from it; a script by its path follows
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--run-path", "--start-method", "fork")
# passes count slots that wait for work, which depends on how samples share batches
PASSES = ("forwards", "backwards", "discarded")


def started(name: str, world: int, folder: Path, pace: float = 0.0) -> list[Forked]:
    (folder / "meeting").unlink(missing_ok=True)
    return [Forked(sharded_runs.__file__, name, rank, world, folder, pace) for rank in range(world)]


def ended(processes: list[Forked], folder: Path) -> list[dict]:
    """What each rank found; all runs of a name share one start of the processes."""
    try:
        outputs = [process.communicate() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert {process.returncode for process in processes} == {0}, outputs
    return [
        torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(len(processes))
    ]


def rows_in(path: Path) -> tuple[list[int], list[int]]:
    """The samples that are finished, and those of blocks that are begun."""
    saved = torch.load(path, weights_only=True)
    begun = [i for part in saved["unfinished"] for i in part["ids"].tolist()]
    return saved["columns"]["ids"].tolist(), begun


def comparable(text: str, *, passes: bool = False) -> dict:
    read = json.loads(text)
    for part in (read, read["cost"], *read["stages"]):
        for name in [*part]:
            is_of_clock = name.endswith("seconds") or name == "date"
            if is_of_clock or (name in PASSES and not passes):
                del part[name]
    return read
