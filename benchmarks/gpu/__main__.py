"""All measurements of a GPU machine: `python -m benchmarks.gpu --minutes 8 --out DIR`.

Sections, in this order, each with a share of the minutes: tests (what needs a GPU), ops
(roofline), attacks (PGD from end to end), autoattack, training, steps (launches, synchronisations),
sanitizer. What one leaves over the next may use; one that is late is interrupted, one that breaks
is reported, and the next runs. Needs no network; survives without torchattacks, foolbox, the
authors' AutoAttack, xdist and compute-sanitizer. Under DIR: results/<device>/gpu_*.jsonl, a row
appended as it is measured; report.txt, all that was printed; checks.txt, output of the tests and of
the sanitizer; errors.txt, tracebacks. The bars at the end count speed-runs whose rows lie there.

    python -m benchmarks.gpu --minutes 8 --out DIR
    python -m benchmarks.gpu --minutes 9 --out DIR --only autoattack --authors DIR --data DIR
    python -m benchmarks.gpu --out DIR --device cpu       # a rehearsal, small shapes
    python -m benchmarks.training.speedrun --dataset cifar10 --data DIR --seeds 5 --results DIR/out
    python -m benchmarks.gpu --out DIR --only table       # of the rows that are there
"""

import argparse
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu import checks as gpu_checks
from benchmarks.gpu import process as gpu_process
from benchmarks.gpu import screen as gpu_screen
from benchmarks.gpu.budget import Budget
from benchmarks.gpu.section import MODULES, SHARES
from benchmarks.gpu.session import DEVICE_LOST, Plan
from benchmarks.harness import environment, schema

REPORT = "report.txt"
_SUITES = tuple(f"gpu_{name}" for name in MODULES)
_PEERS = ["torchattacks", "foolbox"]
_ATTEMPTS = 3  # of a section that loses the device


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    names = options.only or [*SHARES, "table"]
    device = torch.device(options.device) if options.device else environment.default_device()
    screen = gpu_screen.Screen(out / REPORT)
    if names == ["table"]:
        _table(screen, out, {})
        return 0
    budget = Budget(60 * options.minutes, {n: s for n, s in SHARES.items() if n in names})
    where = environment.describe(
        _PEERS, device=device, module="benchmarks.gpu", arguments=arguments
    )
    if options.commit:
        where = replace(where, commit=options.commit)
    screen.line(f"{where.device}, {where.versions}, commit {where.commit}, {where.date}")
    numbers: dict[str, float] = {}
    states: dict[str, str] = {}
    for name in SHARES:
        if name not in names:
            continue
        seconds = budget.grant(name)
        screen.line(f"\n== {name}: {seconds:.0f} s of {60 * options.minutes:.0f}")
        try:
            states[name] = "skipped: no time left"
            if seconds and name in MODULES:
                states[name] = _section(name, seconds, device, where, out, options, budget)
            elif seconds:
                check = gpu_checks.tests if name == "tests" else gpu_checks.sanitizer
                outcome = check(out, seconds, on_gpu=device.type == "cuda")
                numbers |= outcome.numbers
                states[name] = outcome.state
        except KeyboardInterrupt:
            states[name] = "interrupted"
            break
        except Exception as error:  # of this program: the other sections are worth having
            states[name] = f"FAILED: {type(error).__name__}: {error}"
        screen.line(f"   {name}: {states[name]} ({budget.elapsed:.0f} s since the start)")
    _table(screen, out, numbers, date=where.date)
    if device.type != "cuda":
        screen.line("a rehearsal on small shapes: its times and verdicts mean nothing")
    screen.cells("sections", ["section", "state"], [[n, s] for n, s in states.items()])
    return 130 if "interrupted" in states.values() else 0


def _section(
    name: str,
    seconds: float,
    device: torch.device,
    where: schema.Environment,
    out: Path,
    options: argparse.Namespace,
    budget: Budget,
) -> str:
    """Run a section's process, and a new one behind the case that lost it the device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        began = budget.elapsed
        attempts, status = 0, DEVICE_LOST
        # a negative status is a signal: a crash in a kernel's host code
        while attempts < _ATTEMPTS and (status == DEVICE_LOST or status < 0):
            attempts += 1
            left = seconds - (budget.elapsed - began)
            Plan(
                section=name,
                device=str(device),
                tiny=device.type != "cuda",
                seconds=left - 2,
                out=str(out),
                begun=str(Path(folder) / "begun.txt"),
                environment=asdict(where),
                authors=None if options.authors is None else str(options.authors.resolve()),
                data=None if options.data is None else str(options.data.resolve()),
            ).write(file)
            command = [sys.executable, "-m", "benchmarks.gpu.section", str(file)]
            quiet = {"KINETO_LOG_LEVEL": "99"}  # the profiler prints to the screen
            status = gpu_process.run(
                command, seconds=left, log=out / REPORT, show=True, variables=quiet
            )
            if status is None:
                return "stopped at the time limit"
        more = f", {attempts} processes: the device was lost" if attempts > 1 else ""
        return ("done" if status == 0 else f"exit status {status}, see errors.txt") + more


def _table(
    screen: gpu_screen.Screen, out: Path, numbers: dict[str, float], date: str | None = None
) -> None:
    """The tables of the rows under out: those of this run, else the newest of each suite."""
    rows = []
    for suite in _SUITES:
        found = schema.read_rows(suite, out / "results")
        own = [row for row in found if row.environment.date == date]
        rows += schema.newest_run(found) if date is None else own
    screen.rows(rows)
    # each a command of its own: python -m benchmarks.training.speedrun --results DIR/results
    found = schema.read_rows("speedrun", out / "results")
    for case in dict.fromkeys(row.case for row in found):
        rows += schema.newest_run([row for row in found if row.case == case])
    screen.cells("bars", gpu_bars.HEADS, gpu_bars.judged(rows, numbers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole run")
    parser.add_argument("--out", type=Path, required=True, help="folder for rows and reports")
    parser.add_argument("--only", nargs="+", choices=[*SHARES, "table"], metavar="SECTION")
    parser.add_argument("--device", help='"cpu" rehearses on small shapes; the GPU if there is one')
    parser.add_argument("--authors", type=Path, help="folder with the authors' package autoattack")
    parser.add_argument("--commit", help="of this tree, where there is no git to ask")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
