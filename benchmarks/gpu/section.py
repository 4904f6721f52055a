"""One section of `benchmarks.gpu` in a process of its own: a lost device ends that one alone."""

import importlib
import sys
import threading
from pathlib import Path

from benchmarks.gpu.session import Plan, Session

# in the order of a run, with the share of the time that each may use
SHARES = {
    "tests": 0.18,
    "ops": 0.22,
    "attacks": 0.22,
    "autoattack": 0.16,
    "training": 0.10,
    "steps": 0.05,
    "sanitizer": 0.07,
}
# imported by name: what cannot be imported costs its own section only
MODULES = {
    "ops": "benchmarks.gpu.ops",
    "attacks": "benchmarks.gpu.attacks",
    "autoattack": "benchmarks.gpu.autoattack",
    "training": "benchmarks.gpu.epochs",
    "steps": "benchmarks.gpu.steps",
}


def main(plan_file: str) -> int:
    session = Session(Plan.read(Path(plan_file)))
    try:
        importlib.import_module(MODULES[session.plan.section]).main(session)
    except KeyboardInterrupt:
        print("  stopped at the time limit", flush=True)
    except Exception as error:
        session.report(session.plan.section, error)
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    if threading.active_count() > 1:  # a thread of a library would hold the process
        sys.stdout.flush()
    sys.exit(status)
