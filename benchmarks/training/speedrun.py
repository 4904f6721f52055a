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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

import fastadv
from benchmarks.harness import environment, output, schema
from benchmarks.training.plans import PLANS, Plan, parity
from benchmarks.training.timed_run import Run
from fastadv import training
from fastadv.data import load_cifar10, load_mnist, to_unit_interval

SUITE = "speedrun"
_HELD_OUT = 1000  # training samples that tell a collapse


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
    output.add_option(parser)
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
    output.record([row], options.results)


if __name__ == "__main__":
    main()
