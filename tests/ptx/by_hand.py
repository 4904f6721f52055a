"""PTX written by hand: a module around a few instructions, run on numpy arrays."""

import numpy as np

from . import machine
from .memory import GlobalMemory

_REGISTERS = {1: "%rs", 2: "%rs", 4: "%r", 8: "%rd"}


def module(body: str, arrays: int, threads: int = 32) -> str:
    """An entry over `arrays` pointers, which are in %rd0, %rd1, ...; %r0 is the lane of its CTA,
    %r1 the CTA, %rd9 four times the lane."""
    parameters = ",\n".join(f"\t.param .u64 .ptr .global k_param_{i}" for i in range(arrays))
    loads = "\n".join(f"ld.param.b64 %rd{i}, [k_param_{i}];" for i in range(arrays))
    return f"""
.version 8.7
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
{parameters}
)
.reqntid {threads}
{{
    .reg .pred %p<20>;
    .reg .b16 %rs<40>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<40>;
    .loc 1 1 0
    {loads}
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd9, %r0, 4;
    .loc 1 2 0
    {body}
    ret;
}}
.file 1 "/somewhere/by_hand.py"
"""


def run(body: str, *arrays: np.ndarray, threads=32, grid=1, shared=0, order=None) -> machine.Counts:
    """Execute `body` in every CTA; it may write to the arrays."""
    code = machine.load(module(body, len(arrays), threads))
    memory = GlobalMemory(machine.race_log(code, grid))
    addresses = [memory.map(a.reshape(-1).view(np.uint8), 0, a.nbytes, a.itemsize) for a in arrays]
    parameters = {f"k_param_{i}": address for i, address in enumerate(addresses)}
    return machine.launch(code, grid, parameters, memory, shared_bytes=shared, order=order)


def computed(instructions: str, *inputs, into) -> np.ndarray:
    """What `instructions` compute of the inputs, lane by lane: {0} is the result's register, {1},
    {2}, ... are the inputs'. into: the result's numpy type."""
    inputs = [np.asarray(a) for a in inputs]
    count = max(len(a) for a in inputs)
    lanes = [np.resize(a, 32) for a in inputs]
    result = np.zeros(32, into)
    arrays = [result, *lanes]
    names = [f"{_REGISTERS[a.itemsize]}{20 + i}" for i, a in enumerate(arrays)]
    body = []
    for i, (array, name) in enumerate(zip(arrays, names, strict=True)):
        body.append(f"mul.wide.u32 %rd{20 + i + 10}, %r0, {array.itemsize};")
        body.append(f"add.s64 %rd{20 + i + 10}, %rd{20 + i + 10}, %rd{i};")
        if i > 0:
            body.append(f"ld.global.b{8 * array.itemsize} {name}, [%rd{30 + i}];")
    body.append(instructions.format(*names) + ";")
    body.append(f"st.global.b{8 * result.itemsize} [%rd30], {names[0]};")
    run("\n".join(body), *arrays)
    return result[:count]


def applied(opcode: str, *inputs, into) -> np.ndarray:
    """`computed` of one instruction that takes all inputs in their order."""
    slots = ", ".join(f"{{{i}}}" for i in range(len(inputs) + 1))
    return computed(f"{opcode} {slots}", *inputs, into=into)
