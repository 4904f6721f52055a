"""Interleaved timing: equality first, then all providers of a case in turn, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.harness.schema import Bandwidth, Environment, Equality, Robustness, Row

_FLUSH_BYTES = 256 * 2**20  # several times the L2 of an H200 (50 MiB) or B200 (126 MiB)
_UNITS = {"ms": 1e3, "us": 1e6}

Run = Callable[[], torch.Tensor]
Clock = Callable[[Callable[[], object]], float]
# (provider, its output) -> Equality, which raises ValueError beyond its tolerance
Check = Callable[[str, torch.Tensor], Equality]


@dataclass(frozen=True)
class Case:
    """What the rows of one comparison have in common; see `Row` for the fields."""

    suite: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    n: int
    timed: str
    not_timed: str
    baseline: str
    unit: str = "ms"
    bytes_moved: int | None = None


@dataclass(frozen=True)
class Timing:
    """How calls are timed. seconds: no new round begins after them, but for a first one.

    clock: in place of the device's. flush: evict the GPU's L2 cache before every call.
    """

    rounds: int
    warmup: int = 1
    seconds: float | None = None
    clock: Clock | None = None
    flush: bool = False

    def clock_of(self, device: torch.device) -> Clock:
        if self.clock is not None:
            return self.clock
        return cuda_clock(device, flush=self.flush) if device.type == "cuda" else cpu_clock


def measure(
    case: Case,
    providers: Mapping[str, Run],
    check: Check,
    environment: Environment,
    timing: Timing,
    *,
    copy_gb_s: float | None = None,
    robustness: Callable[[torch.Tensor], Robustness] | None = None,
    extra: Callable[[torch.Tensor], dict[str, float]] | None = None,
    on_refusal: Callable[[str, Exception], None] | None = None,
) -> list[Row]:
    """The rows of a case. Every provider is compared with the reference before any is timed.

    check raises ValueError for a provider whose result is too far from the reference. on_refusal:
    is told of a provider that raises or is too far off, which is then left out; the first of the
    others is the baseline if that was it. None lets it raise.
    """
    if case.baseline not in providers:
        raise ValueError(f"baseline {case.baseline!r} must be one of {list(providers)}")
    equalities, accuracies, extras = {}, {}, {}
    device = torch.device("cpu")
    for name, run in providers.items():
        try:
            output = run()
            equalities[name] = _checked(check, name, output)
        except Exception as error:
            if on_refusal is None:
                raise
            on_refusal(name, error)
            continue
        accuracies[name] = robustness(output) if robustness else None
        extras[name] = extra(output) if extra else {}
        device = output.device
        del output
    providers = {name: providers[name] for name in equalities}
    if not providers:
        return []
    if case.baseline not in providers:
        case = replace(case, baseline=next(iter(providers)))
    times = time_interleaved(
        providers,
        rounds=timing.rounds,
        warmup=timing.warmup,
        clock=timing.clock_of(device),
        seconds=timing.seconds,
    )
    scale = _UNITS[case.unit]
    rows = []
    for name, own in times.items():
        q20, q50, q80 = quantiles(own)
        paired = zip(times[case.baseline], own, strict=True)
        bandwidth = None
        if case.bytes_moved is not None and copy_gb_s is not None:
            reached = case.bytes_moved / q50 / 1e9
            bandwidth = Bandwidth(
                case.bytes_moved, round(copy_gb_s, 3), round(100 * reached / copy_gb_s, 1)
            )
        rows.append(
            Row(
                suite=case.suite,
                case=case.name,
                provider=name,
                shape=case.shape,
                dtype=case.dtype,
                n=case.n,
                rounds=len(own),
                q20=_short(q20 * scale),
                q50=_short(q50 * scale),
                q80=_short(q80 * scale),
                unit=case.unit,
                timed=case.timed,
                not_timed=case.not_timed,
                baseline=case.baseline,
                ratio=_short(statistics.median(base / mine for base, mine in paired)),
                equality=equalities[name],
                environment=environment,
                robustness=accuracies[name],
                bandwidth=bandwidth,
                extra=extras[name],
            )
        )
    return rows


def _checked(check: Check, name: str, output: torch.Tensor) -> Equality:
    try:
        return check(name, output)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def print_rows(rows: list[Row]) -> None:
    for row in rows:
        more = ""
        if row.robustness:
            more = f"  robust {100 * row.robustness.robust_accuracy:.2f} %"
        if row.bandwidth:
            more = f"  {row.bandwidth.percent_of_copy:.1f} % of copy"
        print(
            f"  {row.provider:30} {row.q50:10.4g} {row.unit} ({row.q20:.4g} to {row.q80:.4g})"
            f"  x{row.ratio:.3g} of {row.baseline}  error {row.equality.error:.2g}{more}"
        )


def time_interleaved(
    providers: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    clock: Clock,
    seconds: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call: round r begins with provider r, r + 1, ... in turn.

    Slow drift of a machine (clocks, other processes) then hits all providers alike, and none always
    runs behind the same neighbour's cache. Warm-up rounds are rotated too, and thrown away.
    seconds: no round begins after so many, but for a first one that is kept.
    """
    names = list(providers)
    times: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for turn in range(warmup + rounds):
        is_late = seconds is not None and time.perf_counter() - began > seconds
        if is_late and turn > warmup:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            spent = clock(providers[name])
            if turn >= warmup:
                times[name].append(spent)
    return times


def cpu_clock(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_clock(device: torch.device, *, flush: bool) -> Clock:
    """A clock of CUDA events; with flush, L2 is overwritten first, which also hides the launch."""
    buffer = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if flush else None

    def clock(run: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        if buffer is not None:
            buffer.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return clock


def host_clock(device: torch.device, *, calls: int) -> Clock:
    """Seconds of the host in one of `calls` calls, which the device is not waited for."""

    def clock(run: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    return clock


def quantiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """(q20, q50, q80), each an observed time or the middle of two."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return ordered[round(0.2 * last)], statistics.median(ordered), ordered[round(0.8 * last)]


def copy_bandwidth(
    device: torch.device, *, elements: int, rounds: int = 20, flush: bool = False
) -> float:
    """GB/s of torch's own copy of fp32 tensors of `elements`: bytes read plus bytes written."""
    source = torch.rand(elements, device=device)
    target = torch.empty_like(source)
    clock = cuda_clock(device, flush=flush) if device.type == "cuda" else cpu_clock
    times = time_interleaved(
        {"copy": lambda: target.copy_(source)}, rounds=rounds, warmup=3, clock=clock
    )
    return 2 * source.nbytes / quantiles(times["copy"])[1] / 1e9


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| in float64; infinite where one of them has NaN."""
    worst = (a.double() - b.double()).abs().nan_to_num(nan=float("inf"))
    return float(worst.max()) if worst.numel() else 0.0


def _short(value: float) -> float:
    return float(f"{value:.4g}")
