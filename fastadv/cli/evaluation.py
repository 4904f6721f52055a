"""The command `evaluate`: robust accuracy of a model, as reports; needs typer and rich."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import torch.distributed as dist
import typer

from fastadv.attacks import Attack
from fastadv.cli import choices, networks, options, sources
from fastadv.cli.mistakes import said_in_one_line, was_given
from fastadv.cli.numbers import number_or_none
from fastadv.cli.outcome import Outcome, check_spares
from fastadv.cli.reports import check_reports, save_reports, shown_progress
from fastadv.cli.saved_examples import Saved
from fastadv.cli.user_error import UserError
from fastadv.ensemble.constructor import AutoAttack, autoattack
from fastadv.ensemble.versions import VERSIONS, Version
from fastadv.evaluation import Curve, Report, robustness_curve
from fastadv.evaluation import evaluate as evaluate_model
from fastadv.execution import Execution
from fastadv.threat_model import ThreatModel

_CUDA_GRAPH: dict[str, bool | str] = {"on": True, "off": False}  # "auto" is as it is
_VERSIONS = tuple(name for name in VERSIONS if name != "custom")


def evaluate(
    data: options.DataOf,
    model: options.Model = None,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radius as 8/255; several make a curve; inf: how near the nearest are, with fab; "
            "default: that of --run."
        ),
    ] = None,
    weights: options.Weights = None,
    run: options.Run = None,
    device: options.Device = None,
    norm: options.Norm = None,
    version: Annotated[
        str | None, typer.Option(help=f"Of AutoAttack: {', '.join(_VERSIONS)}; default: standard.")
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(choices.ATTACKS)}; default: AutoAttack."),
    ] = None,
    steps: options.Steps = None,
    budget: options.Budget = None,
    step_size: options.StepSize = None,
    restarts: options.Restarts = None,
    loss: options.Loss = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    n: options.First = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File to go on from after an interruption; default: none.")
    ] = None,
    save_adversarial: Annotated[
        Path | None, typer.Option(help="For the examples: .npz, or a new folder for PNG images.")
    ] = None,
    uint8: Annotated[
        bool, typer.Option("--uint8", help="Save them as bytes, inside the ball.")
    ] = False,
    format: options.Format = "auto",
    split: options.Split = "test",
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
    report: options.Reports = None,
) -> None:
    """Robust accuracy of a model by AutoAttack, or by one attack; of several radii as a curve.

    Under torchrun the processes share the samples; the first of them writes and prints. With
    --checkpoint an evaluation that was interrupted or killed goes on where it was, also with
    another number of processes.
    """
    files = report or []
    kept = "without --checkpoint FILE nothing is kept, and this begins again:"
    with said_in_one_line(kept=kept), _joined_processes() as is_first:
        radii = len(eps or [""])
        check_reports(files, option="report" if was_given("--report") else "out")
        if uint8 and save_adversarial is None:
            raise UserError("--uint8 is of what is saved: it needs --save-adversarial")
        if save_adversarial is not None and radii > 1:
            raise UserError("--save-adversarial takes one --eps")
        if save_adversarial is not None:
            check_spares("save-adversarial", save_adversarial, data, weights)
        if checkpoint is not None and radii > 1:
            raise UserError("--checkpoint takes one --eps")
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
        settings = {
            "steps": steps,
            "budget": budget,
            "step_size": number_or_none("step-size", step_size),
            "restarts": restarts,
            "loss": loss,
        }
        network = None if run is None else networks.load_network(model, weights, run, device)
        threats = choices.make_threats(norm, eps, network and network.run)
        chosen = chosen_attack(threats[0], version, attack, settings, seed)
        samples = sources.load_samples(data, format, split).first(n)
        network = network or networks.load_network(model, weights, run, device)
        examples = None
        if save_adversarial is not None:
            examples = Saved(save_adversarial, samples, chosen, checkpoint, as_bytes=uint8)
        networks.try_out(network.model, samples.as_floats)
        progress, x, y = shown_progress(), samples.as_floats, samples.y
        found: Report | Curve
        if radii == 1:
            if examples is not None:
                examples.begin()
            found = evaluate_model(
                network.model,
                (x, y),
                chosen if examples is None else examples.recorder,
                batch_size=batch_size,
                checkpoint=checkpoint if examples is None else examples.checkpoint,
                execution=how,
                progress=progress,
            )
        else:
            found = robustness_curve(
                network.model,
                (x, y),
                chosen,
                [float(threat.eps) for threat in threats],
                batch_size=batch_size,
                execution=how,
                progress=is_first and progress,
            )
        outcome = None
        if is_first:
            if examples is not None and isinstance(found, Report):
                outcome = examples.save(network.model, found, size=batch_size)
                files = [*files, save_adversarial] if save_adversarial else files
            save_reports(found, report or [])
            _print(found, outcome, files)


def chosen_attack(
    threat: ThreatModel,
    version: str | None,
    attack: str | None,
    settings: dict[str, Any],
    seed: int,
) -> Attack | AutoAttack:
    """By --version, or by --attack and its settings."""
    if attack is not None:
        if version is not None:
            raise UserError("--version is of AutoAttack, --attack another attack: choose one")
        return choices.make_attack(attack, threat, {**settings, "seed": seed})
    for name, value in settings.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --attack: AutoAttack has its own")
    if version is not None and version not in _VERSIONS:
        raise UserError(f"--version must be one of {', '.join(_VERSIONS)}; got {version!r}")
    return autoattack(threat, cast(Version, version or "standard"), seed=seed)


def _print(found: Report | Curve, outcome: Outcome | None, files: list[Path]) -> None:
    print(found)
    if outcome is not None and outcome.is_rounded:
        print(outcome.told_of_rounding)
    if isinstance(found, Report):
        for text in found.explanations.values():
            print(f"warning: {text}")
    elif found.warnings:
        print(f"warnings: {', '.join(found.warnings)}")
    if files:
        print(f"saved {', '.join(str(path) for path in files)}")


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
