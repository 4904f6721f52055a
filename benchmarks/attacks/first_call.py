"""What a process waits for before its first result: `python -m benchmarks.attacks.first_call`.

Each measurement is a process of its own: `import fastadv` behind torch, the first call of PGD and
the second, with an empty folder for what is compiled and with the one that such a process left.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import formatting

_ROOT = Path(__file__).resolve().parents[2]
_CHILD = """
import json, time, torch
torch.set_num_threads(1)
def now():
    return time.perf_counter(), time.process_time()
began = now()
import fastadv
imported = now()
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 32), torch.nn.ReLU(),
                            torch.nn.Linear(32, 10))
x = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))
y = model(x).argmax(1)
made = now()
fastadv.pgd(fastadv.Linf(0.1), steps=10)(model, x, y)
called = now()
fastadv.pgd(fastadv.Linf(0.1), steps=10)(model, x, y)
ended = now()
spans = {"import": (began, imported), "first": (made, called), "second": (called, ended)}
print(json.dumps({name: [b - a for a, b in zip(*span)] for name, span in spans.items()}))
"""


Spans = dict[str, list[float]]  # [wall, process] seconds


def measure(cache: str) -> Spans:
    """Seconds of one fresh process: "import" of fastadv behind torch, "first" and "second" call."""
    own = {"FASTADV_CACHE_DIR": cache, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", _CHILD]
    done = subprocess.run(
        command, env=os.environ | own, capture_output=True, text=True, check=True, cwd=cache
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks.first_call", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind")
    options = parser.parse_args(arguments)
    times: dict[str, list[Spans]] = {"empty": [], "as it was left": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for found in times.values():
                found.append(measure(cache))
    heads = ["cache folder", "import fastadv", "first call of PGD-10", "second call"]
    lines = [
        [kind, *(_cell([one[what] for one in found]) for what in found[0])]
        for kind, found in times.items()
    ]
    print(formatting.table(heads, lines))
    print(
        f"\nMedians of {options.rounds} fresh processes each, wall (process) time, one thread, "
        "torch imported before."
    )


def _cell(found: list[list[float]]) -> str:
    wall, process = (statistics.median(seconds) for seconds in zip(*found, strict=True))
    return f"{wall:.3f} s ({process:.3f} s)"


if __name__ == "__main__":
    main()
