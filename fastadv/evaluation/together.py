"""An evaluation by all processes: what is done is read, the rest shared out, the results joined."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from fastadv.evaluation.block import SampleAttack, Task
from fastadv.evaluation.checkpoint import digest_of_model, without_addresses
from fastadv.evaluation.clean import device_of
from fastadv.evaluation.display import Watch, shown
from fastadv.evaluation.environment import describe_environment, now
from fastadv.evaluation.examples import Pixels, first
from fastadv.evaluation.findings import DEFAULT_SEARCH
from fastadv.evaluation.in_use import Fallen, backend_ahead, in_words
from fastadv.evaluation.intake import Intake
from fastadv.evaluation.processes import Exchange, Place, files_of, path_of
from fastadv.evaluation.question import Question
from fastadv.evaluation.samples import Data, Rows, Samples
from fastadv.evaluation.share import Found, Share, disjoint, found_in, mine_of
from fastadv.evaluation.state import Block, State, Unfinished
from fastadv.execution import Execution
from fastadv.isolation import Model, module_of
from fastadv.ops import backend
from fastadv.version import __version__

# a checkpoint of one goes on with another (contract C2)
_CHANGES_NOTHING = ("batching", "batch_size", "cuda_graph", "timed")


@dataclass(frozen=True)
class Wanted:
    """The arguments of an evaluation."""

    model: Model
    data: Data
    attack: SampleAttack
    batch_size: int | None
    path: Path | None
    execution: Execution
    progress: bool | Watch

    @property
    def question(self) -> Question:
        return Question.of(self.attack)


class _Outcome(NamedTuple):
    blocks: list[Block]  # that this process has finished now
    inset: float
    seen: int
    stream: str
    backend: str
    fell_back: list[str]
    examples: list[Pixels]
    environment: dict[str, str]


def attacked_together(
    wanted: Wanted, exchange: Exchange
) -> tuple[list[Block], State, str, dict[str, str]]:
    """(blocks of all samples, what they are results of, backend, environment), the same on each
    process."""
    work = _Work(wanted, exchange.place)
    share = Share(exchange.place, exchange.gathered(work.look))
    outcomes = exchange.gathered(lambda: work.attack(share))
    blocks = disjoint([*share.blocks, *(block for o in outcomes for block in o.blocks)])
    _check_whole(blocks, outcomes)
    inset = max(outcome.inset for outcome in outcomes)
    fell_back = sorted({op for outcome in outcomes for op in outcome.fell_back})
    whole = replace(
        work.asked,
        blocks=blocks,
        total=outcomes[0].seen,
        inset=inset,
        fell_back=fell_back,
        date=share.date,
        examples=first([*share.examples, *(one for o in outcomes for one in o.examples)]),
    )
    exchange.gathered(lambda: work.unite(whole, share))
    ran = in_words(outcomes[0].backend, fell_back)
    return blocks, whole, ran, outcomes[0].environment


class _Work:
    """What one process does, in this order: look, attack, unite."""

    def __init__(self, wanted: Wanted, place: Place) -> None:
        self._wanted, self._place, self._path = wanted, place, wanted.path

    def look(self) -> Found:
        """Read the files that are there, of any number of processes."""
        wanted = self._wanted
        size = wanted.execution.batch_size if wanted.batch_size is None else wanted.batch_size
        self._samples = Samples(
            wanted.data,
            batch_size=size,
            judged=wanted.question.objective is not None,
            shared=self._place.world > 1,
        )
        self.asked = State(
            without_addresses(repr(wanted.attack)),
            digest_of_model(module_of(wanted.model)),
            __version__,
            _search_of(wanted.execution),
            backend_ahead(device_of(wanted.model), wanted.data),
            self._samples.length,
            execution=asdict(replace(wanted.execution, batch_size=self._samples.batch_size)),
            date=now(),
        )
        files = [] if self._path is None else files_of(self._path)
        self._states = {file: self.asked.restored(file) for file in files}
        self._fell_back = {op for state in self._states.values() for op in state.fell_back}
        self._is_united = files == [self._path]
        return found_in(self.asked, self._states.values())

    def attack(self, share: Share) -> _Outcome:
        """Do this process's share, and keep it in a file of its own."""
        wanted, samples = self._wanted, self._samples
        own, path, begun = self._own_file(share)
        before = len(own.blocks)
        device = device_of(wanted.model)
        fallen = Fallen(self._path, self._fell_back, resumed=bool(share.blocks or begun))
        fallen.begin(device or samples.device)

        def keep() -> None:
            own.fell_back = fallen.now(device or samples.device)
            if path is not None:
                own.save(path)

        execution = replace(wanted.execution, batch_size=samples.batch_size)
        with shown(wanted.progress if self._place.rank == 0 else False) as watch:
            task = Task(
                wanted.model,
                wanted.attack,
                wanted.question,
                execution,
                device,
                share,
                samples.expected,
                own,
                keep,
                watch,
                samples.is_sized,
            )

            def check(rows: Rows, correct: torch.Tensor) -> None:
                if not _predicts(task, rows, correct):
                    raise ValueError(
                        f"checkpoint {self._path} belongs to another model: the one here "
                        "classifies its first clean samples otherwise. Choose another path, or "
                        "delete it to start again"
                    )

            for rows, part in Intake(samples, share, begun, self._path, check).blocks():
                task.attack_block(rows, part)
            task.finish()
        there = device or samples.device
        return _Outcome(
            own.blocks[before:],
            own.inset,
            samples.seen,
            samples.stream.hexdigest(),
            backend.explain(there)[0],
            fallen.now(there),
            own.examples,
            describe_environment(there),
        )

    def _own_file(self, share: Share) -> tuple[State, Path | None, list[Unfinished]]:
        """(what it holds, where it is, the unfinished blocks that this process goes on with).

        What is in it stays in it, also blocks that another process goes on with: it may be the only
        file that holds them.
        """
        begun = mine_of(share, self._states.values())
        nothing = replace(self.asked, inset=share.inset, blocks=[], unfinished=[], examples=[])
        if self._path is None:
            return nothing, None, begun
        path = path_of(self._path, self._place)
        own = self._states.get(path, nothing)
        own.inset = share.inset
        self._states = {}  # what other processes go on with may hold images
        own.unfinished = [p for p in own.unfinished if not bool(share.are_finished(p.ids).all())]
        return own, path, begun

    def unite(self, whole: State, share: Share) -> None:
        """Write all results into one file and remove those of the processes, which it replaces."""
        if self._path is None or self._place.rank > 0 or not whole.blocks:
            return
        if self._is_united and share.total is not None:
            return
        whole.save(self._path)
        for file in files_of(self._path):
            if file != self._path:
                file.unlink(missing_ok=True)


def _search_of(execution: Execution) -> str:
    """What of it may lead to other adversarial examples, where it is not as by default."""
    changed = [
        f"{one.name}={getattr(execution, one.name)!r}"
        for one in fields(execution)
        if one.name not in _CHANGES_NOTHING and getattr(execution, one.name) != one.default
    ]
    return ", ".join(changed) or DEFAULT_SEARCH


def _check_whole(blocks: Sequence[Block], outcomes: Sequence[_Outcome]) -> None:
    """Raises ValueError unless every sample is there once, and all read the same."""
    counts = [outcome.seen for outcome in outcomes]
    ids = torch.cat([torch.empty(0, dtype=torch.int64), *(block.ids for block in blocks)])
    is_one_stream = len({outcome.stream for outcome in outcomes}) == 1
    if not is_one_stream or not torch.equal(ids.sort().values, torch.arange(counts[0])):
        raise ValueError(
            "data must come in the same order in every process: this loader gave them other "
            f"samples, {counts} of them"
        )


def _predicts(task: Task, rows: Rows, correct: torch.Tensor) -> bool:
    """Whether the model still classifies rows as it did; correct: (n,) where it was right.

    Near ties do not count, nor does a model that draws random numbers: its predictions depend on
    how samples are batched.
    """
    found = task.answers(rows, closely=True)
    assert found.is_close is not None, "it was asked for"
    right = task.question.are_right(found.prediction.cpu(), rows.y.cpu())
    if not bool(((right != correct) & ~found.is_close.cpu()).any()):
        return True
    return not torch.equal(task.answers(rows, reseed=1).traces, found.traces)
