"""Writes tables and charts from rows into README.md and docs/.

    python -m benchmarks.harness.report            # rewrite every page
    python -m benchmarks.harness.report --check    # write nothing, fail on a difference

A block `<!-- benchmark:NAME -->` ... `<!-- /benchmark -->` is rewritten from the newest run of its
suites. NAME: why-switch, attacks-by-case, attacks, attack-ratios, attacks-chart, ops, step-cost,
host, training, mnist, autoattack, autoattack-attacks, autoattack-ops, execution, tuning,
tuning-attacks, tuning-autoattack, masked, minimum-norm, minimum-norm-curves, tasks, clamping,
clamping-forms, gpu-ops, gpu-ops-chart, gpu-attacks, gpu-attacks-chart, gpu-autoattack, gpu-training
or gpu-steps, with @device for one device.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.attacks import ratios
from benchmarks.autoattack import tables as autoattack_tables
from benchmarks.clamping import tables as clamping_tables
from benchmarks.execution import tables as execution_tables
from benchmarks.gpu import tables as gpu_tables
from benchmarks.harness import overview, schema, tables
from benchmarks.masked import tables as masked_tables
from benchmarks.minimum_norm import tables as minimum_norm_tables
from benchmarks.tasks import tables as tasks_tables
from benchmarks.training import tables as training_tables
from benchmarks.tuning import tables as tuning_tables

_ROOT = Path(__file__).resolve().parents[2]
# every page with a block
PAGES = tuple(
    _ROOT / name
    for name in (
        "README.md",
        "docs/benchmarks.md",
        "docs/autoattack.md",
        "docs/execution.md",
        "docs/pytorch-versions.md",
        "docs/tasks.md",
    )
)
_BLOCK = re.compile(
    r"(?P<open><!-- benchmark:(?P<name>[\w-]+)(?:@(?P<device>[\w-]+))? -->\n)"
    r".*?(?P<close><!-- /benchmark -->)",
    re.DOTALL,
)
_MARKER = re.compile(r"<!-- /?benchmark\b")


# name -> (suite, or several, what writes it)
TABLES: dict[str, tuple[str, Callable[[Sequence[schema.Row]], str]]] = {
    "why-switch": (" ".join(overview.SUITES), overview.why_switch),
    "attacks-by-case": ("attacks", tables.attacks_by_case),
    "attacks": ("attacks", tables.attacks),
    "attack-ratios": ("attacks", ratios.table),
    "ops": ("ops", tables.ops),
    "step-cost": ("counts", tables.step_cost),
    "host": ("host", tables.host),
    "training": ("training", training_tables.training),
    "mnist": ("mnist", training_tables.mnist),
    "autoattack": ("autoattack", autoattack_tables.totals),
    "autoattack-attacks": ("autoattack", autoattack_tables.attacks),
    "autoattack-ops": ("autoattack", autoattack_tables.ops),
    "execution": ("execution", execution_tables.execution),
    "tasks": ("tasks", tasks_tables.tasks),
    "clamping": ("clamping", clamping_tables.libraries),
    "clamping-forms": ("clamping", clamping_tables.forms),
    "masked": ("masked", masked_tables.masked),
    "minimum-norm": ("minimum_norm", minimum_norm_tables.attacks),
    "minimum-norm-curves": ("minimum_norm_curve", minimum_norm_tables.curves),
    "tuning": ("tuning", tuning_tables.sweep),
    "tuning-attacks": ("tuning_attacks", tuning_tables.short),
    "tuning-autoattack": ("tuning_autoattack", tuning_tables.ensembles),
    "gpu-ops": ("gpu_ops", gpu_tables.ops),
    "gpu-attacks": ("gpu_attacks", gpu_tables.attacks),
    "gpu-autoattack": ("gpu_autoattack", gpu_tables.autoattack),
    "gpu-training": ("gpu_training", gpu_tables.training),
    "gpu-steps": ("gpu_steps", gpu_tables.steps),
}
CHARTS: dict[str, tuple[str, Callable[[Sequence[schema.Row]], str]]] = {
    "attacks-chart": ("attacks", tables.attacks_chart),
    "gpu-ops-chart": ("gpu_ops", gpu_tables.ops_chart),
    "gpu-attacks-chart": ("gpu_attacks", gpu_tables.attacks_chart),
}
# suites of which a table shows several runs; of the others the newest
_CHOSEN = {
    "clamping": clamping_tables.newest,
    "attacks": schema.newest_of_each_case,
    "autoattack": schema.newest_of_each_case,
    "masked": schema.newest_of_each_case,
    "minimum_norm": schema.newest_of_each_case,
    "minimum_norm_curve": schema.newest_of_each_case,
}
# suites whose command is not called like them
_MODULES = {"counts": "attacks.counts", "mnist": "training.mnist"}


def render(text: str, results: Path, folder: Path) -> tuple[str, dict[Path, str]]:
    """(text with every block rewritten, charts by path); folder: where the text's file lies.

    Raises ValueError for an unknown name, a block left open, no rows, or a row that is not valid:
    one without an equality error above all.
    """
    charts: dict[Path, str] = {}

    def block(match: re.Match[str]) -> str:
        name, device = match["name"], match["device"]
        known = TABLES | CHARTS
        if name not in known:
            raise ValueError(f"benchmark:{name} must be one of {', '.join(known)}")
        suites, write = known[name]
        rows = [row for suite in suites.split() for row in _rows(name, suite, results, device)]
        content = write(rows)
        if name in CHARTS:
            path = results / rows[0].environment.device / f"{name}.svg"
            charts[path] = content
            link = os.path.relpath(path, folder).replace(os.sep, "/")
            content = f"![{name.replace('-', ' ')}]({link})"
        return f"{match['open']}{content}\n{match['close']}"

    rewritten, blocks = _BLOCK.subn(block, text)
    if len(_MARKER.findall(text)) != 2 * blocks:
        raise ValueError(
            "every `<!-- benchmark:NAME -->` must stand on a line of its own and be closed by "
            "`<!-- /benchmark -->`"
        )
    return rewritten, charts


def _rows(name: str, suite: str, results: Path, device: str | None) -> list[schema.Row]:
    choose = _CHOSEN.get(suite, schema.newest_run)
    rows = choose(schema.read_rows(suite, results, device))
    if not rows:
        module = _MODULES.get(suite, suite.partition("_")[0])  # one command for all of a GPU
        raise ValueError(
            f"benchmark:{name} has no rows: run `python -m benchmarks.{module} --results "
            f"{results.name}` first"
        )
    return rows


def stale(page: Path, results: Path) -> dict[Path, str]:
    """The files whose content is not what the rows say, with what it should be."""
    text, wanted = render(page.read_text(), results, page.parent)
    wanted[page] = text
    return {
        path: content
        for path, content in wanted.items()
        if not path.exists() or path.read_text() != content
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.harness.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    parser.add_argument("--readme", type=Path, help="one page; all that have blocks if not given")
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    options = parser.parse_args(arguments)
    pages = PAGES if options.readme is None else (options.readme,)
    try:
        files = {k: v for page in pages for k, v in stale(page, options.results).items()}
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks.harness.report: {error}")
    for path, content in files.items():
        if options.check:
            print(f"{path.name} differs from the rows: run `python -m benchmarks.harness.report`")
        else:
            path.write_text(content)
            print(f"wrote {path.name}")
    if options.check and files:
        sys.exit(1)


if __name__ == "__main__":
    main()
