"""Compiles kernels ahead of time and prints what each compilation used, a line of JSON each.

    python tests/kernels/ahead_of_time.py steps.linf fab.step ...

A script, and without TRITON_INTERPRET: an interpreted kernel cannot be compiled. sm_90, of which
most is asserted, gets every case. Another target gets cases that have between them each value of
each parameter of each kernel, and those that come near the limit of registers; every case too with
FASTADV_AOT=all, say for a new Triton.
"""

import importlib
import json
import os
import sys

from fastadv.kernels import aot

# on sm_80 and sm_100 no case takes more than 29 registers above what it takes on sm_90
_NEAR_THE_LIMIT = 128 - 38


def values_of(case: aot.AotCase) -> set[tuple[str, ...]]:
    """What the compiler is told: constants, types, what 16 does not divide, warps."""
    arguments = [name for name in case.kernel.arg_names if name not in case.constants]
    told = [(name, str(value)) for name, value in case.constants.items()]
    told += [(name, case.signature[name]) for name in arguments]
    told += [(name, "unaligned") for name in case.unaligned if name in arguments]
    told.append(("num_warps", str(case.num_warps)))
    return {(case.kernel.fn.__name__, *pair) for pair in told}


def chosen(cases: list[aot.AotCase], registers: list[int]) -> list[aot.AotCase]:
    """Few cases with every value, and all that take many registers."""
    values = [values_of(case) for case in cases]
    taken = {i for i, count in enumerate(registers) if count > _NEAR_THE_LIMIT}
    missing = set().union(*values).difference(*(values[i] for i in taken))
    while missing:
        best = max(range(len(cases)), key=lambda i: len(values[i] & missing))
        taken.add(best)
        missing -= values[best]
    return [cases[i] for i in sorted(taken)]


def compile_module(module: str) -> None:
    cases = importlib.import_module(f"fastadv.kernels.{module}").aot_cases()
    registers = [_compile(module, case, "sm_90").registers for case in cases]
    others = cases if os.environ.get("FASTADV_AOT") == "all" else chosen(cases, registers)
    for target in aot.TARGETS:
        if target != "sm_90":
            for case in others:
                _compile(module, case, target)


def _compile(module: str, case: aot.AotCase, target: str) -> aot.Resources:
    used = aot.compile_case(case, target)
    row = dict(module=module, case=case.name, vectorised=case.vectorised, target=target)
    print(json.dumps(row | dict(values=sorted(values_of(case))) | used._asdict()))
    return used


if __name__ == "__main__":
    for name in sys.argv[1:]:
        compile_module(name)
