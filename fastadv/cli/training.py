"""The command `train`: adversarial training from a published recipe; needs typer and rich."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TextIO, cast

import torch
import typer
from torch import nn

from fastadv import models
from fastadv.cli import choices, networks, options
from fastadv.cli.mistakes import said_in_one_line
from fastadv.cli.numbers import number_or_none
from fastadv.cli.training_samples import load_lessons
from fastadv.cli.user_error import UserError
from fastadv.recipes import DATASETS, METHODS, Recipe, Result, load_weights, recipe
from fastadv.recipes import train as train_recipe
from fastadv.recipes.settings import Dataset, Method, Norm, Precision
from fastadv.training import Collapse, TrainingWarning
from fastadv.training.sentinel import OnCollapse

_STOPPED = 3  # exit code of a run that the sentinel stopped
_BY_RECIPE = "default: the recipe's"
_MODEL = f"{', '.join(models.names())}, or module:function; {_BY_RECIPE}."
_ON_COLLAPSE = (
    "warn; stop (exit code 3); rollback: back to the last good weights, and on with PGD-5 for at "
    "least 5 to 10 epochs more. Default: rollback for free, fast and nfgsm without --epochs, else "
    "warn."
)


def train(
    method: Annotated[str, typer.Option(help=", ".join(METHODS))],
    out: Annotated[Path, typer.Option(help="Folder for weights, log and checkpoint.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            help=f"Whose recipe: {', '.join(DATASETS)}; default: of such images as --data has, "
            "digits without it."
        ),
    ] = None,
    data: options.DataOrNone = None,
    model: Annotated[str | None, typer.Option(help=_MODEL)] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File for a --model of one's own to begin with.")
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="linf; l2 or l1, which need --eps too; default: linf.")
    ] = None,
    eps: Annotated[
        str | None,
        typer.Option(help=f"Radius, pixels in [0, 1]: 8/255 or 0.03; {_BY_RECIPE}."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the data, never more of them unless --on-collapse rollback is given "
            f"too; schedules stretch along; may be raised with --resume; {_BY_RECIPE}."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Samples a batch; {_BY_RECIPE}.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"The highest of the schedule; {_BY_RECIPE}.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help=f"Of the craft; full passes of yopo; {_BY_RECIPE}.")
    ] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of averaged weights, as 0.995; default: 0, none.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or bf16; default: fp32.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order, crops and noise; default: 0.")
    ] = None,
    on_collapse: Annotated[str | None, typer.Option(help=_ON_COLLAPSE)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in --out, to the same bits.")
    ] = False,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Batches between checkpoints; default: once a minute.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: cuda if there is one.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of the CPU; default: torch's choice.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves for TensorBoard in --out.")
    ] = False,
) -> None:
    """Train a network against attacks; options left out are those of the published recipe.

    Writes model.pt, best.pt (by PGD accuracy on held-out training samples), last.pt and log.jsonl,
    which fastadv evaluate --run and fastadv attack --run take.

    On the held-out samples a sentinel looks for collapse, once or twice an epoch, by PGD-10. Its
    verdicts: good (no collapse), suspect (one step hides what PGD finds: looked at again soon),
    collapse (the same twice), stuck (one class for everything), nan (of the loss), weak (less than
    the floor in the end). The floor is 80 % for --dataset mnist --method fast, and none otherwise.
    """
    with said_in_one_line("--resume"):
        own = None if model is None or ":" not in model else _own_model(model)
        if weights is not None:
            if own is None:
                raise UserError("--weights needs a --model of one's own, module:function")
            load_weights(own, weights)
        lessons = load_lessons(dataset, data)
        chosen = recipe(
            cast(Dataset, lessons.dataset),  # which the recipe checks, as the others below
            cast(Method, method),
            model=model,
            norm=None if norm is None else cast(Norm, choices.norm_of(norm)),
            eps=number_or_none("eps", eps),
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            steps=steps,
            ema=ema,
            precision=cast(Precision | None, precision),
            seed=seed,
            on_collapse=cast(OnCollapse | None, on_collapse),
        )
        chosen = replace(chosen, dataset=lessons.name, classes=lessons.classes)
        if lessons.note:
            print(lessons.note, file=sys.stderr)
        with _threads(threads), _told(chosen):
            result = train_recipe(
                chosen,
                (lessons.images, lessons.labels),
                out,
                model=own,
                device=device,
                resume=resume,
                tensorboard=tensorboard,
                checkpoint_every=checkpoint_every,
            )
    _print(result)


def _own_model(address: str) -> nn.Module:
    model = networks.load_model(address)
    if not isinstance(model, nn.Module):
        raise UserError(f"--model: {address}() must return an nn.Module, to be trained")
    return model


def _print(result: Result) -> None:
    best = result.epochs[result.best_epoch - 1] if result.best_epoch else None
    if best is not None:
        print(
            f"best epoch {best['epoch']}: {100 * best['clean']:.1f} % clean, "
            f"{100 * best['robust']:.1f} % under {best['attack']} on {best['n']} held-out "
            "training samples"
        )
    print(f"saved {result.out / 'model.pt'} and {result.out / 'best.pt'}")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _told(chosen: Recipe) -> Iterator[None]:
    """What the sentinel sees: one line each, with what to do about it; a stop: code 3."""
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
                    advice = _advice(chosen, getattr(message, "code", ""))
                    print(f"fastadv: {message}{advice}", file=sys.stderr, flush=True)
                else:
                    shown(message, category, filename, lineno, file, line)

            warnings.showwarning = show
            yield
    except Collapse as collapse:
        print(f"fastadv: stopped: {collapse}", file=sys.stderr)
        raise typer.Exit(_STOPPED) from collapse


def _advice(chosen: Recipe, code: str) -> str:
    if chosen.on_collapse != "warn" or code not in ("collapse", "weak"):
        return ""
    return (
        f" --on-collapse rollback would train on with PGD-5, at least {chosen.rescue_epochs} epochs"
    )
