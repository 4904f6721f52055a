"""PTX text -> Program: the one entry of a module as instructions, labels and registers."""

import re
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.]*(?:::[\w.]+)*)\s*(.*)", re.S)
_LABEL = re.compile(r"(\$\w+):")
_PARAMETER = re.compile(r"\.param\s+\.([a-z]\d+)\s.*?(\w+)\s*(?:,|$)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([%\w]+)(?:<(\d+)>)?")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.M)
_IGNORED = (".loc", ".pragma", ".file", ".section")
_WIDTHS = {"pred": 1, "b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64}


class UnknownPtx(Exception):
    """Text that the parser, or an instruction that the machine, does not know."""


@dataclass(frozen=True)
class Address:
    """[base + offset], a register or the name of a parameter or of shared memory."""

    base: str
    offset: int


@dataclass(frozen=True)
class Instruction:
    """opcode: its parts, ("setp", "lt", "f32"); operands: str, Address, or a tuple for {a, b}.

    guard: the predicate that lanes must have, or None. source: "linf.py:54". used: of a load, which
    bytes anything depends on, where the compiler says so.
    """

    opcode: tuple[str, ...]
    operands: tuple
    guard: str | None = None
    negated: bool = False
    source: str = ""
    used: int | None = None

    def __str__(self) -> str:
        return f"{'.'.join(self.opcode)} at {self.source or 'an unknown line'}"


@dataclass
class Program:
    """An entry: `parameters` are (name, type), `registers` their widths in bits (predicates: 1)."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    threads: int
    registers: dict[str, int] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def parse(ptx: str) -> Program:
    """The program of a module with one entry; raises UnknownPtx for what it does not know."""
    entries = ptx.split(".visible .entry ")
    if len(entries) != 2:
        raise UnknownPtx(f"one entry expected; got {len(entries) - 1}")
    head, body = entries[1].split("\n{", 1)
    threads = re.search(r"\.reqntid (\d+)", head)
    if threads is None:
        raise UnknownPtx("an entry without .reqntid")
    parameters = tuple((m[2], m[1]) for m in map(_PARAMETER.search, head.splitlines()) if m)
    program = Program(head.split("(", 1)[0].strip(), parameters, int(threads[1]))
    files = {n: name.rsplit("/", 1)[-1] for n, name in _FILE.findall(ptx)}
    _Reader(program, files).read(body.split("\n}", 1)[0])
    return program


class _Reader:
    def __init__(self, program: Program, files: dict[str, str]) -> None:
        self.program, self.files = program, files
        self.source, self.used = "", None
        self.scopes: list[dict[str, str]] = []  # names that a { .reg ... } block declares
        self.blocks = 0

    def read(self, body: str) -> None:
        for line in body.splitlines():
            for statement in line.split("//")[0].split(";"):
                self._statement(statement.strip())
        missing = {
            i.operands[0] for i in self.program.code if i.opcode[0] == "bra"
        } - self.program.labels.keys()
        if missing:
            raise UnknownPtx(f"branches to labels that are nowhere: {sorted(missing)}")

    def _statement(self, text: str) -> None:
        while text[:1] in ("{", "}"):
            self._scope(text[0])
            text = text[1:].strip()
        label = _LABEL.match(text)
        if label:
            self.program.labels[label[1]] = len(self.program.code)
            text = text[label.end() :].strip()
        if not text:
            return
        if text.startswith(".reg"):
            self._declare(text)
        elif text.startswith("."):
            self._directive(text)
        else:
            self._instruction(text)

    def _scope(self, brace: str) -> None:
        if brace == "{":
            self.blocks += 1
            self.scopes.append({})
        else:
            self.scopes.pop()

    def _declare(self, text: str) -> None:
        found = _REGISTERS.match(text)
        if found is None or found[1] not in _WIDTHS:
            raise UnknownPtx(text)
        width, name, count = _WIDTHS[found[1]], found[2], found[3]
        if count is not None:
            self.program.registers |= {f"{name}{i}": width for i in range(int(count))}
            return
        unique = f"{name}@{self.blocks}"
        self.scopes[-1][name] = unique
        self.program.registers[unique] = width

    def _directive(self, text: str) -> None:
        if not text.startswith(_IGNORED):
            raise UnknownPtx(text)
        if text.startswith(".loc"):
            _, file, line = text.split()[:3]
            self.source = f"{self.files.get(file, '?')}:{line}"
        mask = re.search(r"used_bytes_mask (0x[0-9a-f]+)", text)
        if mask:
            self.used = int(mask[1], 16)

    def _instruction(self, text: str) -> None:
        negated, guard, opcode, rest = _matched(text)
        operands = tuple(self._operand(part) for part in _split(rest))
        guard = None if guard is None else self._named(guard)
        # "shared::cta", as Triton 3.8 has it, is what "shared" stands for
        parts = tuple(opcode.replace("::cta", "").split("."))
        self.program.code.append(
            Instruction(parts, operands, guard, bool(negated), self.source, self.used)
        )
        self.used = None

    def _operand(self, text: str):
        if text.startswith("{"):
            return tuple(self._operand(part) for part in _split(text[1:-1]))
        if text.startswith("["):
            base, _, offset = text[1:-1].replace(" ", "").partition("+")
            return Address(self._named(base), int(offset or 0))
        return "|".join(self._named(name) for name in text.split("|"))

    def _named(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name


def _matched(text: str):
    found = _INSTRUCTION.fullmatch(text)
    if found is None:
        raise UnknownPtx(text)
    return found.groups()


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts = re.split(r",(?![^{\[]*[}\]])", text)
    return [part.strip() for part in parts if part.strip()]
