"""`fastadv info --check`: a table of every kernel against its reference."""

import warnings

import typer

from fastadv.selfcheck import comparison
from fastadv.selfcheck.comparison import Target

_COLUMNS = "{:<22} {:>5}  {:>10}  {:>9}  {:>7}  {}"


def run_and_print() -> None:
    """Print a table for each of what can run here; exit code 1 if a result is wrong."""
    targets = comparison.targets()
    if not any(target.kind == "kernel" for target in targets):
        print(
            "\nno kernel to check: there is no GPU that Triton could compile for, and "
            "TRITON_INTERPRET=1, under which it would interpret them, is not set"
        )
    wrong = [name for target in targets for name in _wrong_ones(target)]
    if wrong:
        print(f"\nwrong: {', '.join(wrong)}")
        raise typer.Exit(1)


def _wrong_ones(target: Target) -> list[str]:
    print(f"\n{target}, against the eager references:")
    print(_COLUMNS.format("op", "forms", "difference", "tolerance", "seconds", "verdict"))
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of attacks on the small model whose calls are recorded
        for one in comparison.verdicts(target):
            apart, allowed = f"{one.worst.largest:.2g}", f"{one.tolerance:.2g}"
            said = "right" if one.is_right else f"WRONG in {one.worst.where}"
            if one.failure:
                apart, said = "-", f"FAILS: {one.failure}"
            seconds = f"{one.seconds:.2f}"
            print(_COLUMNS.format(one.op, one.forms, apart, allowed, seconds, said), flush=True)
            if not one.is_right:
                wrong.append(one.op)
    return wrong
