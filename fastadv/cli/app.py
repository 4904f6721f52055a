"""The commands `info`, `demo`, `attack`, `evaluate`, `tune` and `train`; needs typer and rich."""

import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import fastadv
from fastadv.cli import attacking, evaluation, self_check, training, tuning
from fastadv.cli.mistakes import said_in_one_line, set_command
from fastadv.cli.user_error import UserError
from fastadv.demo.run import run_demo
from fastadv.ops import backend
from fastadv.version import installed_version

_NOTHING = "nothing is kept, and this begins again:"
# rich_markup_mode None: errors in one line each, not in boxes
app: typer.Typer = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fast adversarial attacks for PyTorch.",
)
app.command()(training.train)
app.command()(evaluation.evaluate)
app.command()(attacking.attack)
app.command()(tuning.tune)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fastadv {fastadv.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code: 0 done, 1 `info --check` found a wrong kernel, 2 bad
    input, 130 interrupted."""
    set_command(arguments)
    try:
        app(args=arguments, prog_name="fastadv")
    except UserError as error:
        print(f"fastadv: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@app.command()
def info(
    check: Annotated[
        bool, typer.Option("--check", help="Run every kernel against its reference here.")
    ] = False,
) -> None:
    """Versions, devices, and the implementation that ops would run."""
    lines = {
        "fastadv": fastadv.__version__,
        "python": f"{platform.python_version()} ({platform.platform()})",
        "torch": torch.__version__,
        "triton": installed_version("triton"),
        "CUDA of torch": torch.version.cuda or torch.version.hip or "none",
        "CPU threads": str(torch.get_num_threads()),
        "numba": installed_version("numba"),
        "FASTADV_BACKEND": os.environ.get("FASTADV_BACKEND", "not set (auto)"),
        "TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET", "not set"),
    }
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    for device in devices:
        name = f"; {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
        lines[f"backend on {device}"] = f"{_explained(device)}{name}"
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:{width}}  {value}")
    if check:
        with said_in_one_line(kept=_NOTHING):
            self_check.run_and_print()


def _explained(device: torch.device) -> str:
    try:
        chosen, reason = backend.explain(device)
    except (RuntimeError, ValueError) as error:
        return f"none: {error}"
    told = {
        "compiled": "loops compiled by numba, numpy paths or eager references of the other ops",
        "cpu": "numpy paths, and eager references of the other ops",
    }.get(chosen, chosen)
    return f"{told}: {reason}"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("demo-output"),
    seed: Annotated[int, typer.Option(help="Of training, attacks and figures.")] = 0,
) -> None:
    """Train two small networks, attack both, and compare with the textbook loop: about a minute."""
    with said_in_one_line(kept=_NOTHING):
        run_demo(out, seed=seed, console=Console())
