"""Training steps against the textbook loops, eager and as one CUDA graph."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu.attack_providers import Watched
from benchmarks.gpu.session import Session
from benchmarks.harness import harness, schema
from benchmarks.harness.peers import Unavailable
from benchmarks.training.cases import TrainingCase
from benchmarks.training.providers import make_step, noise_of, optimizer_of, start_of, textbook_step
from fastadv import training
from fastadv.models import preact_resnet18

SUITE = "gpu_training"
TEXTBOOK, EAGER, GRAPHED = "textbook", "fastadv", "fastadv graphed"
_MINIBATCHES = 4  # of one timed call
_TIMED = (
    f"{_MINIBATCHES} consecutive minibatches of the same tensors on the device, optimizer "
    "included, no loader; bf16 by autocast"
)
_NOT_TIMED = "import, construction, the first minibatches with compilation and graph capture"
_PARITY = 1e-8
_PARITY_BATCH, _PARITY_MINIBATCHES = 8, 6  # behind a graph's warm-up come a capture and replays
# Free's minibatch is 8 optimizer steps; TRADES' authors pass the clean batch twice, so that their
# running statistics, and behind the first update the craft in eval mode, are others than ours
_PARITY_SINGLE = ("free", "trades")
_METRIC = (
    f"max |w - reference| after {_PARITY_MINIBATCHES} minibatches (Free, TRADES: one) of "
    f"{_PARITY_BATCH} from the same weights, batches and noise, float64; tolerance: cuDNN may add "
    "in another order each time"
)


@dataclass(frozen=True)
class Setting:
    """What all trainers of a case share. dtype: of weights; autocast: to bf16."""

    case: TrainingCase
    device: torch.device
    tiny: bool
    dtype: torch.dtype = torch.float32
    autocast: bool = True

    def network(self, *, channels_last: bool) -> nn.Module:
        model = gpu_networks.tiny_resnet() if self.tiny else preact_resnet18()
        model = model.to(self.device, self.dtype).train()
        if channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def batch(self, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        size = 8 if self.tiny else 32
        x = torch.rand(n, 3, size, size, generator=generator, device=self.device)
        y = torch.randint(10, (n,), generator=generator, device=self.device)
        return x.to(self.dtype), y


# (x, y) to the loss of a whole training step on them, the optimizer's included
Update = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _case(method: str, steps: int, step_size: float, batch: int) -> TrainingCase:
    return TrainingCase(
        f"gpu-{method}",
        "cifar10",
        method,
        batch,
        8 / 255,
        step_size,
        steps,
        "sgd",
        0.05,
        clamp_start=True,
    )


def cases(*, tiny: bool) -> list[TrainingCase]:
    return [
        _case(method, steps, step_size, batch)
        for batch in ((4,) if tiny else (128, 512))
        for method, steps, step_size in (
            ("fast", 1, 10 / 255),
            ("pgd", 7, 2 / 255),
            ("trades", 10, 2 / 255),
            ("free", 1, 8 / 255),
        )
    ]


def main(session: Session) -> None:
    for case in cases(tiny=session.tiny):
        name = f"{case.title.partition(': ')[2]} batch {case.batch_size}"
        if session.may_begin(name):
            with session.guarded(name):
                run_case(session, case, name)


def run_case(session: Session, case: TrainingCase, name: str) -> None:
    setting = Setting(case, session.device, session.tiny)
    x, y = setting.batch(case.batch_size, 0)
    wide = replace(setting, dtype=torch.float64, autocast=False)
    runs: dict[str, harness.Run] = {}
    equalities: dict[str, schema.Equality] = {}
    for label, (build, last, parity) in PROVIDERS.items():
        try:
            equalities[label] = parity(wide)
            model = setting.network(channels_last=last)
            update = build(setting, model)
            layout = torch.channels_last if last else torch.contiguous_format
            images = x.contiguous(memory_format=layout)
            runs[label] = functools.partial(_minibatches, update, images, y)
        except Exception as error:
            session.report(f"{name}, {label}", error)
    watched = {label: Watched(run, session.device) for label, run in runs.items()}
    description = harness.Case(
        suite=SUITE,
        name=name,
        shape=tuple(x.shape),
        dtype="bfloat16 autocast",
        n=_MINIBATCHES * case.batch_size,
        timed=_TIMED,
        not_timed=_NOT_TIMED,
        baseline=TEXTBOOK if TEXTBOOK in runs else next(iter(runs)),
    )
    print(name)
    rows = session.measure(
        description, watched, lambda label, loss: equalities[label], harness.Timing(9)
    )
    extra = {"optimizer_steps": _MINIBATCHES * case.optimizer_steps}
    session.add(
        [
            replace(row, extra=extra | {"ms_per_minibatch": row.q50 / _MINIBATCHES} | _peak(w))
            for row in rows
            for w in [watched[row.provider]]
        ]
    )


def _peak(watched: Watched) -> dict[str, float]:
    return {} if watched.peak_mib is None else {"peak_memory_mib": watched.peak_mib}


def _minibatches(update: Update, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    for _ in range(_MINIBATCHES - 1):
        update(x, y)
    return update(x, y).detach()


def _textbook(setting: Setting, model: nn.Module) -> Update:
    """The authors' loop, which reads its loss back each step."""
    case = setting.case
    step = textbook_step(case, model, optimizer_of(case, model))
    generator = torch.Generator(setting.device).manual_seed(0)

    def update(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        noise = None if case.method == "free" else noise_of(case, x, generator)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=setting.autocast):
            loss = step(x, y, noise)
        loss.item()
        return loss

    return update


def _precision(setting: Setting) -> str:
    return "bf16" if setting.autocast else "fp32"


def _eager(setting: Setting, model: nn.Module) -> Update:
    case = setting.case
    step = make_step(case, _precision(setting))
    optimizer = optimizer_of(case, model, fused=True)

    def update(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros(())
        for loss in step(model, x, y):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss

    return update


def _graphed(setting: Setting, model: nn.Module) -> Update:
    """`fastadv.training.graphed`; raises Unavailable where it cannot take the step."""
    graphed: Any = getattr(training, "graphed", None)
    if graphed is None:
        raise Unavailable("fastadv.training.graphed is not there")
    optimizer = optimizer_of(setting.case, model, fused=True)
    on_gpu = setting.device.type == "cuda"
    try:
        # True: a step that cannot be captured raises, and has no time under this name
        run = graphed(
            make_step(setting.case, _precision(setting)),
            optimizer,
            cuda_graph=True if on_gpu else "auto",
        )
    except TypeError as error:
        raise Unavailable(str(error)) from error
    return lambda x, y: run(model, x, y)


def _distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(harness.max_difference(a.detach(), b.detach()) for a, b in pairs)


def _parity_with_textbook(setting: Setting) -> schema.Equality:
    """fastadv's step from the textbook's start iterates; of Free, which draws none, as it is."""
    case = setting.case
    theirs = setting.network(channels_last=False)
    ours = copy.deepcopy(theirs)
    step, their_step = make_step(case), textbook_step(case, theirs, optimizer_of(case, theirs))
    optimizer = optimizer_of(case, ours)
    generator = torch.Generator(setting.device).manual_seed(1)
    for i in range(1 if case.method in _PARITY_SINGLE else _PARITY_MINIBATCHES):
        x, y = setting.batch(_PARITY_BATCH, i)
        noise = noise_of(case, x, generator)
        more = {} if case.method == "free" else {"x_init": start_of(case, x, noise)}
        for loss in step(ours, x, y, **more):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        their_step(x, y, None if case.method == "free" else noise)
    return schema.Equality(_distance(ours, theirs), _PARITY, _METRIC, "textbook step")


def _parity_of_graph(setting: Setting) -> schema.Equality:
    """The graphed step against the eager one, each with its own noise, which is the same."""
    ours = setting.network(channels_last=False)
    other = copy.deepcopy(ours)
    updates = _graphed(setting, ours), _eager(setting, other)
    for i in range(_PARITY_MINIBATCHES):
        x, y = setting.batch(_PARITY_BATCH, i)
        for update in updates:
            update(x, y)
    return schema.Equality(_distance(ours, other), _PARITY, _METRIC, "fastadv's eager step")


def _itself(setting: Setting) -> schema.Equality:
    return schema.Equality(0.0, _PARITY, _METRIC, "itself")


# name: (build, channels_last, comparison)
PROVIDERS: dict[str, tuple[Callable, bool, Callable[[Setting], schema.Equality]]] = {
    TEXTBOOK: (_textbook, False, _itself),
    f"{TEXTBOOK}, channels_last": (_textbook, True, _itself),
    EAGER: (_eager, True, _parity_with_textbook),
    GRAPHED: (_graphed, True, _parity_of_graph),
}
