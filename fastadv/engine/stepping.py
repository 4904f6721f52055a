"""How steps are made: eagerly, or recorded once and replayed as a graph."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from fastadv.engine.algorithm import SlotAlgorithm, State
from fastadv.engine.state import named_tensors
from fastadv.engine.watchdog import Moment, Watchdog
from fastadv.engine.work import Work
from fastadv.graphs.planner import StepGraphs
from fastadv.kernels import slots as columns

_SERIAL = itertools.count()
_MOST_PLANS = 6  # the attacks of an ensemble; with a plan go its states, five to nine images a slot


@dataclass
class Plan:
    """An algorithm, and by their number of slots its states: the tensors that graphs are bound to,
    each state with a number that no other ever had."""

    algorithm: SlotAlgorithm
    states: dict[int, tuple[int, State]] = field(default_factory=dict)

    def keep(self, state: State) -> State:
        self.states[len(state)] = next(_SERIAL), state
        return state

    def serial(self, state: State) -> int | None:
        serial, kept = self.states.get(len(state), (None, None))
        return serial if kept is state else None


class Plans:
    """The plans of a model, by what makes algorithm and tensors the same; the oldest go."""

    def __init__(self) -> None:
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()

    def of(self, key: Hashable, make: Callable[[], SlotAlgorithm]) -> Plan:
        plan = self._plans.pop(key, None) or Plan(make())
        self._plans[key] = plan
        if len(self._plans) > _MOST_PLANS:
            self._plans.popitem(last=False)
        return plan


class Stepper:
    """Makes the steps of a plan's algorithm. graphs: None for eager steps."""

    def __init__(self, plan: Plan, graphs: StepGraphs | None) -> None:
        self.algorithm: SlotAlgorithm = plan.algorithm
        self._plan = plan
        self._graphs = graphs
        self._watchdog = Watchdog()

    @property
    def records(self) -> bool:
        """Whether steps may be recorded, so that few shapes are better than tight ones."""
        return self._graphs is not None and self._graphs.refusal is None

    def shape(self, wanted: int, most: int) -> int:
        """How many slots to hold for `wanted` items, of `most`: halves of it where steps are
        recorded, so that shapes recur."""
        if not self.records:
            return min(wanted, most)
        while most // 2 >= wanted and most > 1:
            most //= 2
        return most

    def allocate(self, work: Work, batch: int) -> State:
        """A state for `batch` slots, whose contents are to be loaded."""
        if not self.records:
            return self.algorithm.allocate(work, batch)
        if batch not in self._plan.states:
            return self._plan.keep(self.algorithm.allocate(work, batch))
        _, state = self._plan.states[batch]
        self.algorithm.renew(state)
        return state

    def loaded(self, work: Work, items: torch.Tensor) -> State:
        """A state with all of `work`, into which no other sample will come: an algorithm that has
        a `loaded` may share the tensors of `work` with it."""
        loaded = None if self.records else getattr(self.algorithm, "loaded", None)
        if loaded is not None:
            return loaded(work, items)
        state = self.allocate(work, len(work))
        self.algorithm.start(state, None, work, items)
        return state

    def shrunk(self, state: State, rows: torch.Tensor) -> State:
        """A smaller state with `rows` of this one as its first slots; slots beyond are idle."""
        if not self.records:
            return state.take(rows)
        batch = self.shape(len(rows), len(state))
        idle = rows[:1].expand(batch - len(rows))
        smaller = state.take(torch.cat([rows, idle]))
        if batch in self._plan.states:
            _, kept = self._plan.states[batch]
            if kept.accepts(smaller):
                kept.put(torch.arange(batch, device=rows.device), smaller)
                kept.write(smaller.read())
                smaller = kept
        smaller.slots[len(rows) :, columns.ACTIVE] = 0
        return smaller if self._plan.serial(smaller) is not None else self._plan.keep(smaller)

    def advance(self, state: State, steps: int, *, look: bool = False) -> None:
        """`steps` steps of every active slot; look: the last one looks at its gradient."""
        on_cpu = state.slots.device.type == "cpu"
        began = self.moment()
        for step in range(steps):
            if look and step == steps - 1:
                state.look_again()
            self._step(state)
            if on_cpu:
                began = self.note(began, state, 1)

    def moment(self) -> Moment:
        """For `note`."""
        return self._watchdog.moment()

    def note(self, began: Moment, state: State, steps: int) -> Moment:
        """Watch the time of steps that end now, which is returned; on a GPU only once they have
        been waited for."""
        return self._watchdog.note(began, slots=len(state), steps=steps)

    def _step(self, state: State) -> None:
        if self._graphs is None:
            self.algorithm.step(state)
            return
        serial = self._plan.serial(state)
        variant = None if serial is None else self.algorithm.variant(state)
        if variant is None:
            self.algorithm.step(state)
            return
        oracle = self.algorithm.oracle
        counts = _Counts(oracle, state)
        key = (serial, variant, oracle.room)
        captured = self._graphs.captures
        is_replayed = self._graphs.run(
            key,
            lambda: self.algorithm.step(state),
            counts,
            written=lambda: named_tensors(state) | oracle.buffers(),
        )
        is_warm_up = self.records and not is_replayed  # which compiles what is lazy
        if is_warm_up or self._graphs.captures > captured:
            self._watchdog.excuse()


class _Counts:
    """What is counted on the host by the oracle and by a state, for `fastadv.graphs`."""

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def read(self) -> tuple[int, ...]:
        return tuple(value for part in self._parts for value in part.read())

    def write(self, values: tuple[int, ...]) -> None:
        for part in self._parts:
            count = len(part.read())
            part.write(values[:count])
            values = values[count:]
