"""Speed-run: seconds from the first training step to final weights, and how robust those are.

Rules, after airbench's: the clock runs from the first training step to the final weights; import,
data upload, warm-up and graph capture are printed, not timed. Nothing is selected on the test set.
Several seeds, of which mean, worst and the share that collapsed are given. The final weights are
attacked in fp32 in eval mode on all 10,000 test images: clean, PGD-50-10, and with --autoattack N
AutoAttack on the first N. One modern GPU in bf16, channels_last, a whole step one CUDA graph; on a
CPU the same code runs in fp32 without the graph, with smaller defaults.

    python -m benchmarks.training.speedrun --dataset cifar10 --data DIR --seeds 10
    python -m benchmarks.training.speedrun --dataset mnist --data DIR --seeds 3 --test-samples 1000
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fastadv
from benchmarks import reference
from benchmarks.harness import environment, schema
from fastadv import training
from fastadv.data import DeviceLoader, load_cifar10, load_mnist, to_unit_interval
from fastadv.models import build

SUITE = "speedrun"
_HELD_OUT = 1000  # training samples that tell a collapse
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """A recipe. peak: (fraction of the run, learning rate) of the triangular schedule, which ends
    at 0. noise, step: in units of eps. limit: training samples, None for all, of which 1,000 are
    held out."""

    dataset: str
    model: str
    eps: float
    epochs: int
    batch_size: int
    peak: tuple[float, float]
    momentum: float
    weight_decay: float
    label_smoothing: float
    ema: float | None
    crop: int
    flip: str | None
    method: str
    steps: int
    step: float
    warm_up: float = 0.0
    limit: int | None = None


PLANS = {
    "cifar10": Plan(
        "cifar10", "preact-resnet18", 8 / 255, 15, 256, (0.5, 0.2), 0.9, 5e-4, 0.1, 0.99, 4,
        "alternate", "nfgsm", 1, 1.0,
    ),
    "cifar10-cpu": Plan(
        "cifar10", "fast-cifar", 8 / 255, 4, 128, (0.4, 0.1), 0.9, 5e-4, 0.1, 0.98, 4,
        "alternate", "nfgsm", 1, 1.0, limit=5000,
    ),
    "mnist": Plan(
        "mnist", "mnist", 0.3, 5, 100, (0.4, 0.1), 0.9, 0.0, 0.0, None, 0, None, "pgd", 5, 0.25,
        warm_up=2.5,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One seed. seconds: the clock of the rules; warm_up: before it. Accuracies in [0, 1].

    collapsed: on held-out training samples PGD-10 takes nearly all, or one step hides that.
    """

    seed: int
    seconds: float
    warm_up: float
    collapsed: bool
    clean: float
    pgd_50_10: float
    autoattack: float | None


def make_step(plan: Plan, batches: int, seed: int, precision: str) -> training.CraftedStep:
    threat = fastadv.Linf(plan.eps)
    common: dict[str, Any] = dict(
        label_smoothing=plan.label_smoothing,
        eps_warmup=round(plan.warm_up * batches),
        seed=seed,
        precision=precision,
        step_size=plan.step * plan.eps,
    )
    if plan.method == "nfgsm":
        return training.NFGSM(threat, **common)
    if plan.method == "fast":
        return training.FastAT(threat, **common)
    return training.PGDAT(threat, steps=plan.steps, **common)


class Run:
    """One seed of a plan: `train` gives the model to be attacked."""

    def __init__(
        self,
        plan: Plan,
        images: torch.Tensor,
        labels: torch.Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        self.plan = plan
        on_gpu = device.type == "cuda"
        self.loader = DeviceLoader(
            images,
            labels,
            batch_size=plan.batch_size,
            seed=seed,
            crop=plan.crop,
            flip=plan.flip,
            drop_last=True,
            channels_last=on_gpu,
            device=device,
        )
        self.total = plan.epochs * len(self.loader)
        self.model = build(plan.model, seed=seed).to(device)
        if on_gpu:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rate = torch.zeros((), device=device)  # a tensor: the graph reads it anew
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.rate if on_gpu else 0.0,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            nesterov=True,
            fused=on_gpu,
        )
        self.average = None if plan.ema is None else training.ema(self.model, decay=plan.ema)
        self.step = make_step(plan, len(self.loader), seed, "bf16" if on_gpu else "fp32")
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[torch.Tensor, ...] = ()

    def train(self) -> tuple[nn.Module, float, float]:
        """(model, seconds from the first step to final weights, seconds of warm-up before)."""
        began = time.perf_counter()
        if self.rate.is_cuda:
            self._capture()
        _wait(self.rate)
        warmed = time.perf_counter()
        done = 0
        reach = self.step.noise if isinstance(self.step, training.NFGSM) else 1.0
        for _ in range(self.plan.epochs):
            starts = self.loader.with_start(
                eps=reach * self.step.effective_eps,
                seed=self.step.seed,
                bounds=None if self.plan.method == "fast" else (0.0, 1.0),
            )
            for batch in starts:
                self._set_rate(done)
                if self.graph is None or self.step.effective_eps < self.plan.eps:
                    self._one_step(*batch)
                else:
                    for kept, new in zip(self.inputs, batch, strict=True):
                        kept.copy_(new)
                    self.graph.replay()
                if self.average is not None:
                    self.average.update_parameters(self.model)
                done += 1
        _wait(self.rate)
        model = self.model if self.average is None else self.average.module
        return model.eval(), time.perf_counter() - warmed, warmed - began

    def _one_step(
        self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, x_start: torch.Tensor
    ) -> None:
        loss = self.step.loss(self.model, x, y, sample_ids=index, x_init=x_start)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _set_rate(self, done: int) -> None:
        at, peak = self.plan.peak
        rate = float(np.interp((done + 0.5) / self.total, (0, at, 1), (0, peak, 0)))
        if self.rate.is_cuda:
            self.rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate

    def _capture(self) -> None:
        """Record one whole step at full eps; weights, momentum and counters stay as they were."""
        loader, before = self.loader, {k: v.clone() for k, v in self.model.state_dict().items()}
        position = loader.state_dict()
        self.inputs = tuple(t.clone() for t in next(iter(loader.with_start(eps=self.plan.eps))))
        loader.load_state_dict(position)
        self.step.batches = self.step.eps_warmup
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # rate 0: nothing moves but momentum and statistics
            for _ in range(_WARM_UP_STEPS):
                self._one_step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._one_step(*self.inputs)
        self.model.load_state_dict(before)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
        self.step.batches = 0


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def parity(plan: Plan, x: torch.Tensor, y: torch.Tensor) -> schema.Equality:
    """Largest difference of the weights from the textbook's after three fp32 steps on one batch."""
    threat, step_size = fastadv.Linf(plan.eps), plan.step * plan.eps
    x_start = fastadv.start_point(threat, x, seed=0)
    noise = x_start - x
    ours, theirs = (build(plan.model, seed=0).to(x.device) for _ in range(2))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.01) for net in (ours, theirs)]
    step = make_step(replace(plan, label_smoothing=0.0, warm_up=0.0), 1, 0, "fp32")
    step.bn = "train"
    textbook: dict[str, Callable[[], object]] = {
        "fast": lambda: reference.fast_step(
            theirs,
            optimizers[1],
            x,
            y,
            eps=plan.eps,
            step_size=step_size,
            noise=noise,
            clamp_start=True,
        ),
        "nfgsm": lambda: reference.nfgsm_step(
            theirs, optimizers[1], x, y, step_size=step_size, noise=noise
        ),
        "pgd": lambda: reference.pgd_step(
            theirs,
            optimizers[1],
            x,
            y,
            eps=plan.eps,
            step_size=step_size,
            steps=plan.steps,
            noise=noise,
        ),
    }
    for _ in range(3):
        for loss in step(ours, x, y, x_init=x_start):
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
        textbook[plan.method]()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    error = max(float((a - b).detach().abs().max()) for a, b in pairs)
    metric = "max |w - textbook| after 3 SGD steps, rate 0.01, one fp32 batch"
    return schema.Equality(error, 1e-5, metric, f"textbook {plan.method} step")


def evaluate(
    model: nn.Module, plan: Plan, x: torch.Tensor, y: torch.Tensor, autoattack: int
) -> tuple[float, float, float | None]:
    """Clean, PGD-50-10 and, on the first `autoattack` samples, AutoAttack accuracy, in fp32."""
    threat = fastadv.Linf(plan.eps)
    step_size = 0.01 if plan.dataset == "mnist" else 2 / 255
    attack = fastadv.pgd(threat, steps=50, restarts=10, step_size=step_size, seed=0)
    report = fastadv.evaluate(model, (x, y), attack, batch_size=1000 if x.is_cuda else 200)
    auto = None
    if autoattack:
        first = x[:autoattack], y[:autoattack]
        auto = fastadv.evaluate(model, first, fastadv.autoattack(threat)).robust_accuracy
    return report.clean_accuracy, report.robust_accuracy, auto


def outcome(
    plan: Plan,
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    seed: int,
    device: torch.device,
    autoattack: int,
) -> Outcome:
    images, labels = train
    run = Run(plan, images[_HELD_OUT:], labels[_HELD_OUT:], seed, device)
    model, seconds, warm_up = run.train()
    held = to_unit_interval(images[:_HELD_OUT].to(device))
    watch = training.Sentinel(fastadv.Linf(plan.eps), held, labels[:_HELD_OUT].to(device), every=1)
    x, y = to_unit_interval(test[0].to(device)), test[1].to(device)
    check = watch.examine(model)
    collapsed = check.is_masked or check.pgd < check.clean / 10
    return Outcome(seed, seconds, warm_up, collapsed, *evaluate(model, plan, x, y, autoattack))


def _row(
    plan: Plan,
    outcomes: list[Outcome],
    n: int,
    equality: schema.Equality,
    where: schema.Environment,
    shape: tuple[int, ...],
    samples: int,
) -> schema.Row:
    seconds = [o.seconds for o in outcomes]
    spread = statistics.quantiles(seconds, n=5) if len(seconds) > 1 else seconds * 4
    robust = [o.pgd_50_10 for o in outcomes]
    mean = statistics.fmean
    auto = [o.autoattack for o in outcomes if o.autoattack is not None]
    extra = {
        "seeds": len(outcomes),
        "worst": min(robust),
        "collapse_rate": mean(float(o.collapsed) for o in outcomes),
        "warm_up_s": mean(o.warm_up for o in outcomes),
        "epochs": plan.epochs,
        "train_samples": samples,
    }
    if auto:
        extra["autoattack"] = mean(auto)
    return schema.Row(
        suite=SUITE,
        case=f"{plan.dataset}, {plan.method}",
        provider="fastadv",
        shape=shape,
        dtype="bfloat16" if where.device != "cpu" and torch.cuda.is_available() else "float32",
        n=len(outcomes),
        rounds=len(outcomes),
        q20=spread[0],
        q50=statistics.median(seconds),
        q80=spread[-1],
        unit="s",
        timed="from the first training step to the final weights",
        not_timed="import, data upload, warm-up, graph capture, evaluation",
        baseline="fastadv",
        ratio=1.0,
        equality=equality,
        environment=where,
        extra=extra,
        robustness=schema.Robustness(
            attack="PGD",
            norm="linf",
            eps=plan.eps,
            step_size=0.01 if plan.dataset == "mnist" else 2 / 255,
            steps=50,
            restarts=10,
            seed=0,
            n=n,
            model=f"{plan.model}, final weights of {len(outcomes)} seeds",
            data=plan.dataset,
            clean_accuracy=mean(o.clean for o in outcomes),
            robust_accuracy=mean(robust),
        ),
    )


def _first(
    data: tuple[torch.Tensor, torch.Tensor], count: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    return data[0][:count], data[1][:count]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.speedrun",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", choices=("cifar10", "mnist"), required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published files")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, help="the plan's if not given")
    parser.add_argument("--limit", type=int, help="training samples, the plan's if not given")
    parser.add_argument("--test-samples", type=int, default=10_000)
    parser.add_argument(
        "--autoattack", type=int, default=0, help="test samples for AutoAttack, which takes long"
    )
    parser.add_argument("--results", type=Path, default=schema.RESULTS)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1; got {options.seeds}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = options.dataset
    plan = PLANS.get(f"{name}-{device.type}", PLANS[name])
    plan = replace(plan, epochs=options.epochs or plan.epochs, limit=options.limit or plan.limit)
    load = load_mnist if name == "mnist" else load_cifar10
    train = _first(load(options.data, "train"), plan.limit)
    test = _first(load(options.data, "test"), options.test_samples)
    where = environment.describe(
        [], device=device, module="benchmarks.training.speedrun", arguments=arguments
    )
    x = to_unit_interval(train[0][:32].to(device))
    equality = parity(plan, x, train[1][:32].to(device))
    print(f"{plan}\nequal to the textbook within {equality.error:.2g} ({equality.metric})")
    outcomes = []
    for seed in range(options.seeds):
        outcomes.append(outcome(plan, train, test, seed, device, options.autoattack))
        print("  ".join(f"{k} {v}" for k, v in asdict(outcomes[-1]).items()), flush=True)
    shape, samples = tuple(train[0].shape[1:]), len(train[0]) - _HELD_OUT
    row = _row(plan, outcomes, len(test[0]), equality, where, shape, samples)
    robust = row.robustness
    assert robust is not None
    print(
        f"{row.q50:.2f} s, clean {robust.clean_accuracy:.2%}, PGD-50-10 mean "
        f"{robust.robust_accuracy:.2%}, worst {row.extra['worst']:.2%}, collapse rate "
        f"{row.extra['collapse_rate']:.0%} of {options.seeds} seeds"
    )
    schema.append_rows([row], options.results)


if __name__ == "__main__":
    main()
