"""How much of the public interface has a known type, by `pyright --verifytypes`: `make check` runs
this with the environment's python, and it fails below the least share.

--ignoreexternal: a name of ours counts as known where only torch's own annotations are incomplete
(without it 54 %: half of our functions take or return what torch calls Any somewhere inside).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

LEAST = 0.95
_ROOT = Path(__file__).resolve().parents[2]


def measured() -> dict:
    """Pyright's own account. In this mode it asks the first `python` of PATH where packages lie."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONPATH": str(_ROOT),
    }
    command = ["pyright", "--verifytypes", "fastadv", "--ignoreexternal", "--outputjson"]
    # it returns 1 for anything less than all
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        raise SystemExit(f"pyright gave no account: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)["typeCompleteness"]


def main() -> int:
    account = measured()
    score, counts = account["completenessScore"], account["exportedSymbolCounts"]
    print(
        f"known types: {score:.1%} of {sum(counts.values())} public symbols, at least {LEAST:.0%}"
    )
    if score >= LEAST:
        return 0
    for symbol in account["symbols"]:
        if symbol["isExported"] and not symbol["isTypeKnown"]:
            print(symbol["name"])
    return 1


if __name__ == "__main__":
    sys.exit(main())
