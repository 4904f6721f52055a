"""Robust accuracy of a model over a data set, block by block."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fastadv import diagnostics
from fastadv.attacks.argument import check_attack
from fastadv.attacks.call.inputs import check_model
from fastadv.attacks.call.result import Cost, Stage
from fastadv.elements import has_radius, of_elements
from fastadv.ensemble import checks
from fastadv.evaluation.block import SampleAttack, collected, gains_of_square
from fastadv.evaluation.clean import describe_model, logits_of, without_wrapper
from fastadv.evaluation.display import Watch
from fastadv.evaluation.distances import DistanceReport
from fastadv.evaluation.examples import as_pictures
from fastadv.evaluation.processes import exchange_of_processes, kept_in
from fastadv.evaluation.question import Question, objective_of
from fastadv.evaluation.report import Report
from fastadv.evaluation.samples import Data
from fastadv.evaluation.share import joined_columns, joined_sums
from fastadv.evaluation.state import State, added_counts
from fastadv.evaluation.together import Wanted, attacked_together
from fastadv.evaluation.tuned import execution_for
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model
from fastadv.tuning.table import in_words

__all__ = ["evaluate", "logits_of"]


def evaluate(
    model: Model,
    data: Data,
    attack: SampleAttack,
    *,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    execution: Execution | Auto | None = None,
    progress: bool | Watch = True,
) -> Report:
    """Clean and robust accuracy of `model` on `data` under an untargeted attack or ensemble.

    data: (x, y) tensors, a DataLoader of (x, y) batches, or a Dataset of (x, y) pairs; only a
    block of it is in memory at a time (on resuming, those that were begun, too), moved to the
    device of the model's first parameter or buffer. Or (x, y, *extra), a row a sample in each, for
    a model that takes more: model(x, *extra). batch_size: samples attacked at once; None is
    that of `execution`, of the loader, or 128, on a CPU what is fast (see `Execution`).
    checkpoint: a file that every block of 8 batches, and every attack of an ensemble on it, is
    written to; called again with the same arguments
    after an interruption, even kill -9, evaluation goes on from there to the same bits, also with
    another number of processes; the data are read again to see that they are the same, and the
    model is run on the first finished samples, to see that it still classifies them so; ops must
    run with the same backend. progress:
    a bar on a terminal, if rich or tqdm is installed; or a function that is given a
    `fastadv.evaluation.Status` before every attack, after every look at its slots and after every
    block, whose `percent` never falls; it must leave torch's random generators alone. Ctrl-C leaves
    model and checkpoint in order; a note of the KeyboardInterrupt says where to go on.

    execution: how attacks run; "auto" is what `fastadv.tune` finds at the first samples, in at most
    five seconds, for the batch_size given if there is one: measured once, by the first process, and
    kept in checkpoint and report, from where an evaluation that is resumed takes it.

    Where torch.distributed is initialised (torchrun), every process must call this, with the same
    arguments; of what is missing process r of W attacks every W-th sample from the r-th on, and
    each returns the report of all. Results are those of one process; seconds are those of the
    slowest, passes are added up (slots that wait for work count, so they depend on how samples
    share batches), and the environment is that of the first. A DataLoader must give all the same
    order. Until all is done each writes a file of its own, run.rank0of2.pt for run.pt; in the end
    there is run.pt alone. An exception on one is raised on all when they are done. If a process is
    gone, killed or interrupted, the others finish their shares and raise a RuntimeError that says
    how to go on, or torchrun ends them before.

    The randomness of a sample is keyed by its position in the data: with a loader that shuffles,
    results belong to the order of that pass, and a checkpoint of it is refused. The global CPU
    generator, from which a loader draws, is put back. Raises ValueError for data or a checkpoint
    that do not fit, and for a checkpoint with a lambda as loss or seed=None; emits one
    `AttackWarning` a code at the end.

    With a `fastadv.Objective` as the attack's loss, y is what that takes, and its success= decides:
    clean accuracy is the share of samples that are no success as they are, robust accuracy of those
    that the attack could not make one either; its scores are in the report too. Raises ValueError
    for one without success, and with a checkpoint for one without a name.

    An attack without a radius, as `fastadv.fab(fastadv.L2())`, looks for the nearest adversarial
    example of every sample, and what is returned is a `DistanceReport`.

    Example: `fastadv.evaluate(net, (x, y), fastadv.autoattack(fastadv.Linf(8 / 255)))`.
    """
    check_model(model)
    check_one_size(attack)
    question = Question.of(attack)
    model = without_wrapper(model)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        _check_repeatable(attack)
    try:
        with generator_put_back(), exchange_of_processes(path) as exchange:
            with generator_put_back():
                how = execution_for(
                    execution,
                    model,
                    data,
                    attack,
                    batch_size=batch_size,
                    path=path,
                    exchange=exchange,
                )
            wanted = Wanted(model, data, attack, batch_size, path, how, progress)
            blocks, asked, ran, environment = attacked_together(wanted, exchange)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"evaluation interrupted: {kept_in(path)}")
        raise
    if not blocks:
        raise ValueError("data is empty: there is nothing to evaluate")
    columns, sums = joined_columns(blocks), joined_sums(blocks)
    named = describe_model(model, asked.model)
    return _report(named, attack, question, asked, columns, sums, ran, environment)


def _judged_square(attack: SampleAttack, stages: Sequence[Stage], total: int) -> dict[str, int]:
    """The count of "square_gains", judged on all samples."""
    with collected() as counts:
        checks.warn_of_square(gains_of_square(attack, stages), total)
    return counts()


def check_one_size(attack: SampleAttack) -> None:
    """Raises TypeError for what is no attack, ValueError for one with a radius, step size or bound
    for each sample; those of elements, (1, ...), are for all samples."""
    check_attack(attack)
    for one in (attack, *getattr(attack, "attacks", ())):
        threat = getattr(one, "threat", None)
        sizes = {"eps": getattr(threat, "eps", None), "step_size": getattr(one, "step_size", None)}
        bounds = [("bound", side) for side in getattr(threat, "bounds", None) or ()]
        for name, value in (*sizes.items(), *bounds):
            if not isinstance(value, torch.Tensor) or value.ndim == 0:
                continue
            if value.ndim == 1 or len(value) != 1:
                raise ValueError(
                    f"evaluate takes one {name} for all samples; got a tensor of shape "
                    f"{tuple(value.shape)}. One for each element carries the batch axis, (1, ...)"
                )


def _check_repeatable(attack: SampleAttack) -> None:
    objective = objective_of(attack)
    if objective is not None and objective.name is None:
        raise ValueError(
            "checkpoint needs an objective with a name, by which it is known again: the code of "
            f"its functions cannot be compared on resuming. Give it name=; got {objective!r}"
        )
    name = getattr(getattr(attack, "loss", None), "__name__", "")
    if objective is None and (name == "<lambda>" or "<lambda>" in repr(attack)):
        raise ValueError(
            "checkpoint needs a loss with a name: the code of a lambda cannot be compared on "
            f"resuming. Give loss a function made by def; got {attack!r}"
        )
    if getattr(attack, "seed", 0) is None:
        raise ValueError(
            "checkpoint needs a seed: with seed=None every run has another, and what is resumed "
            f"would be another evaluation; got {attack!r}"
        )


@contextlib.contextmanager
def generator_put_back() -> Iterator[None]:
    """A loader draws its seed and its order from the global CPU generator, which is the user's."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


def _report(
    model: str,
    attack: SampleAttack,
    question: Question,
    asked: State,
    columns: dict[str, torch.Tensor],
    sums: dict[str, Any],
    ran: str,
    environment: dict[str, str],
) -> Report:
    total = len(columns["ids"])
    threat = getattr(attack, "threat", None)
    eps = getattr(threat, "eps", None)
    is_ball = threat is None or has_radius(threat)
    eps = None if eps is None or of_elements(eps) or not is_ball else float(eps)
    stages = tuple(Stage(**stage) for stage in sums.pop("stages"))
    counts = added_counts(sums.pop("warnings"), _judged_square(attack, stages, total))
    for code, count in counts.items():
        diagnostics.warn(code, count, total, of_ensemble=bool(stages))
    shown = {name: columns[name] for name in ("clean_correct", "success", "step", "distance")}
    if question.has_score:
        shown.update(score=columns["score"], clean_score=columns["clean_score"])
    kind = Report if is_ball else DistanceReport
    return kind(
        model=model,
        attack=asked.attack,
        threat=repr(threat),
        norm=getattr(threat, "norm", ""),
        eps=eps,
        steps=getattr(attack, "steps", None),
        restarts=getattr(attack, "restarts", None),
        seed=getattr(attack, "seed", None),
        robust=columns["clean_correct"] & ~columns["success"],
        **shown,
        search=asked.search,
        execution=in_words(Execution(**asked.execution)),
        backend=ran,
        cost=Cost(**sums.pop("cost")),
        **sums,
        warnings=counts,
        environment=environment,
        broken_by=columns["broken_by"] if stages else None,
        stages=stages,
        objective=question.described,
        date=asked.date,
        examples=as_pictures(asked.examples),
    )
