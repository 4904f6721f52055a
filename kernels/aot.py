"""Compiles kernels ahead of time, without a GPU, and reads what the machine code uses."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .compilation import options_for

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class AotCase:
    """One specialisation of a kernel: argument types, constants, and what the test demands of it.

    signature: argument name -> "*fp32", "fp64", "i32", ...; every argument is taken to be divisible
    by 16 but those in `unaligned`. vectorised: sm_90 must load and store 128 bits at a time.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    unaligned: tuple[str, ...] = ()
    vectorised: bool = False


# what the arguments of these names hold in every kernel, beside fp32
_USUAL = {
    "slots_ptr": "*i32", "labels_ptr": "*i64", "prediction_ptr": "*i64", "correct_ptr": "*u1",
    "pulled_ptr": "*u1", "sample_ids_ptr": "*i64", "input_ptr": "*bf16",
}  # fmt: skip


def argument_types(kernel: Any, **others: str) -> dict[str, str]:
    """Types of a kernel's arguments: scalars as annotated, else "i32"; pointers by their usual
    names, else "*fp32"; but for `others`."""
    annotated = {n: t for n, t in kernel.fn.__annotations__.items() if isinstance(t, str)}
    types = {
        n: _USUAL.get(n, "*fp32") if n.endswith("_ptr") else annotated.get(n, "i32")
        for n in kernel.arg_names
    }
    return types | others


class Resources(NamedTuple):
    """Registers and stack bytes of a thread; `wide_*` count 128-bit global accesses.

    long_products: 64-bit integer multiplications, as row * size needs beyond 2^31 elements.
    """

    registers: int
    stack_bytes: int
    wide_loads: int
    wide_stores: int
    narrow_accesses: int
    long_products: int


def compile_case(case: AotCase, target: str) -> Resources:
    """Compile for one of TARGETS; needs a process without TRITON_INTERPRET."""
    arguments = case.kernel.arg_names
    signature = {n: "constexpr" if n in case.constants else case.signature[n] for n in arguments}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(arguments)
        if n not in case.constants and n not in case.unaligned and signature[n][0] in "*i"
    }
    constants = {(arguments.index(n),): value for n, value in case.constants.items()}
    compiled = triton.compile(
        ASTSource(case.kernel, signature, constants, aligned),
        target=TARGETS[target],
        options={"num_warps": case.num_warps, **options_for(TARGETS[target].backend)},
    )
    long_products = len(re.findall(r"arith\.muli [^\n]*: i64", compiled.asm["ttir"]))
    if TARGETS[target].backend == "hip":
        return _read_amdgcn(compiled.asm["amdgcn"], long_products)
    return _read_ptx(compiled.asm["ptx"], compiled.asm["cubin"], long_products)


def _read_ptx(ptx: str, cubin: bytes, long_products: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(cubin)
        binary.flush()
        usage = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", binary.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack = int(found[1]), int(found[2]) + int(found[3])  # spills lie on the stack
    wide = {kind: len(re.findall(rf"{kind}\.global[^;]*\.v4\.b32", ptx)) for kind in ("ld", "st")}
    wide = {k: n + len(re.findall(rf"{k}\.global[^;]*\.v2\.b64", ptx)) for k, n in wide.items()}
    every = len(re.findall(r"(?:ld|st)\.global", ptx))
    narrow = every - wide["ld"] - wide["st"]
    return Resources(registers, stack, wide["ld"], wide["st"], narrow, long_products)


def _read_amdgcn(text: str, long_products: int) -> Resources:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        assert found is not None, name
        return int(found[1])

    loads = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
    stores = len(re.findall(r"(?:global|buffer)_store_dwordx4", text))
    every = len(re.findall(r"(?:global|buffer)_(?:load|store)_", text))
    stack = field("private_segment_fixed_size") + field("vgpr_spill_count")
    narrow = every - loads - stores
    return Resources(field("vgpr_count"), stack, loads, stores, narrow, long_products)
