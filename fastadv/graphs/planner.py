"""When a step is run, recorded, replayed or refused: the logic of graphs, apart from CUDA."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from fastadv.diagnostics import ExecutionWarning, emit
from fastadv.graphs.rehearsal import Saved, replays_differently
from fastadv.memory import is_out_of_memory

_CAUSES = (
    "A graph cannot hold what waits for the device or depends on its values: .item(), .cpu(), "
    "print, boolean indexing, Python ifs on tensors, tensors made on the host, an operation that "
    "CUDA cannot record"
)
_BAKED_IN = (
    "A recording keeps Python's numbers, and where tensors lay, as they were when it was made: "
    "what the model changes between its passes must lie in tensors that it writes in place"
)
_CHECKED = 2  # replays of a recording: what Python changes from step to step shows at the second
_MEMORY = "A recording holds memory of its own beside that of eager steps: use smaller batches"


# what a step may write, by a name for messages
Written = Callable[[], Mapping[str, torch.Tensor]]


class Backend(Protocol):
    """What records and replays: `fastadv.graphs.cuda.CudaGraphs`, or a stand-in for tests."""

    def warm(self, function: Callable[[], None]) -> None:
        """Run it for real, where a capture would."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record it without running it on the device; returns the replay, raises if it cannot."""
        ...

    def rehearse(self, function: Callable[[], None]) -> None:
        """Run it for real and as a replay would, which draws from the device's generator."""
        ...

    def generators(self) -> list[torch.Generator]:
        """Those that a step or its replay may draw from."""
        ...

    def release(self) -> None:
        """Free the memory of all captures."""
        ...


class Counters(Protocol):
    """What a step counts on the host, and a replay has to count again."""

    def read(self) -> tuple[int, ...]: ...

    def write(self, values: tuple[int, ...]) -> None: ...


@dataclass
class _Entry:
    warmed: int = 0
    replay: Callable[[], None] | None = None
    checked: int = 0
    counted: tuple[int, ...] = ()


class StepGraphs:
    """Runs the steps of some key a few times, then records one and replays it from then on.

    backend: None runs everything eagerly. required: raise RuntimeError where a step cannot be
    recorded, instead of one `ExecutionWarning` and eager steps for good. warmup: real steps before
    the recording, which allocate, choose algorithms and compile. most: keys held; the least
    recently used are dropped. what: who goes on without, for the warning. causes: what else than
    any step may do can end a recording of these, for its words.

    A key must name all that a recorded step has baked in: addresses, shapes, Python numbers. The
    results of a step lie in tensors made outside of it. captures, replays: how many there were.
    refusal: why nothing is recorded any more, in words, or None.

    The first two replays of a recording are held against the step itself, where it is known what a
    step writes, see `fastadv.graphs.rehearsal`: one that does not do the same is undone, and
    nothing is recorded any more.
    """

    def __init__(
        self,
        backend: Backend | None,
        *,
        required: bool = False,
        warmup: int = 2,
        most: int = 8,
        what: str = "attacks",
        causes: str = "",
    ) -> None:
        if warmup < 1:  # what is lazy would be initialised inside the recording
            raise ValueError(f"warmup must be at least 1; got {warmup}")
        if most < 1:
            raise ValueError(f"most must be at least 1; got {most}")
        self.backend = backend
        self.required = required
        self.warmup = warmup
        self.most = most
        self.what = what
        self.causes = causes
        self.refusal: str | None = None
        self.captures: int = 0
        self.replays: int = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def run(
        self,
        key: Hashable,
        function: Callable[[], None],
        counters: Counters | None = None,
        written: Written | None = None,
    ) -> bool:
        """Make the step once, whichever way; True if it was replayed.

        written: all tensors that a step may leave changed; None: replays are not checked.
        """
        backend = self.backend
        if self.refusal is not None and self.required:
            raise RuntimeError(self._words())
        if backend is None or self.refusal is not None:
            function()
            return False
        entry = self._entry(key)
        if entry.replay is None and entry.warmed < self.warmup:
            backend.warm(function)
            entry.warmed += 1
            return False
        if entry.replay is None and not self._captured(backend, entry, function, counters):
            function()
            return False
        assert entry.replay is not None, "captured above"
        if written is None or entry.checked == _CHECKED:
            entry.replay()
        elif not self._agrees(backend, entry, function, counters, written):
            function()
            return False
        self.replays += 1
        if counters is not None:
            pairs = zip(counters.read(), entry.counted, strict=True)
            counters.write(tuple(value + more for value, more in pairs))
        return True

    def release(self) -> None:
        """Forget every recording and free its memory; keys start anew with their warm-up."""
        self._entries.clear()
        if self.backend is not None:
            self.backend.release()

    def _entry(self, key: Hashable) -> _Entry:
        entry = self._entries.pop(key, None) or _Entry()
        self._entries[key] = entry
        if len(self._entries) > self.most:
            self._entries.popitem(last=False)
        return entry

    def _captured(
        self,
        backend: Backend,
        entry: _Entry,
        function: Callable[[], None],
        counters: Counters | None,
    ) -> bool:
        """Record the step, which must leave no count behind; False where it was refused."""
        before = () if counters is None else counters.read()
        try:
            replay = backend.capture(function)
            after = () if counters is None else counters.read()
        except Exception as error:
            self.refuse(self._reason(error), error)
            return False
        finally:
            if counters is not None:
                counters.write(before)
        entry.replay = replay
        entry.counted = tuple(b - a for a, b in zip(before, after, strict=True))
        self.captures += 1
        return True

    def _agrees(
        self,
        backend: Backend,
        entry: _Entry,
        function: Callable[[], None],
        counters: Counters | None,
        written: Written,
    ) -> bool:
        """Replay the step and hold it against the step itself; False where it was undone, and the
        recording refused. Either way, and on errors too, it leaves no count behind."""
        assert entry.replay is not None, "captured before"
        counts = () if counters is None else counters.read()
        before: Saved | None = None

        def eager() -> None:
            if counters is not None:
                counters.write(counts)
            backend.rehearse(function)

        try:
            before = Saved(written(), backend.generators())
            difference = replays_differently(entry.replay, eager, before)
        except BaseException as error:
            if before is not None:
                before.put_back()
            if not (isinstance(error, Exception) and is_out_of_memory(error)):
                raise
            before = None
            self.refuse(self._reason(error), error)
            return False
        finally:
            if counters is not None:
                counters.write(counts)
        if difference is not None:
            self.refuse(f"{difference} ({_BAKED_IN})")
            return False
        entry.checked += 1
        return True

    def refuse(self, reason: str, error: Exception | None = None) -> None:
        """Record nothing any more: said once, or raised at every step where it is required."""
        self.refusal = reason
        self.release()
        if self.required:
            raise RuntimeError(self._words()) from error
        emit(ExecutionWarning(self._words()))

    def _words(self) -> str:
        then = f"; {self.what} go on without: same results, slower"
        if self.required:
            then = ". Mend that, or leave out cuda_graph=True"
        return f"CUDA graph: not captured, because {self.refusal}{then}"

    def _reason(self, error: Exception) -> str:
        lines = str(error).strip().splitlines()
        said = lines[0].rstrip(". ") if lines else type(error).__name__
        causes = _MEMORY if is_out_of_memory(error) else _CAUSES + self.causes
        return f"{said} ({causes})"
