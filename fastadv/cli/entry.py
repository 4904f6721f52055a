"""The entry of the command line: `fastadv` and `python -m fastadv`."""

import importlib
import sys

# not on PyPI: what works wherever the source came from
_MISSING = 'fastadv: the command line needs {name}: pip install "typer>=0.15" "rich>=13"'


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 bad input, 130 interrupted."""
    try:
        commands = importlib.import_module("fastadv.cli.app")
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(_MISSING.format(name=error.name), file=sys.stderr)
        sys.exit(2)
    sys.exit(commands.run(sys.argv[1:] if arguments is None else arguments))
