"""The host's microseconds a call, without a GPU: `python -m benchmarks.host`.

Every call goes the whole way to the driver: checks, dispatcher, keys of the launch and Triton's
launcher, compiled for sm_90. The driver is a stub, so that nothing runs and nothing waits. Beside
it, in turn, the same call through Triton's own binder.
"""

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from benchmarks.harness import environment, harness, output, selection
from benchmarks.harness.schema import Equality

if TYPE_CHECKING:
    from benchmarks.host.driver import StubDriver

SUITE = "host"
_CALLS = 50  # of one timing
_BASELINE = "through Triton's binder"
_TIMED = f"process time of a call, the mean of {_CALLS}, over a driver that does nothing"
_NOT_TIMED = "the device, which there is none of; compilation"
_METRIC = "which function, how many programs, threads and bytes of shared memory the driver is told"


def burst(call: Callable[[], object], stub: "StubDriver", cached: bool) -> harness.Run:
    """Many calls, with or without what launches remember; what the driver was told last."""
    from fastadv.kernels import launching

    is_altered = launching._is_altered if cached else lambda kernel: True

    def run() -> torch.Tensor:
        before, launching._is_altered = launching._is_altered, is_altered
        try:
            for _ in range(_CALLS):
                call()
        finally:
            launching._is_altered = before
        return torch.tensor(stub.last_launch())

    return run


def same_launch(expected: torch.Tensor) -> harness.Check:
    """The same function, programs, threads and shared memory as Triton's own call."""

    def check(name: str, launch: torch.Tensor) -> Equality:
        return Equality(harness.max_difference(launch, expected), 0.0, _METRIC, _BASELINE)

    return check


def _clock(run: Callable[[], object]) -> float:
    """Seconds of this process in one call: others on the machine do not count."""
    start = time.process_time()
    run()
    return (time.process_time() - start) / _CALLS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--ops", default="", help="time the calls whose name matches this regex")
    parser.add_argument("--rounds", type=int, default=500)
    output.add_option(parser)
    options = parser.parse_args(arguments)
    from benchmarks.host import calls, driver

    stub = driver.install()
    torch.set_num_threads(1)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.host", arguments=arguments
    )
    known = calls.calls()
    rows = []
    for name in selection.matching(options.ops, known, option="--ops"):
        call = known[name]
        description = harness.Case(
            suite=SUITE,
            name=name,
            shape=calls.SHAPE,
            dtype="float32",
            n=calls.SHAPE[0],
            timed=_TIMED,
            not_timed=_NOT_TIMED,
            baseline=_BASELINE,
            unit="us",
        )
        runs = {name: burst(call, stub, name == "fastadv") for name in ("fastadv", _BASELINE)}
        timing = harness.Timing(options.rounds, warmup=3, clock=_clock)
        print(name)
        found = harness.measure(description, runs, same_launch(runs[_BASELINE]()), where, timing)
        harness.print_rows(found)
        rows += found
    output.record(rows, options.results)


if __name__ == "__main__":
    main()
