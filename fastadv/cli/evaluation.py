"""The command `evaluate`: robust accuracy of a model, as reports; needs typer and rich."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import torch.distributed as dist
import typer

from fastadv.attacks import Attack
from fastadv.cli import choices, sources
from fastadv.cli.user_error import UserError
from fastadv.diagnostics import AttackWarning
from fastadv.ensemble.constructor import AutoAttack, autoattack
from fastadv.ensemble.versions import VERSIONS, Version
from fastadv.evaluation import Curve, Report, Status, robustness_curve
from fastadv.evaluation import evaluate as evaluate_model
from fastadv.evaluation.accuracy import logits_of
from fastadv.evaluation.display import Watch
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.ops import backend

_CUDA_GRAPH: dict[str, bool | str] = {"on": True, "off": False}  # "auto" is as it is
_VERSIONS = tuple(name for name in VERSIONS if name != "custom")


def evaluate(
    model: Annotated[str, typer.Option(help="module:function that returns the model.")],
    data: Annotated[Path, typer.Option(help="npz file with x and y, MNIST or CIFAR-10 folder.")],
    eps: Annotated[list[str], typer.Option(help="Radius as 8/255; several make a curve.")],
    norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
    version: Annotated[
        str | None, typer.Option(help=f"Of AutoAttack: {', '.join(_VERSIONS)}; else standard.")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help=f"Instead: {', '.join(choices.ATTACKS)}.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of --attack.")] = None,
    step_size: Annotated[str | None, typer.Option(help="Of --attack, as --eps.")] = None,
    restarts: Annotated[int | None, typer.Option(help="Random starts of --attack.")] = None,
    loss: Annotated[str | None, typer.Option(help="ce, margin, dlr, difference or kl.")] = None,
    seed: Annotated[int, typer.Option(help="Of all randomness.")] = 0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="The first n samples only.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to go on from after an interruption.")
    ] = None,
    format: Annotated[str, typer.Option(help=", ".join(sources.FORMATS))] = "auto",
    split: Annotated[str, typer.Option(help="train or test, of MNIST and CIFAR-10.")] = "test",
    execution: Annotated[str | None, typer.Option(help=choices.EXECUTION)] = None,
    precision: Annotated[str, typer.Option(help="Of the search: fp32, bf16 or fp16.")] = "fp32",
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Search in this memory format.")
    ] = False,
    fold_batchnorm: Annotated[
        bool, typer.Option("--fold-batchnorm", help="Into the convolutions, for the search.")
    ] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the model, for the search.")
    ] = False,
    cuda_graph: Annotated[str, typer.Option(help="auto, on or off.")] = "auto",
    batching: Annotated[str, typer.Option(help="continuous or plain.")] = "continuous",
    final_pass: Annotated[
        bool, typer.Option("--final-pass", help="Attack survivors again by the model itself.")
    ] = False,
    timed: Annotated[
        bool, typer.Option("--timed", help="Measure the share of the physical limit too.")
    ] = False,
    out: Annotated[
        list[Path] | None, typer.Option(help="Report, .json, .md or .html; may be repeated.")
    ] = None,
) -> None:
    """Robust accuracy of a model by AutoAttack, or by one attack; of several radii as a curve.

    Under torchrun the processes share the samples; the first of them writes and prints. With
    --checkpoint an evaluation that was interrupted or killed goes on where it was, also with
    another number of processes.
    """
    files = out or []
    with _said_in_one_line(), _joined_processes() as is_first:
        _check_paths(files, checkpoint, radii=len(eps))
        words: dict[str, Any] = {  # from the shell: Execution says which there are
            "precision": precision,
            "cuda_graph": _CUDA_GRAPH.get(cuda_graph, cuda_graph),
            "batching": batching,
        }
        chosen_by_hand = Execution(
            **words,
            channels_last=channels_last,
            fold_batchnorm=fold_batchnorm,
            compile=compile,
            final_pass=final_pass,
            timed=timed,
        )
        how = choices.make_execution(execution) or chosen_by_hand
        if how == "auto" and chosen_by_hand != Execution():
            raise UserError("--execution auto finds out how to run: leave out what else says it")
        radii = [_number("eps", text) for text in eps]
        options = {
            "steps": steps,
            "step_size": None if step_size is None else _number("step-size", step_size),
            "restarts": restarts,
            "loss": loss,
        }
        chosen = _chosen(norm, radii[0], version, attack, options, seed)
        x, y = sources.load_data(data, format, split, n)
        net = sources.load_model(model)
        _try_out(net, x)
        progress = True if sys.stderr.isatty() else _lines()
        found: Report | Curve
        if len(radii) == 1:
            found = evaluate_model(
                net,
                (x, y),
                chosen,
                batch_size=batch_size,
                checkpoint=checkpoint,
                execution=how,
                progress=progress,
            )
        else:
            found = robustness_curve(
                net,
                (x, y),
                chosen,
                radii,
                batch_size=batch_size,
                execution=how,
                progress=is_first and progress,
            )
        if is_first:
            for path in files:
                found.save(path)
            _print(found, files)


def _chosen(
    norm: str,
    eps: float,
    version: str | None,
    attack: str | None,
    options: dict[str, Any],
    seed: int,
) -> Attack | AutoAttack:
    threat = choices.make_threat(norm, eps)
    if attack is not None:
        if version is not None:
            raise UserError("--version is of AutoAttack, --attack another attack: choose one")
        return choices.make_attack(attack, threat, {**options, "seed": seed})
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --attack: AutoAttack has its own")
    if version is not None and version not in _VERSIONS:
        raise UserError(f"--version must be one of {', '.join(_VERSIONS)}; got {version!r}")
    return autoattack(threat, cast(Version, version or "standard"), seed=seed)


def _check_paths(files: list[Path], checkpoint: Path | None, *, radii: int) -> None:
    """Before an evaluation that may take days, not after it."""
    suffixes = (".json", ".md", ".html") if radii == 1 else (".json", ".md")
    for path in files:
        if path.suffix not in suffixes:
            kind = "" if radii == 1 else " for a curve"
            raise UserError(f"--out must end in {' or '.join(suffixes)}{kind}; got {path}")
        if not path.parent.is_dir():
            raise UserError(f"--out: there is no folder {path.parent}")
    if checkpoint is not None and radii > 1:
        raise UserError("--checkpoint takes one --eps")


def _try_out(model: Model, x: torch.Tensor) -> None:
    """Whether the model takes one sample, and ops run where it is."""
    try:
        device = logits_of(model, x[:1], batch_size=1).device
    except Exception as error:  # whatever the user's model raises on the user's data
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the model fails on one sample, {tuple(x[:1].shape)}: {text}") from error
    backend.explain(device)


def _lines() -> Watch:
    """A line for every attack, every block and every percent: looks are too many."""
    before: tuple[int, str, int] | None = None

    def show(status: Status) -> None:
        nonlocal before
        now = status.done, status.attack, int(status.percent or 0.0)
        if now != before:
            before = now
            print(status, file=sys.stderr, flush=True)

    return show


def _print(found: Report | Curve, files: list[Path]) -> None:
    print(found)
    if isinstance(found, Report):
        for text in found.explanations.values():
            print(f"warning: {text}")
    elif found.warnings:
        print(f"warnings: {', '.join(found.warnings)}")
    if files:
        print(f"saved {', '.join(str(path) for path in files)}")


def _number(name: str, text: str) -> float:
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise UserError(f"--{name} must be a number such as 0.03 or 8/255; got {text!r}") from None


@contextlib.contextmanager
def _joined_processes() -> Iterator[bool]:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield True
        return
    dist.init_process_group("gloo")  # results are exchanged on the CPU
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _said_in_one_line() -> Iterator[None]:
    """Mistakes: one line, exit code 2; Ctrl-C: one that says where to go on, and 130. What the
    attacks warn of is in the report."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)
            yield
    except (ValueError, TypeError, OSError, ModuleNotFoundError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    except KeyboardInterrupt as interrupt:
        notes = getattr(interrupt, "__notes__", ["interrupted"])
        print(f"fastadv: {' '.join(notes)}", file=sys.stderr, flush=True)
        raise typer.Exit(130) from interrupt
