"""Robust accuracy of a model over a data set, block by block."""

import contextlib
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

import fastadv
from fastadv import diagnostics
from fastadv.attacks.result import AttackResult
from fastadv.evaluation.checkpoint import DataDigest, Progress, digest_of_model
from fastadv.evaluation.report import Report, describe_environment
from fastadv.evaluation.samples import Data, Samples
from fastadv.execution import Execution
from fastadv.isolation import Model, isolated, module_of

_BATCHES_A_BLOCK = 8  # samples queue for the slots of continuous batching; a checkpoint a block
_TIE = 2.0**-7  # of the largest logit: one bfloat16 rounding may turn it at another batch size


class SampleAttack(Protocol):
    """What `evaluate` asks of an attack: `run`, as `Attack` and the ensembles have it."""

    def run(
        self, model: Model, x: torch.Tensor, y: torch.Tensor | None = None, *,
        sample_ids: torch.Tensor | None = None, execution: Execution | None = None,
    ) -> AttackResult:  # fmt: skip
        ...


def evaluate(
    model: Model,
    data: Data,
    attack: SampleAttack,
    *,
    batch_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    execution: Execution | None = None,
    progress: bool = True,
) -> Report:
    """Clean and robust accuracy of `model` on `data` under an untargeted `attack`.

    data: (x, y) tensors, a DataLoader of (x, y) batches, or a Dataset of (x, y) pairs; only a
    block of it is in memory at a time (two on resuming), moved to the device of the model's first
    parameter or buffer. batch_size: samples attacked at once; None is that of `execution`, of the
    loader, or 128. checkpoint: a file that every block of 8 batches is written to; called again
    with the same arguments after an interruption, even kill -9, evaluation goes on from there to
    the same bits; the data are read again to see that they are the same, and the model is run on
    the clean samples of the first block, to see that it still classifies them so. progress: a bar
    on a terminal, if rich or tqdm is installed.

    The randomness of a sample is keyed by its position in the data: with a loader that shuffles,
    results belong to the order of that pass, and a checkpoint of it is refused. The global CPU
    generator, from which a loader draws, is put back. Raises ValueError for data or a checkpoint
    that do not fit, and for a checkpoint with a lambda as loss; emits one `AttackWarning` a code at
    the end.

    Example: `fastadv.evaluate(net, (x, y), fastadv.pgd(fastadv.Linf(8 / 255), steps=50))`.
    """
    _check_attack(attack)
    execution = execution or Execution()
    wanted = execution.batch_size if batch_size is None else batch_size
    samples = Samples(data, batch_size=wanted)
    execution = replace(execution, batch_size=samples.batch_size)
    block_size = samples.batch_size * _BATCHES_A_BLOCK
    module = module_of(model)
    state = Progress(repr(attack), digest_of_model(module), fastadv.__version__, samples.length)
    digest = DataDigest()
    task = _Task(model, attack, execution, _device_of(module))
    with _generator_put_back():
        if checkpoint is not None:
            _check_loss(attack)
            state = state.restored(checkpoint)
            first = _skip(samples, block_size, state, digest, checkpoint)
            if first is not None and not task.predicts_as_stored(*first, state):
                state.refuse_model(checkpoint)
        with _bar(state.done, samples.expected, progress) as advance:
            while (block := samples.take(block_size)) is not None:
                task.attack_block(*block, state)
                digest.update(*block)
                state.digest = digest.hexdigest()
                if checkpoint is not None:
                    state.save(checkpoint)
                advance(len(block[0]))
    if state.done == 0:
        raise ValueError("data is empty: there is nothing to evaluate")
    if checkpoint is not None and not state.finished:
        state.finished = True
        state.save(checkpoint)
    for code, count in state.warnings.items():
        diagnostics.warn(code, count, state.done)
    return _report(model, attack, state, task.device or samples.device)


def _check_attack(attack: SampleAttack) -> None:
    if not callable(getattr(attack, "run", None)):
        raise TypeError(f"attack must be an Attack; got {type(attack).__name__}")
    for owner, name in ((getattr(attack, "threat", None), "eps"), (attack, "step_size")):
        value = getattr(owner, name, None)
        if isinstance(value, torch.Tensor) and value.ndim:
            raise ValueError(
                f"evaluate takes one {name} for all samples; got a tensor of shape "
                f"{tuple(value.shape)}"
            )


def _check_loss(attack: SampleAttack) -> None:
    name = getattr(getattr(attack, "loss", None), "__name__", "")
    if name == "<lambda>" or "<lambda>" in repr(attack):
        raise ValueError(
            "checkpoint needs a loss with a name: the code of a lambda cannot be compared on "
            f"resuming. Give loss a function made by def; got {attack!r}"
        )


@contextlib.contextmanager
def _generator_put_back() -> Iterator[None]:
    """A loader draws its seed and its order from the global CPU generator, which is the user's."""
    state = torch.default_generator.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@dataclass
class _Task:
    """What is the same for every block; device is None for a model that names none."""

    model: Model
    attack: SampleAttack
    execution: Execution
    device: torch.device | None

    def attack_block(self, x: torch.Tensor, y: torch.Tensor, state: Progress) -> None:
        """Attack one block and enter its results in `state`."""
        if self.device is not None:
            x, y = x.to(self.device), y.to(self.device)
        sample_ids = torch.arange(state.done, state.done + len(x), device=x.device)
        began = time.perf_counter()
        with _collected(state.warnings):
            result = self.attack.run(
                self.model, x, y, sample_ids=sample_ids, execution=self.execution
            )
            clean, forwards = result.clean_prediction, result.forwards
            if clean is None:  # keep="last" never looks at the clean samples
                clean = self._clean_logits(x).argmax(1)
                forwards += len(x)
        state.extend(
            clean_correct=clean == y, success=result.success, step=result.step,
            distance=result.distance,
        )  # fmt: skip
        state.forwards += forwards
        state.backwards += result.backwards
        state.seconds += time.perf_counter() - began

    def predicts_as_stored(self, x: torch.Tensor, y: torch.Tensor, state: Progress) -> bool:
        """Whether the model still classifies the first samples of `state` as it did.

        Near ties do not count, nor does a model that draws random numbers: its predictions depend
        on how samples are batched.
        """
        logits = self._clean_logits(x).cpu()
        differs = (logits.argmax(1) == y.cpu()) != state.columns["clean_correct"][: len(x)]
        top = logits.topk(min(2, logits.shape[1]), dim=1).values
        differs &= ~(top[:, 0] - top[:, -1] <= _TIE * logits.abs().amax(1))
        if not bool(differs.any()):
            return True
        return not torch.equal(self._clean_logits(x, reseed=1).cpu(), logits)

    def _clean_logits(self, x: torch.Tensor, *, reseed: int = 0) -> torch.Tensor:
        size, seed = self.execution.batch_size or len(x), getattr(self.attack, "seed", 0) or 0
        return logits_of(self.model, x, batch_size=size, seed=seed + reseed)


def logits_of(model: Model, x: torch.Tensor, *, batch_size: int, seed: int = 0) -> torch.Tensor:
    """(n, C) logits that the model gives x, in eval mode, on the model's device."""
    device = _device_of(module_of(model)) or x.device
    with isolated(model, device=device, seed=seed):
        return torch.cat([model(chunk.to(device)) for chunk in x.split(batch_size)])


@contextlib.contextmanager
def _collected(counts: dict[str, int]) -> Iterator[None]:
    """Add up the `AttackWarning`s of a block by code; any other warning goes on its way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", diagnostics.AttackWarning)
        yield
    for warning in caught:
        if isinstance(warning.message, diagnostics.AttackWarning):
            code = warning.message.code
            counts[code] = counts.get(code, 0) + warning.message.count
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _skip(
    samples: Samples, block_size: int, state: Progress, digest: DataDigest,
    path: str | os.PathLike[str],
) -> tuple[torch.Tensor, torch.Tensor] | None:  # fmt: skip
    """Read past the samples that a checkpoint has, checking that they are the same; their first
    block, None if there is none."""
    skipped, first = 0, None
    while skipped < state.done:
        block = samples.take(min(state.done - skipped, block_size))
        if block is None:
            break
        first = block if first is None else first
        digest.update(*block)
        skipped += len(block[0])
    if state.done:
        state.check_data(digest.hexdigest(), path)
    if state.finished and (more := samples.take(1)) is not None:
        digest.update(*more)
        state.check_data(digest.hexdigest(), path)
    return first


def _device_of(module: torch.nn.Module | None) -> torch.device | None:
    if module is None:
        return None
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


@contextlib.contextmanager
def _bar(done: int, total: int | None, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar by rich, else tqdm, on a terminal; else nothing."""
    if not wanted or not sys.stderr.isatty():
        yield lambda count: None
    elif importlib.util.find_spec("rich") is not None:
        console = importlib.import_module("rich.console").Console(stderr=True)
        bar = importlib.import_module("rich.progress").Progress(console=console, transient=True)
        with bar:
            task = bar.add_task("attacking", total=total, completed=done)
            yield lambda count: bar.advance(task, count)
    elif importlib.util.find_spec("tqdm") is not None:
        with importlib.import_module("tqdm").tqdm(total=total, initial=done, leave=False) as bar:
            yield bar.update
    else:
        yield lambda count: None


def _report(model: Model, attack: SampleAttack, state: Progress, device: torch.device) -> Report:
    threat = getattr(attack, "threat", None)
    eps = getattr(threat, "eps", None)
    columns = state.columns
    return Report(
        model=_describe_model(model, state.model),
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
        warnings=dict(state.warnings),
        environment=describe_environment(device, version=fastadv.__version__),
    )


def _describe_model(model: Model, fingerprint: str) -> str:
    module = module_of(model)
    if module is None:
        return getattr(model, "__qualname__", type(model).__name__)
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(module).__name__} ({count:,} parameters, sha256 {fingerprint[:12]})"
