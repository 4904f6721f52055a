"""Where the rows of a run go: a folder that git ignores, unless `--results` names another."""

import argparse
from pathlib import Path

from benchmarks.harness import schema

_ROOT = Path(__file__).resolve().parents[2]
SCRATCH = _ROOT / "bench-output"  # in .gitignore: trying a benchmark changes no tracked file


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--results FOLDER`, which every suite has."""
    parser.add_argument(
        "--results",
        type=Path,
        default=SCRATCH,
        help=f"folder that rows are appended to; {SCRATCH.name}/, which git ignores, if not given, "
        "and benchmarks/results for rows that the tables are to show",
    )


def record(rows: list[schema.Row], results: Path) -> None:
    """Append the rows under the folder, and say where."""
    for path in schema.append_rows(rows, results):
        print(f"appended to {path.relative_to(results.parent)}")
