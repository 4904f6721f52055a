"""The command `attack`: adversarial examples of a model on data; needs typer and rich."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastadv.attacks import Attack
from fastadv.cli import choices, networks, options, sources
from fastadv.cli.kept_examples import KeptExamples, Recorder
from fastadv.cli.mistakes import said_in_one_line
from fastadv.cli.numbers import number_or_none
from fastadv.cli.outcome import (
    Outcome,
    check_place,
    check_spares,
    goal_of,
    outcome_of,
    save_outcome,
)
from fastadv.cli.reports import check_reports, save_reports
from fastadv.cli.user_error import UserError, said
from fastadv.evaluation import Report, evaluate
from fastadv.execution import Auto

_BATCH_SIZE = 128


def attack(
    data: options.DataOf,
    out: Annotated[
        Path, typer.Option(help="For the examples: an .npz file, or a new folder for PNG images.")
    ],
    model: options.Model = None,
    eps: Annotated[
        str | None,
        typer.Option(help="Radius in input units, as 8/255 or 0.03; default: that of --run."),
    ] = None,
    weights: options.Weights = None,
    run: options.Run = None,
    device: options.Device = None,
    norm: options.Norm = None,
    attack: Annotated[str, typer.Option(help=", ".join(choices.ATTACKS))] = "pgd",
    steps: options.Steps = None,
    budget: options.Budget = None,
    step_size: options.StepSize = None,
    restarts: options.Restarts = None,
    loss: options.Loss = None,
    seed: options.Seed = 0,
    target: Annotated[
        str | None,
        typer.Option(help="A class, least_likely, second_best or random; default: untargeted."),
    ] = None,
    batch_size: options.BatchSize = None,
    execution: Annotated[str | None, typer.Option(help=choices.EXECUTION)] = None,
    n: options.First = None,
    format: options.Format = "auto",
    split: options.Split = "test",
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Save bytes, inside the ball; PNG images always are.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder to go on from after an interruption; default: OUT.checkpoint."),
    ] = None,
    report: options.ReportsToo = None,
) -> None:
    """Attack a model on data from files and save adversarial examples, verified as saved.

    What is finished is kept in --checkpoint until all is: interrupted or killed, the same command
    goes on from there, to the same bits.
    """
    with said_in_one_line():
        reports = report or []
        check_place("out", out)
        check_spares("out", out, data, weights)
        check_reports(reports)
        if reports and target is not None:
            raise UserError(
                "--report states robust accuracy, which is untargeted: leave out --target"
            )
        network = networks.load_network(model, weights, run, device)
        (threat,) = choices.make_threats(norm, None if eps is None else [eps], network.run)
        settings = {
            "steps": steps,
            "budget": budget,
            "step_size": number_or_none("step-size", step_size),
            "restarts": restarts,
            "loss": loss,
            "seed": seed,
        }
        chosen = choices.make_attack(attack, threat, settings)
        samples = sources.load_samples(data, format, split).first(n)
        check_place("out", out, samples)
        networks.try_out(network.model, samples.as_floats)
        folder = checkpoint or out.with_name(f"{out.name}.checkpoint")
        recorder = _recorder(chosen, folder, network, samples, target, batch_size)
        found = _attacked(network, samples, recorder, batch_size, choices.make_execution(execution))
        as_bytes = uint8 or out.suffix == ""
        size = batch_size or _BATCH_SIZE
        outcome = outcome_of(network.model, samples, recorder, found, as_bytes=as_bytes, size=size)
        save_outcome(outcome, samples, out)
        save_reports(outcome.report, reports)
        recorder.kept.discard()
    _print(outcome, samples.y, targeted=target is not None)
    if out.suffix == "":
        print(f"{len(samples.y)} PNG images read again: they hold these bytes")
    print(f"saved {', '.join(str(path) for path in (out, *reports))}")


def _recorder(
    chosen: Attack,
    folder: Path,
    network: networks.Network,
    samples: sources.Samples,
    target: str | None,
    batch_size: int | None,
) -> Recorder:
    wanted, kept = choices.make_target(target), KeptExamples(folder)
    kept.check("--checkpoint")
    if wanted is None:
        return Recorder(chosen, kept)
    x, size = samples.as_floats, batch_size or _BATCH_SIZE
    goal = goal_of(wanted, network.model, x, samples.y, seed=chosen.seed, size=size)
    return Recorder(chosen, kept, goal, wanted)


def _attacked(
    network: networks.Network,
    samples: sources.Samples,
    recorder: Recorder,
    batch_size: int | None,
    execution: Auto | None,
) -> Report:
    size, folder = batch_size or _BATCH_SIZE, recorder.kept.folder
    n, there = len(samples.y), recorder.kept.count()
    if there:
        print(f"goes on from {folder}: {there:,} of {n:,} samples are done", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return evaluate(
            network.model,
            (samples.as_floats, samples.y),
            recorder,
            batch_size=batch_size if execution == "auto" else size,
            execution=execution,
            checkpoint=folder / "evaluation.pt",
        )
    except NotImplementedError:  # the library's own, which says what to do
        raise
    except RuntimeError as error:
        raise UserError(f"attacking {size} samples at once fails: {said(error)}") from error
    except KeyboardInterrupt as interrupt:
        done = recorder.kept.count()
        interrupt.__notes__ = [
            f"interrupted: {done:,} of {n:,} samples are kept in {folder}; this goes on from there:"
        ]
        raise
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it


def _print(outcome: Outcome, y: torch.Tensor, *, targeted: bool) -> None:
    n, hits = len(y), int(outcome.success.sum())
    if targeted:
        print(f"{outcome.report.model}\n{outcome.report.attack}")
        print(f"target reached for {hits} of {n} samples")
    else:
        known = outcome.clean_prediction == y
        fooled = int((outcome.success & known).sum())
        print(outcome.report)
        print(f"fooled {fooled} of the {int(known.sum())} samples classified correctly, as saved")
    for text in outcome.report.explanations.values():
        print(f"warning: {text}")
    if outcome.is_rounded:
        print(outcome.told_of_rounding)
