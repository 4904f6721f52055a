"""The command `train`: adversarial training from a published recipe; needs typer and rich."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, TextIO, cast

import torch
import typer

from fastadv import models
from fastadv.cli.user_error import UserError
from fastadv.models.registry import ModelName
from fastadv.recipes import DATASETS, METHODS, Result, recipe, training_data
from fastadv.recipes import train as train_recipe
from fastadv.recipes.settings import Dataset, Method, Precision
from fastadv.training import Collapse, TrainingWarning
from fastadv.training.sentinel import OnCollapse

_STOPPED = 3  # exit code of a run that the sentinel stopped


def train(
    method: Annotated[str, typer.Option(help=", ".join(METHODS))],
    out: Annotated[Path, typer.Option(help="Folder for weights, log and checkpoint.")],
    dataset: Annotated[str, typer.Option(help=", ".join(DATASETS))] = "digits",
    data: Annotated[
        Path | None, typer.Option(help="Folder with the files of MNIST or CIFAR-10.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=", ".join(models.names()))] = None,
    eps: Annotated[
        str | None, typer.Option(help="L-infinity radius, pixels in [0, 1]: 8/255 or 0.03.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data; schedules stretch along.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a batch.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The highest of the schedule.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the craft; full passes of yopo.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of averaged weights, as 0.995; 0: none.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order, crops and noise.")] = None,
    on_collapse: Annotated[
        str | None, typer.Option(help="warn; stop (exit code 3); rollback, and go on with PGD-5.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out, to the same bits.")
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Batches between checkpoints; default: once a minute.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; torch's choice.")] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves for TensorBoard in --out.")
    ] = False,
) -> None:
    """Train a network against attacks; options left out are those of the published recipe.

    Writes model.pt, best.pt (by PGD accuracy on held-out training samples), last.pt and log.jsonl.
    """
    with _said_in_one_line():
        chosen = recipe(
            cast(Dataset, dataset),  # which the recipe checks, as the others below
            cast(Method, method),
            model=cast(ModelName | None, model),
            eps=None if eps is None else _number(eps),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            steps=steps,
            ema=ema,
            precision=cast(Precision | None, precision),
            seed=seed,
            on_collapse=cast(OnCollapse | None, on_collapse),
        )
        samples = training_data(cast(Dataset, dataset), data)
        with _threads(threads):
            result = train_recipe(
                chosen,
                samples,
                out,
                device=device,
                resume=resume,
                tensorboard=tensorboard,
                checkpoint_every=checkpoint_every,
            )
    _print(result)


def _print(result: Result) -> None:
    best = result.epochs[result.best_epoch - 1] if result.best_epoch else None
    if best is not None:
        print(
            f"best epoch {best['epoch']}: {100 * best['clean']:.1f} % clean, "
            f"{100 * best['robust']:.1f} % under {best['attack']} on {best['n']} held-out "
            "training samples"
        )
    print(f"saved {result.out / 'model.pt'} and {result.out / 'best.pt'}")


def _number(text: str) -> float:
    try:
        return float(Fraction(text.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"--eps must be a number such as 0.03 or 8/255; got {text!r}") from None


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _said_in_one_line() -> Iterator[None]:
    """Mistakes: one line, exit code 2. What the sentinel sees: one line each; a stop: code 3."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", TrainingWarning)
            shown = warnings.showwarning

            def show(
                message: Warning | str,
                category: type[Warning],
                filename: str,
                lineno: int,
                file: TextIO | None = None,
                line: str | None = None,
            ) -> None:
                if issubclass(category, TrainingWarning):
                    print(f"fastadv: {message}", file=sys.stderr, flush=True)
                else:
                    shown(message, category, filename, lineno, file, line)

            warnings.showwarning = show
            yield
    except Collapse as collapse:
        print(f"fastadv: stopped: {collapse}", file=sys.stderr)
        raise typer.Exit(_STOPPED) from collapse
    except (ValueError, TypeError, OSError, NotImplementedError, ModuleNotFoundError) as error:
        raise UserError(" ".join(str(error).split())) from error
