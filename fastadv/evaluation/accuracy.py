"""Robust accuracy of a model over a data set, block by block."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

import fastadv
from fastadv import diagnostics
from fastadv.attacks.result import Stage
from fastadv.ensemble import checks
from fastadv.evaluation.block import SampleAttack, Task, collected
from fastadv.evaluation.checkpoint import DataDigest, digest_of_model
from fastadv.evaluation.clean import describe_model, device_of, logits_of, without_wrapper
from fastadv.evaluation.display import Watch, shown
from fastadv.evaluation.processes import Place, current_place, gathered, path_of
from fastadv.evaluation.report import Report, describe_environment
from fastadv.evaluation.samples import Data, Samples
from fastadv.evaluation.state import State, added_counts, joined
from fastadv.execution import Execution
from fastadv.isolation import Model, module_of

__all__ = ["evaluate", "logits_of"]

BATCHES_A_BLOCK = 8  # samples queue for the slots of continuous batching; a checkpoint a block
_TIE = 2.0**-7  # of the largest logit: one bfloat16 rounding may turn it at another batch size


def evaluate(
    model: Model,
    data: Data,
    attack: SampleAttack,
    *,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    execution: Execution | None = None,
    progress: bool | Watch = True,
) -> Report:
    """Clean and robust accuracy of `model` on `data` under an untargeted attack or ensemble.

    data: (x, y) tensors, a DataLoader of (x, y) batches, or a Dataset of (x, y) pairs; only a
    block of it is in memory at a time (two on resuming), moved to the device of the model's first
    parameter or buffer. batch_size: samples attacked at once; None is that of `execution`, of the
    loader, or 128. checkpoint: a file that every block of 8 batches, and every attack of an
    ensemble on it, is written to; called again with the same arguments after an interruption, even
    kill -9, evaluation goes on from there to the same bits; the data are read again to see that
    they are the same, and the model is run on the clean samples of the first block, to see that it
    still classifies them so. progress: a bar on a terminal, if rich or tqdm is installed; or a
    function that is given a `fastadv.evaluation.Status` before every attack and after every block.

    Where torch.distributed is initialised (torchrun), every process must call this, with the same
    arguments; process r of W attacks the samples r, r + W, ..., and each returns the report of all.
    Results are those of one process; seconds are those of the slowest, passes are added up (slots
    that wait for work count, so they depend on how samples share batches), and the environment is
    that of the first. A DataLoader must give all the same order. Each has a checkpoint of its own:
    run.rank0of2.pt for run.pt; another number of processes does not go on from it. An exception on
    one is raised on all when they are done; if one is killed the others wait until the process
    group's timeout, or torchrun ends them.

    The randomness of a sample is keyed by its position in the data: with a loader that shuffles,
    results belong to the order of that pass, and a checkpoint of it is refused. The global CPU
    generator, from which a loader draws, is put back. Raises ValueError for data or a checkpoint
    that do not fit, and for a checkpoint with a lambda as loss or seed=None; emits one
    `AttackWarning` a code at the end.

    Example: `fastadv.evaluate(net, (x, y), fastadv.autoattack(fastadv.Linf(8 / 255)))`.
    """
    check_attack(attack)
    model = without_wrapper(model)
    place = current_place()
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        _check_repeatable(attack)

    def share() -> tuple[State, dict[str, str], str]:
        watch = progress if place.rank == 0 else False
        return _attack_share(model, data, attack, batch_size, path, execution, watch, place)

    with generator_put_back():
        shares = gathered(share, place)
    if len({stream for _, _, stream in shares}) > 1:
        raise ValueError(
            "data must come in the same order in every process: this loader gave them other samples"
        )
    state = joined([state for state, _, _ in shares])
    if state.done == 0:
        raise ValueError("data is empty: there is nothing to evaluate")
    counts = added_counts(state.warnings, _judged_square(state))
    for code, count in counts.items():
        diagnostics.warn(code, count, state.done)
    return _report(model, attack, state, counts, shares[0][1])


def _attack_share(
    model: Model, data: Data, attack: SampleAttack, batch_size: int | None, path: Path | None,
    execution: Execution | None, progress: bool | Watch, place: Place,
) -> tuple[State, dict[str, str], str]:  # fmt: skip
    """(results, environment, digest of the loader's stream) of this process."""
    execution = execution or Execution()
    wanted = execution.batch_size if batch_size is None else batch_size
    samples = Samples(data, batch_size=wanted, rank=place.rank, world=place.world)
    execution = replace(execution, batch_size=samples.batch_size)
    block_size = samples.batch_size * BATCHES_A_BLOCK
    state = State(
        repr(attack), digest_of_model(module_of(model)), fastadv.__version__, samples.length,
        rank=place.rank, world=place.world,
    )  # fmt: skip
    digest = DataDigest()
    if path is not None:
        path = path_of(path, place)
        state = state.restored(path)

    def keep() -> None:
        if path is not None:
            state.save(path)

    with shown(progress) as watch:
        task = Task(
            model, attack, execution, device_of(model), place, samples.expected, keep, watch
        )
        if path is not None:
            _resume(task, samples, block_size, state, digest, path)
        while (block := samples.take(block_size)) is not None:
            digest.update(*block)
            task.attack_block(*block, state, digest.hexdigest())
    if not state.finished:
        state.finished = True
        keep()
    device = task.device or samples.device
    environment = describe_environment(device, version=fastadv.__version__)
    return state, environment, samples.stream.hexdigest()


def _resume(
    task: Task, samples: Samples, block_size: int, state: State, digest: DataDigest, path: Path
) -> None:
    """Read past the samples that a checkpoint has, checking that they are the same and the model
    still classifies the first of them so; then finish the block that is unfinished."""
    skipped, first = 0, None
    while skipped < state.done:
        block = samples.take(min(state.done - skipped, block_size))
        if block is None:
            break
        first = block if first is None else first
        digest.update(*block)
        skipped += len(block[0])
    if state.done:
        state.check_data(digest.hexdigest(), path, state.digest)
    if state.finished and (more := samples.take(1)) is not None:
        digest.update(*more)
        state.check_data(digest.hexdigest(), path, state.digest)
    if first is not None and not _predicts(task, *first, state.columns["clean_correct"]):
        state.refuse_model(path)
    if state.unfinished is None:
        return
    block = samples.take(state.unfinished.count)
    if block is not None:
        digest.update(*block)
    state.check_data(digest.hexdigest(), path, state.unfinished.digest)
    assert block is not None, "its digest is that of the checkpoint"
    correct = state.unfinished.columns["broken_by"] != -2
    if first is None and not _predicts(task, *block, correct):
        state.refuse_model(path)
    task.attack_block(*block, state, digest.hexdigest())


def _predicts(task: Task, x: torch.Tensor, y: torch.Tensor, correct: torch.Tensor) -> bool:
    """Whether the model still classifies x as it did; correct: (>= n,) where it was right.

    Near ties do not count, nor does a model that draws random numbers: its predictions depend on
    how samples are batched.
    """
    logits = task.clean_logits(x).cpu()
    differs = (logits.argmax(1) == y.cpu()) != correct[: len(x)]
    top = logits.topk(min(2, logits.shape[1]), dim=1).values
    differs &= ~(top[:, 0] - top[:, -1] <= _TIE * logits.abs().amax(1))
    if not bool(differs.any()):
        return True
    return not torch.equal(task.clean_logits(x, reseed=1).cpu(), logits)


def _judged_square(state: State) -> dict[str, int]:
    """The count of "square_gains", judged on all samples: more than 0.2 % of them."""
    behind = [stage["broken"] for stage in state.stages[1:] if stage["name"] == "SQUARE"]
    with collected() as counts:
        checks.warn_of_square(sum(behind), state.done)
    return counts()


def check_attack(attack: SampleAttack) -> None:
    if not callable(getattr(attack, "run", None)):
        raise TypeError(f"attack must be an Attack; got {type(attack).__name__}")
    for one in (attack, *getattr(attack, "attacks", ())):
        for owner, name in ((getattr(one, "threat", None), "eps"), (one, "step_size")):
            value = getattr(owner, name, None)
            if isinstance(value, torch.Tensor) and value.ndim:
                raise ValueError(
                    f"evaluate takes one {name} for all samples; got a tensor of shape "
                    f"{tuple(value.shape)}"
                )


def _check_repeatable(attack: SampleAttack) -> None:
    name = getattr(getattr(attack, "loss", None), "__name__", "")
    if name == "<lambda>" or "<lambda>" in repr(attack):
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
    model: Model, attack: SampleAttack, state: State, counts: dict[str, int],
    environment: dict[str, str],
) -> Report:  # fmt: skip
    threat = getattr(attack, "threat", None)
    eps = getattr(threat, "eps", None)
    columns = dict(state.columns)
    broken_by = columns.pop("broken_by")
    return Report(
        model=describe_model(model, state.model),
        attack=state.attack,
        threat=repr(threat),
        norm=getattr(threat, "norm", ""),
        eps=None if eps is None else float(eps),
        steps=getattr(attack, "steps", None),
        restarts=getattr(attack, "restarts", None),
        seed=getattr(attack, "seed", None),
        robust=columns["clean_correct"] & ~columns["success"],
        **columns,
        forwards=state.forwards,
        backwards=state.backwards,
        seconds=state.seconds,
        warnings=counts,
        environment=environment,
        broken_by=broken_by if state.stages else None,
        stages=tuple(Stage(**stage) for stage in state.stages),
    )
