"""Runs a program: the lanes of some CTAs are one numpy axis, each with a program counter."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .collective import WARP
from .compiled import Step, compiled
from .memory import EmulationError, GlobalMemory, SharedMemory
from .numbers import BITS
from .parser import Program, parse
from .races import RaceLog

_LANES = 2048  # of as many CTAs as fit, at a time: numpy costs less on long arrays
_MOST_INSTRUCTIONS = 20_000_000
_NOTHING_WROTE = 0xDEAD_BEEF_DEAD_BEEF  # in registers, so that it cannot pass for a result


@dataclass(frozen=True)
class Code:
    """A program and its instructions as steps, made once for all launches."""

    program: Program
    steps: list[Step | None]
    names: list[str] = field(repr=False)


@functools.cache
def load(ptx: str) -> Code:
    program = parse(ptx)
    return Code(program, compiled(program), [str(i) for i in program.code])


@dataclass(frozen=True)
class Counts:
    """instructions: steps taken, each by many lanes; same_values: equal writes that do not race."""

    instructions: int
    same_values: int


def launch(
    code: Code,
    grid: int,
    parameters: Mapping[str, int],
    memory: GlobalMemory,
    *,
    shared_bytes: int = 0,
    order: int | None = None,
) -> Counts:
    """Run `grid` CTAs. parameters: the bits of each. order: a seed: warps run in a random order,
    each to its next branch or barrier, and CTAs too; None: lanes run together where they can.

    Raises an EmulationError for what a device may not survive, UnknownPtx for what is not known.
    """
    if code.program.threads % WARP:
        raise EmulationError(f"{code.program.threads} threads, which fill no warps")
    rng = None if order is None else np.random.default_rng(order)
    ctas = np.arange(grid) if rng is None else rng.permutation(grid)
    many = max(1, _LANES // code.program.threads)
    taken = 0
    with np.errstate(all="ignore"):
        for first in range(0, grid, many):
            group = ctas[first : first + many]
            machine = Machine(code, group, parameters, memory, shared_bytes, rng)
            taken += machine.run()
    return Counts(taken, memory.races.same_values)


def race_log(code: Code, grid: int) -> RaceLog:
    return RaceLog(code.program.threads, grid, code.names)


class Machine:
    """Some CTAs of a launch. Registers hold bits; a predicate holds bools."""

    def __init__(
        self,
        code: Code,
        ctas: Sequence[int] | np.ndarray,
        parameters: Mapping[str, int],
        memory: GlobalMemory,
        shared_bytes: int,
        rng: np.random.Generator | None,
    ) -> None:
        self.code, self.parameters, self.memory, self.rng = code, parameters, memory, rng
        self.threads = code.program.threads
        ctas = np.asarray(ctas)
        self.races = memory.races
        self.races.begin(ctas)
        self.shared = SharedMemory(shared_bytes, len(ctas), self.threads, self.races)
        self.all = np.arange(self.threads * len(ctas))
        self.pc = np.zeros(len(self.all), np.int64)
        self.waiting = np.zeros(len(self.all), np.bool_)
        self.registers: dict[str, np.ndarray] = {}
        tid = self.all % self.threads
        special = {"tid": tid, "ctaid": ctas[self.all // self.threads], "laneid": tid % WARP}
        self._special = {name: value.astype(np.uint32) for name, value in special.items()}
        self.end = len(code.steps)

    # -- registers -------------------------------------------------------------------------------
    def special(self, name: str, lanes: np.ndarray) -> np.ndarray:
        return self._special[name][lanes]

    def read(self, name: str, lanes: np.ndarray) -> np.ndarray:
        values = self._values(name)
        return values if lanes is self.all else values[lanes]

    def write(self, name: str, lanes: np.ndarray, values: np.ndarray) -> None:
        """Never in place: what was read of a register stays as it was."""
        if lanes is self.all:
            self.registers[name] = np.broadcast_to(values, lanes.shape)
            return
        changed = self._values(name).copy()
        changed[lanes] = values
        self.registers[name] = changed

    def _values(self, name: str) -> np.ndarray:
        if name not in self.registers:
            bits = self.code.program.registers[name]
            self.registers[name] = np.full(
                len(self.all), _NOTHING_WROTE & ((1 << bits) - 1), BITS[bits]
            )
        return self.registers[name]

    # -- execution -------------------------------------------------------------------------------
    def run(self) -> int:
        """Until every lane has returned; the number of steps."""
        taken = 0
        while True:
            lanes, stop = self._next()
            if not len(lanes):
                break
            taken += self._advance(lanes, stop)
            if taken > _MOST_INSTRUCTIONS:
                raise EmulationError(f"more than {_MOST_INSTRUCTIONS} steps: does it end?")
        if self.waiting.any():
            at = self.code.names[int(self.pc[self.waiting][0]) - 1]
            raise EmulationError(f"{at} reached by a part of a CTA: the others have returned")
        self.races.end()
        return taken

    def _next(self) -> tuple[np.ndarray, int]:
        """The lanes that run on, all at the lowest program counter, and where others wait."""
        ready = np.flatnonzero(~self.waiting & (self.pc < self.end))
        if self.rng is not None and len(ready):
            warp = ready % self.threads // WARP  # one of each CTA: they have no order among them
            ready = ready[warp == self.rng.choice(np.unique(warp))]
        if not len(ready):
            return ready, self.end
        counters = self.pc[ready]
        low = counters.min()
        others = counters[counters != low]
        lanes = ready[counters == low]
        stop = int(others.min()) if len(others) else self.end
        return (self.all if len(lanes) == len(self.all) else lanes), stop

    def _advance(self, lanes: np.ndarray, stop: int) -> int:
        """Up to a branch, a barrier, or `stop`, where lanes wait to run along."""
        first = i = int(self.pc[lanes[0]])
        code, steps = self.code.program.code, self.code.steps
        while i < stop:
            step, instruction = steps[i], code[i]
            active = lanes if instruction.guard is None else self._guarded(instruction, lanes)
            if step is None:
                self._control(instruction, i, lanes, active)
                return i + 1 - first
            if len(active):
                self.races.instruction = i
                try:
                    step(self, active)
                except EmulationError as error:
                    raise type(error)(f"{self.code.names[i]}: {error}") from None
            i += 1
        self.pc[lanes] = i
        return i - first

    def _guarded(self, instruction, lanes: np.ndarray) -> np.ndarray:
        on = self.read(instruction.guard, lanes) ^ instruction.negated
        return lanes if on.all() else lanes[on]

    def _control(self, instruction, at: int, lanes: np.ndarray, active: np.ndarray) -> None:
        self.pc[lanes] = at + 1
        if instruction.opcode[0] == "bra":
            self.pc[active] = self.code.program.labels[instruction.operands[0]]
        elif instruction.opcode[0] == "ret":
            self.pc[active] = self.end
        else:
            self._arrive(active)

    def _arrive(self, lanes: np.ndarray) -> None:
        """A CTA passes its barrier once all of its lanes wait at this one."""
        self.waiting[lanes] = True
        waiting = self.waiting.reshape(-1, self.threads)
        arrived = np.flatnonzero(waiting.all(1))
        counters = self.pc.reshape(-1, self.threads)[arrived]
        if (counters != counters[:, :1]).any():
            raise EmulationError("the lanes of a CTA wait at different barriers")
        waiting[arrived] = False
        if len(arrived):
            self.races.barrier(arrived)
