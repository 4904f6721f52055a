"""Instructions as functions of a machine and of its active lanes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import arithmetic, bitwise, collective  # noqa: F401  (bitwise adds its rules)
from .collective import WARP
from .memory import Misaligned
from .numbers import BITS, TYPES, Type, immediate
from .parser import Address, Instruction, Program, UnknownPtx

if TYPE_CHECKING:
    from .machine import Machine

Step = Callable[["Machine", np.ndarray], None]
_CONTROL = ("bra", "ret", "bar")
_SPECIAL = {"%tid.x": "tid", "%ctaid.x": "ctaid", "%laneid": "laneid"}


def compiled(program: Program) -> list[Step | None]:
    """A step for each instruction; None for those that move program counters."""
    known = _Compiler(program)
    return [None if _is_control(i, program.threads) else known.step(i) for i in program.code]


def _is_control(instruction: Instruction, threads: int) -> bool:
    if instruction.opcode[0] not in _CONTROL:
        return False
    called = instruction.opcode, instruction.operands
    barrier = called == (("bar", "sync"), ("0",))
    if threads == WARP:  # the barrier of a warp is that of the CTA
        barrier = barrier or called == (("bar", "warp", "sync"), ("-1",))
    if not barrier and instruction.opcode not in (("bra",), ("bra", "uni"), ("ret",)):
        raise UnknownPtx(str(instruction))
    return True


class _Compiler:
    def __init__(self, program: Program) -> None:
        self.registers = program.registers
        self.parameters = dict(program.parameters)

    def step(self, instruction: Instruction) -> Step:
        opcode, operands = instruction.opcode, instruction.operands
        name = opcode[0]
        if opcode[:2] == ("ld", "param"):
            return self._parameter(opcode, operands)
        if name in ("ld", "st"):
            return self._memory(instruction)
        if opcode[:2] == ("shfl", "sync"):
            return self._shuffle(opcode, operands)
        if opcode[:2] == ("redux", "sync"):
            return self._reduction(opcode, operands)
        if name in ("ldmatrix", "stmatrix"):
            return self._matrices(instruction)
        if name == "mov" and isinstance(operands[0], tuple):
            return self._unpack(opcode, operands)
        if name == "mov" and isinstance(operands[1], tuple):
            return self._pack(opcode, operands)
        return self._lanewise(opcode, operands)

    # -- operands --------------------------------------------------------------------------------
    def source(self, operand: str, bits: int) -> Callable:
        """(machine, lanes) -> the operand's bits, in an array of `bits` bits."""
        store = BITS[bits]
        if operand in _SPECIAL:
            name = _SPECIAL[operand]
            return lambda machine, lanes: machine.special(name, lanes)
        if operand == "global_smem":  # shared memory begins at 0
            operand = "0"
        if operand not in self.registers:
            if operand[:1] not in "-0123456789":
                raise UnknownPtx(f"operand {operand}")
            constant = immediate(operand, bits)
            return lambda machine, lanes: constant
        if self.registers[operand] == bits:
            return lambda machine, lanes: machine.read(operand, lanes)
        return lambda machine, lanes: machine.read(operand, lanes).astype(store)

    def target(self, operand: str, kind: Type | None = None) -> Callable:
        """(machine, lanes, numbers or bits); a wider register is filled up as the type says."""
        if operand == "_":
            return lambda machine, lanes, value: None
        bits = self.registers[operand]
        if kind is None:
            store = BITS[bits]
            return lambda machine, lanes, value: machine.write(operand, lanes, value.astype(store))
        if kind.bits == bits:
            return lambda machine, lanes, value: machine.write(operand, lanes, kind.encode(value))
        if kind.bits > bits:
            raise UnknownPtx(f"{kind.name} into {operand} of {bits} bits")
        wide = TYPES[f"{kind.name[0] if kind.is_signed else 'u'}{bits}"]
        number = wide.decode(np.zeros(1, BITS[bits])).dtype
        if kind.is_float:
            return lambda m, lanes, value: m.write(
                operand, lanes, kind.encode(value).astype(number)
            )
        return lambda m, lanes, value: m.write(operand, lanes, wide.encode(value.astype(number)))

    # -- groups of instructions ------------------------------------------------------------------
    def _lanewise(self, opcode, operands) -> Step:
        operation = arithmetic.operation_of(opcode)
        target, *given = operands
        if len(given) != len(operation.sources):
            raise UnknownPtx(f"{'.'.join(opcode)} with {len(given)} sources")
        sources = [
            (self.source(operand, kind.bits), kind.decode)
            for operand, kind in zip(given, operation.sources, strict=True)
        ]
        function, names = operation.function, target.split("|")
        if len(names) != len(operation.results):
            raise UnknownPtx(f"{'.'.join(opcode)} into {target}")
        targets = [self.target(n, k) for n, k in zip(names, operation.results, strict=True)]
        if len(targets) == 1:
            (write,) = targets

            def step(machine, lanes):
                write(
                    machine,
                    lanes,
                    function(*[view(read(machine, lanes)) for read, view in sources]),
                )

            return step

        def step_of_two(machine, lanes):
            results = function(*[view(read(machine, lanes)) for read, view in sources])
            for write, result in zip(targets, results, strict=True):
                write(machine, lanes, result)

        return step_of_two

    def _parameter(self, opcode, operands) -> Step:
        kind, name = TYPES[opcode[-1]], operands[1].base
        write = self.target(operands[0], kind)
        if len(opcode) != 3 or operands[1].offset or name not in self.parameters:
            raise UnknownPtx(f"{'.'.join(opcode)} of {name}")
        store = BITS[kind.bits]
        return lambda machine, lanes: write(
            machine,
            lanes,
            kind.decode(np.array(machine.parameters[name] & ((1 << kind.bits) - 1), store)),
        )

    def _memory(self, instruction: Instruction) -> Step:
        name, space, *middle, kind_name = instruction.opcode
        if space not in ("global", "shared") or kind_name not in TYPES:
            raise UnknownPtx(str(instruction))
        counts = {(): 1, ("v2",): 2, ("v4",): 4, ("v8",): 8}
        if tuple(middle) not in counts:
            raise UnknownPtx(str(instruction))
        kind, count = TYPES[kind_name], counts[tuple(middle)]
        word, shared = kind.bits // 8, space == "shared"
        address, values = instruction.operands if name == "st" else instruction.operands[::-1]
        values = values if isinstance(values, tuple) else (values,)
        if not isinstance(address, Address) or len(values) != count:
            raise UnknownPtx(str(instruction))
        width = 32 if shared else 64
        base, offset = self.source(address.base, width), BITS[width](address.offset % (1 << width))

        def places(machine, lanes):
            return np.broadcast_to(base(machine, lanes) + offset, lanes.shape)

        if name == "ld":
            targets = [self.target(v, kind) for v in values]
            extra = {"used": instruction.used} if shared else {}

            def load(machine, lanes):
                memory = machine.shared if shared else machine.memory
                words = memory.load(places(machine, lanes), word, count, lanes, **extra)
                for i, write in enumerate(targets):
                    write(machine, lanes, kind.decode(words[:, i]))

            return load
        sources = [self.source(v, max(kind.bits, self.registers.get(v, 0))) for v in values]

        def store(machine, lanes):
            memory = machine.shared if shared else machine.memory
            words = np.empty((len(lanes), count), BITS[kind.bits])
            for i, read in enumerate(sources):
                words[:, i] = read(machine, lanes).astype(words.dtype)
            memory.store(places(machine, lanes), words, lanes)

        return store

    def _matrices(self, instruction: Instruction) -> Step:
        name, *form, number, space, kind = instruction.opcode
        address, values = instruction.operands if name == "stmatrix" else instruction.operands[::-1]
        known = (form, space, kind) == (["sync", "aligned", "m8n8"], "shared", "b16")
        if not known or number != f"x{len(values)}":
            raise UnknownPtx(str(instruction))
        base, offset = self.source(address.base, 32), np.uint32(address.offset)
        targets = [self.target(v) for v in values] if name == "ldmatrix" else []
        sources = [self.source(v, 32) for v in values] if name == "stmatrix" else []

        def step(machine, lanes):
            collective.demand_whole_warps(lanes, name)
            rows = np.broadcast_to(base(machine, lanes) + offset, lanes.shape)
            rows = rows.reshape(-1, collective.WARP)
            if (rows[:, : 8 * len(values)] & np.uint32(15)).any():
                raise Misaligned(f"{name} of a row that 16 does not divide")
            for i in range(len(values)):
                places = collective.matrix_places(rows, i).reshape(-1)
                if targets:
                    words = machine.shared.load(places, 4, 1, lanes)
                    targets[i](machine, lanes, words[:, 0])
                else:
                    words = np.broadcast_to(sources[i](machine, lanes), lanes.shape)
                    machine.shared.store(places, words[:, None], lanes)

        return step

    def _pack(self, opcode, operands) -> Step:
        kind, parts = TYPES[opcode[-1]], operands[1]
        bits = kind.bits // len(parts)
        sources = [self.source(part, bits) for part in parts]
        write, store = self.target(operands[0]), BITS[kind.bits]

        def step(machine, lanes):
            value = store(0)
            for i, read in enumerate(sources):
                value = value | read(machine, lanes).astype(store) << store(bits * i)
            write(machine, lanes, np.asarray(value))

        return step

    def _unpack(self, opcode, operands) -> Step:
        kind, parts = TYPES[opcode[-1]], operands[0]
        bits = kind.bits // len(parts)
        read, store = self.source(operands[1], kind.bits), BITS[kind.bits]
        targets = [self.target(part) for part in parts]

        def step(machine, lanes):
            value = read(machine, lanes)
            for i, write in enumerate(targets):
                write(machine, lanes, (value >> store(bits * i)) & store((1 << bits) - 1))

        return step

    def _shuffle(self, opcode, operands) -> Step:
        how, kind = opcode[2], opcode[3]
        target, value, amount, control, members = operands
        if kind != "b32" or members not in ("-1", "0xffffffff", "0xFFFFFFFF"):
            raise UnknownPtx(f"{'.'.join(opcode)} of {members}")
        names = target.split("|")
        read, by = self.source(value, 32), self.source(amount, 32)
        targets = [self.target(name) for name in names]
        control = int(immediate(control, 32))

        def step(machine, lanes):
            collective.demand_whole_warps(lanes, "shfl.sync")
            shape = (-1, collective.WARP)
            values = np.broadcast_to(read(machine, lanes), lanes.shape).reshape(shape)
            amounts = np.broadcast_to(by(machine, lanes), lanes.shape).reshape(shape)
            results = collective.shuffled(how, values, amounts, control)
            for write, result in zip(targets, results, strict=False):
                write(machine, lanes, np.broadcast_to(result, values.shape).reshape(-1))

        return step

    def _reduction(self, opcode, operands) -> Step:
        how, kind = opcode[2], TYPES[opcode[3]]
        target, value, members = operands
        read, mask = self.source(value, 32), self.source(members, 32)
        write = self.target(target, kind)

        def step(machine, lanes):
            collective.demand_whole_warps(lanes, "redux.sync")
            if (mask(machine, lanes) != np.uint32(0xFFFFFFFF)).any():
                raise UnknownPtx("redux.sync of a part of a warp")
            values = np.broadcast_to(read(machine, lanes), lanes.shape)
            values = kind.decode(values).reshape(-1, collective.WARP)
            write(machine, lanes, collective.reduced(how, values).reshape(-1))

        return step
