"""Training steps against the textbook loops: seconds an epoch, work, ops, memory, robustness.

All providers of a case train in one process, in turn: a round is so many consecutive minibatches of
each, loader and optimizer included, on which each goes on training its own network from the same
first weights. Before any is timed, its weights after 24 optimizer steps are compared with those of
the textbook step from the same weights, batches and noise, in float64.

    python -m benchmarks.training
    python -m benchmarks.training --data DIR --case mnist-fast --rounds 11 --threads 2
    python -m benchmarks.training --data DIR --case mnist-pgd --rounds 3 --train-epochs 5
"""

import argparse
import copy
import statistics
from pathlib import Path

import torch

import fastadv
from benchmarks import reference
from benchmarks.harness import environment, harness, output, schema
from benchmarks.harness.tally import Tally
from benchmarks.training import tables as training_tables
from benchmarks.training.cases import CASES, NETWORKS, Split, TrainingCase, attack_step, load
from benchmarks.training.providers import (
    BASELINE,
    PER_SAMPLE,
    PROVIDERS,
    Build,
    Setting,
    Trainer,
    noise_of,
    optimizer_of,
    textbook_step,
)
from benchmarks.training.work_units import count_units
from fastadv.data import to_unit_interval

SUITE = "training"
_PARITY_STEPS = 24  # whole minibatches of Free-AT's 8 replays
_PARITY_BATCH = 32
_PARITY = 1e-10  # float64: what is left is rounding
_MIB = 2**20


def parity(case: TrainingCase, name: str, split: Split, device: torch.device) -> schema.Equality:
    """The largest difference of a weight from the textbook's after 24 optimizer steps.

    Same weights, batches and noise for both, in float64: in fp32 one gradient near zero that rounds
    to another sign parts the two loops by far more than the tolerance (measured after 20 steps:
    4e-6 for MNIST's Fast-AT, 9e-3 for CIFAR-10's). Both in the provider's memory format: another
    one rounds otherwise, and breaks ties of max-pooling over flat images otherwise, also in
    float64. Raises ValueError beyond the tolerance.
    """
    dtype = torch.float64
    trainer = PROVIDERS[name](case, split, Setting(device, dtype))
    theirs = copy.deepcopy(trainer.model)
    step = textbook_step(case, theirs, optimizer_of(case, theirs))
    generator = torch.Generator(device).manual_seed(1)
    for i in range(_PARITY_STEPS // case.optimizer_steps):
        rows = torch.arange(i * _PARITY_BATCH, (i + 1) * _PARITY_BATCH)
        x = to_unit_interval(split.images[rows].to(device)).to(dtype)
        y = split.labels[rows].to(device)
        noise = noise_of(case, x, generator)
        trainer.update(x, y, noise)
        step(x, y, noise)
    pairs = zip(trainer.model.parameters(), theirs.parameters(), strict=True)
    error = max(harness.max_difference(own.detach(), w.detach()) for own, w in pairs)
    metric = (
        f"max |w - textbook| after {_PARITY_STEPS} optimizer steps on batches of "
        f"{_PARITY_BATCH} from the same weights, batches and noise, float64"
    )
    try:
        return schema.Equality(error, _PARITY, metric, f"textbook {case.method} step")
    except ValueError as refused:
        raise ValueError(f"{name} on {case.name}: {refused}") from refused


def counted(trainer: Trainer, case: TrainingCase) -> dict[str, float]:
    """Work an optimizer step, not the first: units, ops, Triton launches, reads of results.

    The optimizer counts in ops, not in reads; the loader's ops, a minibatch, stand apart.
    """
    trainer.run(1)
    x, y = trainer.next_batch()
    units = count_units(lambda: trainer.update(x, y, None), trainer.model)
    with Tally() as loading:
        x, y = trainer.next_batch()
    with Tally() as stepping:
        trainer.update(x, y, None)
    with Tally() as optimizing:  # torch's optimizers read their own step counters, on the CPU
        trainer.optimizer.step()
    steps = case.optimizer_steps
    reads = stepping.data_dependent - steps * optimizing.data_dependent
    return {
        "forward": units.forward / steps,
        "backward": units.backward / steps,
        "weight": units.weight / steps,
        "units": units.total / steps,
        "optimizer_steps": steps,
        "ops": stepping.ops / steps,
        "triton_launches": stepping.triton_launches / steps,
        "data_dependent_ops": reads / steps,
        "loader_ops": loading.ops,
    }


def peak_memory(trainer: Trainer, device: torch.device) -> dict[str, float]:
    """MiB that a minibatch takes beyond what was there before; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    trainer.run(2)
    return {"peak_memory_mib": (torch.cuda.max_memory_allocated(device) - before) / _MIB}


def robust_accuracy(
    case: TrainingCase, build: Build, split: Split, setting: Setting, *, epochs: int
) -> schema.Robustness:
    """Trains anew, the rate rising and falling as in Fast-AT's scripts, and attacks the result."""
    trainer = build(case, split, setting)
    batches = len(trainer.loader)
    peak_at = epochs * (0.4 if case.data == "mnist" else 0.5)
    rate = reference.interpolated_lr(epochs, peak=case.rate, peak_at=peak_at)
    for done in range(epochs * batches):
        trainer.optimizer.param_groups[0]["lr"] = rate((done + 1) / batches)
        trainer.run(1)
    step_size = attack_step(case)
    attack = fastadv.pgd(fastadv.Linf(case.eps), steps=50, restarts=10, step_size=step_size)
    x, y = split.x.to(setting.device), split.y.to(setting.device)
    report = fastadv.evaluate(trainer.model.eval(), (x, y), attack, batch_size=200)
    return schema.Robustness(
        attack="pgd",
        norm="linf",
        eps=case.eps,
        step_size=step_size,
        steps=50,
        restarts=10,
        seed=0,
        n=len(y),
        model=f"{NETWORKS[case.data][0]}, {epochs} epochs",
        data=f"{case.data}, test",
        clean_accuracy=report.clean_accuracy,
        robust_accuracy=report.robust_accuracy,
    )


def run_case(
    case: TrainingCase,
    split: Split,
    where: schema.Environment,
    setting: Setting,
    *,
    rounds: int,
    batches: int,
    train_epochs: int = 0,
) -> list[schema.Row]:
    """The rows of a case, one a provider; batches: optimizer steps of a round, an epoch at most."""
    device = setting.device
    equalities = {name: parity(case, name, split, device) for name in PROVIDERS}
    trainers = {name: build(case, split, setting) for name, build in PROVIDERS.items()}
    extras = {name: counted(trainer, case) for name, trainer in trainers.items()}
    for name, trainer in trainers.items():
        extras[name] |= peak_memory(trainer, device)
    epoch = len(trainers[BASELINE].loader)
    batches = min(max(1, batches // case.optimizer_steps), epoch)
    clock = harness.cpu_clock
    if device.type == "cuda":
        clock = harness.cuda_clock(device, flush=False)
    times = harness.time_interleaved(
        {name: lambda t=trainer: t.run(batches) for name, trainer in trainers.items()},
        rounds=rounds,
        warmup=1,
        clock=clock,
    )
    accuracies = {
        name: robust_accuracy(case, build, split, setting, epochs=train_epochs)
        if train_epochs
        else None
        for name, build in PROVIDERS.items()
    }
    rows = []
    for name, seconds in times.items():
        q20, q50, q80 = (q * epoch / batches for q in harness.quantiles(seconds))
        extra = extras[name] | {
            "batches": batches,
            "epoch_batches": epoch,
            "over_per_sample": _ratio(times[PER_SAMPLE], seconds),
        }
        rows.append(
            schema.Row(
                suite=SUITE,
                case=case.title,
                provider=name,
                shape=(case.batch_size, *split.images.shape[1:]),
                dtype="bfloat16 autocast" if setting.precision == "bf16" else "float32",
                n=batches * case.batch_size,
                rounds=rounds,
                q20=q20,
                q50=q50,
                q80=q80,
                unit="s",
                timed=_timed(batches, epoch),
                not_timed="import, data upload, construction, the first minibatches, evaluation",
                baseline=BASELINE,
                ratio=_ratio(times[BASELINE], seconds),
                equality=equalities[name],
                environment=where,
                robustness=accuracies[name],
                extra=extra,
            )
        )
    return rows


def _timed(batches: int, epoch: int) -> str:
    return f"{batches} consecutive minibatches, loader and optimizer included" + (
        "" if batches == epoch else f", times {epoch}/{batches} for an epoch of {epoch}"
    )


def _ratio(base: list[float], own: list[float]) -> float:
    """Median over rounds of base / own."""
    return float(f"{statistics.median(b / o for b, o in zip(base, own, strict=True)):.4g}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of MNIST's and CIFAR-10's files")
    parser.add_argument(
        "--case",
        choices=CASES,
        action="append",
        help="may be given several times; all of MNIST and CIFAR-10, without --data the digits",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each provider")
    parser.add_argument(
        "--batches", type=int, default=50, help="optimizer steps of a round, at most an epoch"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--train-epochs",
        type=int,
        default=0,
        help="also train each provider so many epochs and attack it with PGD-50-10",
    )
    parser.add_argument("--test-samples", type=int, default=1000, help="test images attacked")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its own choice if none")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = environment.default_device()
    where = environment.describe(
        [], device=device, module="benchmarks.training", arguments=arguments
    )
    setting = Setting(device, precision=options.precision)
    names = options.case or [
        name for name, case in CASES.items() if (case.data == "digits") == (options.data is None)
    ]
    rows = []
    for name in names:
        case = CASES[name]
        print(f"{case.title}, {options.rounds} rounds", flush=True)
        split = load(case, options.data, test_samples=options.test_samples)
        found = run_case(
            case,
            split,
            where,
            setting,
            rounds=options.rounds,
            batches=options.batches,
            train_epochs=options.train_epochs,
        )
        harness.print_rows(found)
        rows += found
        output.record(found, options.results)
    print(f"\n{training_tables.training(rows)}")


if __name__ == "__main__":
    main()
