"""Sections "tests" and "sanitizer": what says that the kernels are right on this device."""

import importlib.util
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import process as gpu_process

CHECKS = "checks.txt"
# what touches a device, and that alone: what only a GPU has first, then every op; the rest of the
# suite runs as well without one
TESTS = (
    "tests/attacks/test_attacks_on_cuda.py",
    "tests/attacks/test_fast_attacks_on_cuda.py",
    "tests/training/test_graphed_cuda.py",
    "tests/graphs",
    "tests/ops",
)
_TINY = ("tests/test_quantise.py",)
_WORKERS = 8
_OUTCOME = re.compile(r"(?:^|\s)(PASSED|FAILED|ERROR|SKIPPED)(?:\s|$)")


@dataclass(frozen=True)
class Outcome:
    """What a check found. state: in words; numbers: by name, for the table."""

    state: str
    numbers: dict[str, float]


def tests(out: Path, seconds: float, *, on_gpu: bool) -> Outcome:
    """pytest in a process of its own, its failures and summary in checks.txt."""
    if importlib.util.find_spec("pytest") is None:
        return Outcome("not run: pytest is not installed", {})
    wanted = [path for path in (TESTS if on_gpu else _TINY) if (gpu_process.ROOT / path).exists()]
    # -vv undoes the -q of the settings: a line a test, so that a kill leaves the outcomes. What
    # another torch deprecates is no failure of a kernel
    command = [
        sys.executable,
        "-m",
        "pytest",
        *wanted,
        "-vv",
        "--tb=short",
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        "-W",
        "ignore::DeprecationWarning",
        "-W",
        "ignore::FutureWarning",
    ]
    if on_gpu and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(_WORKERS), "--dist", "worksteal"]
    log = out / CHECKS
    before = _size(log)
    variables = {"FASTADV_BACKEND": None, "TRITON_INTERPRET": None}
    status = gpu_process.run(command, seconds=seconds, log=log, show=False, variables=variables)
    text = _since(log, before)
    counts = {"PASSED": 0, "FAILED": 0, "ERROR": 0, "SKIPPED": 0}
    # the summary at the end repeats failures: those lines begin with the word
    for line in text.partition("short test summary info")[0].splitlines():
        found = _OUTCOME.search(line)
        if found and "::" in line:
            counts[found[1]] += 1
    broken = re.search(r"/ (\d+) errors?\b", text)  # files that cannot be collected
    counts["ERROR"] += int(broken[1]) if broken else 0
    for line in _failures(text)[:20]:
        print(f"  {line}")
    numbers = {f"tests {word.lower()}": float(count) for word, count in counts.items()}
    said = ", ".join(f"{count} {word.lower()}" for word, count in counts.items())
    ending = "stopped at the time limit" if status is None else f"exit status {status}"
    return Outcome(f"{said}; {ending}", numbers)


def _failures(text: str) -> list[str]:
    summary = text.partition("short test summary info")[2]
    return [line[:200] for line in summary.splitlines() if line.startswith(("FAILED", "ERROR"))]


def sanitizer(
    out: Path, seconds: float, *, on_gpu: bool, find: Callable[[str], str | None] = shutil.which
) -> Outcome:
    """memcheck and racecheck of every kernel once on odd shapes, `gpu_ops.exercise`."""
    tool = find("compute-sanitizer")
    target = [sys.executable, "-m", "benchmarks.gpu.ops"]
    log = out / CHECKS
    if tool is None or not on_gpu:
        if on_gpu:
            return Outcome("not run: compute-sanitizer is not installed", {})
        status = gpu_process.run(target, seconds=seconds, log=log, show=False)
        return Outcome(f"rehearsed without the tool: exit status {status}", {})
    numbers, said = {}, []
    for share, kind in ((0.5, "memcheck"), (1.0, "racecheck")):
        before = _size(log)
        command = [tool, "--tool", kind, "--error-exitcode", "9", *target]
        # torch's own allocator would give an access beyond a tensor a neighbour's memory
        variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if kind == "memcheck" else {}
        limit = share * seconds
        status = gpu_process.run(command, seconds=limit, log=log, show=False, variables=variables)
        text = _since(log, before)
        found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", text)
        if found:
            numbers[f"{kind} errors"] = float(found[1])
        ending = "stopped at the time limit" if status is None else f"exit status {status}"
        seen = f"{found[1]} errors" if found else "no summary"
        said.append(f"{kind}: {seen}, {ending}")
        for line in [line for line in text.splitlines() if line.startswith("=========")][:15]:
            print(f"  {line[:160]}")
        seconds -= 0.5 * seconds if share < 1 else 0
    return Outcome("; ".join(said), numbers)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _since(path: Path, position: int) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(position)
        return file.read().decode(errors="replace")
