"""The commands `info`, `demo`, `attack`, `evaluate`, `tune` and `train`; needs typer and rich."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

import fastadv
from fastadv.cli import choices, evaluation, self_check, sources, training, tuning
from fastadv.cli.outcome import Outcome, attack_files, save_outcome
from fastadv.cli.user_error import UserError
from fastadv.demo.run import run_demo
from fastadv.ops import backend
from fastadv.version import installed_version

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
    try:
        app(args=arguments, prog_name="fastadv")
    except UserError as error:
        print(f"fastadv: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def parse_number(text: str) -> float:
    """8/255 or 0.03 as a float: the quotient, rounded once."""
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"expected a number such as 0.03 or 8/255; got {text!r}") from None


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
    with _user_errors():
        run_demo(out, seed=seed, console=Console())


@app.command()
def attack(
    model: Annotated[str, typer.Option(help="module:function that returns the model.")],
    data: Annotated[Path, typer.Option(help="npz file with x and y, MNIST or CIFAR-10 folder.")],
    eps: Annotated[str, typer.Option(help="Radius in input units, as 8/255 or 0.03.")],
    out: Annotated[Path, typer.Option(help="npz file for the adversarial examples.")],
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    attack: Annotated[str, typer.Option(help=", ".join(choices.ATTACKS))] = "pgd",
    steps: Annotated[int | None, typer.Option(help="Steps.")] = None,
    step_size: Annotated[str | None, typer.Option(help="As --eps.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Random starts a sample.")] = None,
    loss: Annotated[str | None, typer.Option(help="ce, margin, dlr, difference or kl.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    target: Annotated[
        str | None, typer.Option(help="A class, least_likely, second_best or random.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.")] = None,
    execution: Annotated[str | None, typer.Option(help=choices.EXECUTION)] = None,
    n: Annotated[int | None, typer.Option("--n", help="The first n samples only.")] = None,
    format: Annotated[str, typer.Option(help=", ".join(sources.FORMATS))] = "auto",
    split: Annotated[str, typer.Option(help="train or test, of MNIST and CIFAR-10.")] = "test",
    uint8: Annotated[bool, typer.Option("--uint8", help="Save bytes, inside the ball.")] = False,
    report: Annotated[Path | None, typer.Option(help="Report, .json or .md.")] = None,
) -> None:
    """Attack a model on data from files and save adversarial examples, verified as saved."""
    _check_paths(out, report, target)
    with _user_errors():
        threat = choices.make_threat(norm, parse_number(eps))
        options = {
            "steps": steps,
            "step_size": None if step_size is None else parse_number(step_size),
            "restarts": restarts,
            "loss": loss,
            "seed": seed,
        }
        chosen = choices.make_attack(attack, threat, options)
        x, y = sources.load_data(data, format, split, n)
        outcome = attack_files(
            sources.load_model(model),
            x,
            y,
            chosen,
            target=choices.make_target(target),
            as_bytes=uint8,
            batch_size=batch_size,
            execution=choices.make_execution(execution),
        )
        save_outcome(outcome, y, out)
        if report is not None:
            outcome.report.save(report)
    _print_outcome(outcome, y, targeted=target is not None, as_bytes=uint8)
    print(f"saved {out}" + (f" and {report}" if report is not None else ""))


def _check_paths(out: Path, report: Path | None, target: str | None) -> None:
    """Before an attack that may take hours, not after it."""
    for name, path, suffixes in (("out", out, (".npz",)), ("report", report, (".json", ".md"))):
        if path is None:
            continue
        if path.suffix not in suffixes:
            raise UserError(f"--{name} must end in {' or '.join(suffixes)}; got {path}")
        if not path.parent.is_dir():
            raise UserError(f"--{name}: there is no folder {path.parent}")
    if report is not None and target is not None:
        raise UserError("--report states robust accuracy, which is untargeted: leave out --target")


def _print_outcome(outcome: Outcome, y: torch.Tensor, *, targeted: bool, as_bytes: bool) -> None:
    n, hits = len(y), int(outcome.success.sum())
    if targeted:
        print(f"{outcome.report.model}\n{outcome.report.attack}")
        print(f"target reached for {hits} of {n} samples")
    else:
        known = outcome.clean_prediction == y
        fooled = int((outcome.success & known).sum())
        print(outcome.report)
        print(f"fooled {fooled} of the {int(known.sum())} samples classified correctly, as saved")
    if as_bytes:
        before = int(outcome.report.success.sum())
        print(f"rounded to 8 bits: {before - outcome.lost} of {before} successes survive")


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """What the library says of wrong arguments, files and models, in one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, NotImplementedError, ModuleNotFoundError) as error:
        raise UserError(" ".join(str(error).split())) from error
