"""The host's microseconds a call, without a GPU: `python -m benchmarks.host`.

Ops go the whole way to the driver: checks, dispatcher, keys of the launch and Triton's launcher,
compiled for sm_90. The driver is a stub, so that nothing runs and nothing waits. Beside each call,
in turn, the same without what makes it fast: launches through Triton's own binder; for a graphed
training step, whose replay does nothing here, all facts read at every step.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from benchmarks.harness import environment, harness, output, selection
from benchmarks.harness.schema import Equality

if TYPE_CHECKING:
    from benchmarks.host.cases import HostCase

SUITE = "host"
_CALLS = 50  # of one timing
_TIMED = f"process time of a call, the mean of {_CALLS}"
_NOT_TIMED = "the device, which there is none of; compilation"


def burst(case: "HostCase", without: bool) -> harness.Run:
    """Many calls, and what they came to."""

    def run() -> torch.Tensor:
        with case.without() if without else contextlib.nullcontext():
            for _ in range(_CALLS):
                case.call()
        return case.outcome()

    return run


def same_outcome(case: "HostCase", expected: torch.Tensor) -> harness.Check:
    def check(name: str, outcome: torch.Tensor) -> Equality:
        return Equality(harness.max_difference(outcome, expected), 0.0, case.metric, case.baseline)

    return check


def _clock(run: Callable[[], object]) -> float:
    """Seconds of this process in one call: others on the machine do not count."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / _CALLS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--ops", default="", help="time the calls whose name matches this regex")
    parser.add_argument("--rounds", type=int, default=200)
    output.add_option(parser)
    options = parser.parse_args(arguments)
    from benchmarks.host import cases, driver

    torch.set_num_threads(1)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.host", arguments=arguments
    )
    known = cases.cases(driver.install())
    rows = []
    for name in selection.matching(options.ops, known, option="--ops"):
        case = known[name]
        description = harness.Case(
            suite=SUITE,
            name=name,
            shape=case.shape,
            dtype="float32",
            n=case.shape[0],
            timed=_TIMED,
            not_timed=_NOT_TIMED,
            baseline=case.baseline,
            unit="us",
        )
        runs = {cases.OWN: burst(case, without=False), case.baseline: burst(case, without=True)}
        check = same_outcome(case, runs[case.baseline]())
        timing = harness.Timing(options.rounds, warmup=3, clock=_clock)
        print(name)
        found = harness.measure(description, runs, check, where, timing)
        harness.print_rows(found)
        rows += found
    output.record(rows, options.results)


if __name__ == "__main__":
    main()
