"""Attacks against textbook loops and other libraries: `python -m benchmarks.attacks --help`."""

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

import fastadv
from benchmarks import reference
from benchmarks.attacks import ratios
from benchmarks.attacks.cases import CASES, AttackCase
from benchmarks.attacks.clocks import BARE, BothClocks, Shown
from benchmarks.harness import (
    environment,
    harness,
    networks,
    output,
    peers,
    schema,
    selection,
    tables,
)
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Attack, Settings, Unavailable
from fastadv.attacks.gradient.attack import Keep
from fastadv.execution import Batching

SUITE = "attacks"
_TIMED = (
    "{clock} time of one call of the attack on n samples in memory, warm; for fastadv with "
    "keep='first_success', foolbox and ART this includes the verification that they always do"
)
_NOT_TIMED = "import, construction of the attack, training of the network, evaluation, first call"

_ULPS = 1e-6  # the forms of the projection differ by an ulp of 1.0 (6e-8) a step: 16 of them
_L2_DRIFT = 1e-4  # norms are summed in other orders, and 40 steps amplify the last bits
_METRIC = "max |x_adv - reference| of all but 1 in {} samples: rounding decides the sign of zeros"


def problems(folder: str | Path | None) -> dict[str, networks.Build]:
    """Builders of the networks by name; folder: where MNIST lies, None for random images."""
    return {
        "digits_net": networks.digits,
        "mnist_net": lambda n, device: networks.mnist(n, device, folder),
        "BatchNormNet": networks.batchnorm,
    }


def fastadv_attack(settings: Settings, keep: Keep) -> fastadv.Attack:
    threat = (fastadv.Linf if settings.norm == "linf" else fastadv.L2)(settings.eps)
    steps, step_size, seed = settings.steps, settings.step_size, settings.seed
    if settings.kind == "fgsm":
        return fastadv.fgsm(threat, keep=keep, seed=seed)
    if settings.kind == "mifgsm":
        return fastadv.mifgsm(threat, steps=steps, step_size=step_size, keep=keep, seed=seed)
    return fastadv.pgd(
        threat,
        steps=steps,
        step_size=step_size,
        restarts=settings.restarts,
        random_start=settings.restarts > 1,
        keep=keep,
        seed=seed,
    )


def last_iterate(settings: Settings, problem: Problem) -> Attack:
    """fastadv with keep="last": no early stop and no verification, as the loops it is held to."""
    if settings.restarts > 1:
        raise Unavailable("keep='last' takes one restart")
    attack = fastadv_attack(settings, "last")
    return lambda: attack(problem.model, problem.x, problem.y)


def _fastadv_first_success(batching: Batching) -> peers.Driver:
    def driver(settings: Settings, problem: Problem) -> Attack:
        if batching == "plain" and settings.restarts == 1:
            raise Unavailable("timed with restarts only")
        attack = fastadv_attack(settings, "first_success")
        execution = fastadv.Execution(batching=batching)
        return lambda: attack(problem.model, problem.x, problem.y, execution=execution)

    return driver


def textbook(settings: Settings, problem: Problem) -> Attack:
    """The plain PyTorch loop of `benchmarks.reference`, the reference of every equality error."""
    model, x, y = problem.model, problem.x, problem.y
    steps = {"steps": settings.steps, "step_size": settings.step_size}
    if settings.kind == "fgsm":
        return lambda: reference.fgsm(model, x, y, eps=settings.eps)
    if settings.kind == "mifgsm":
        return lambda: reference.mifgsm(model, x, y, eps=settings.eps, **steps)

    def run() -> torch.Tensor:
        return reference.pgd(
            model,
            x,
            y,
            eps=settings.eps,
            norm=settings.norm,
            restarts=settings.restarts,
            random_start=settings.restarts > 1,
            generator=torch.Generator(device=x.device).manual_seed(settings.seed),
            **steps,
        )

    return run


def bare_passes(settings: Settings, problem: Problem) -> Attack:
    """The physical limit: as many forward and backward passes to the input as the attack makes, by
    the same model with frozen weights; nothing is attacked."""
    if settings.restarts > 1:
        raise Unavailable("how many passes restarts make depends on what falls")
    model, x = problem.model.requires_grad_(False), problem.x

    def run() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        for _ in range(settings.steps):
            logits = model(leaf)
            torch.autograd.grad(logits, leaf, torch.ones_like(logits))
        return x

    return run


_EARLY = "fastadv, first success"
_DRIVERS: dict[str, peers.Driver] = {
    "fastadv, last iterate": last_iterate,
    _EARLY: _fastadv_first_success("continuous"),
    f"{_EARLY}, plain": _fastadv_first_success("plain"),
    "fastadv.compat.torchattacks": peers.fastadv_compat,
    "textbook": textbook,
    BARE: bare_passes,
    **peers.DRIVERS,
}


def build_providers(case: AttackCase, problem: Problem) -> dict[str, Attack]:
    """The calls that can take part, each on a copy of the model; prints who cannot, and why."""
    runs = {}
    for name, driver in _DRIVERS.items():
        own = replace(problem, model=copy.deepcopy(problem.model))
        try:
            runs[name] = driver(case.settings, own)
        except Unavailable as reason:
            print(f"  without {name}: {reason}")
    return runs


def equality_check(case: AttackCase, problem: Problem) -> harness.Check:
    """Compares with the textbook loop: iterates and robust accuracy, or with restarts the latter.

    keep="first_success" is compared with the textbook step that keeps each first success.
    """
    settings = case.settings
    expected = textbook(settings, problem)()
    early = None
    if settings.restarts == 1 and settings.kind != "mifgsm":
        early = reference.pgd_first_success(
            problem.model,
            problem.x,
            problem.y,
            eps=settings.eps,
            steps=settings.steps,
            step_size=settings.step_size,
            norm=settings.norm,
        )
    tolerance = _ULPS if settings.norm == "linf" else _L2_DRIFT

    def check(name: str, x_adv: torch.Tensor) -> schema.Equality:
        if name == BARE:
            return schema.Equality(0.0, 0.0, "passes alone, which attack nothing", "none")
        is_early = name.startswith(_EARLY)
        wanted = early if is_early else expected
        label = "textbook, first success" if is_early else "textbook"
        same_accuracy = _equal_accuracy(problem, x_adv, expected if wanted is None else wanted)
        if wanted is None or settings.restarts > 1:
            return same_accuracy
        return _equal_iterates(x_adv, wanted, tolerance, label, case.one_in)

    return check


def _equal_accuracy(
    problem: Problem, x_adv: torch.Tensor, expected: torch.Tensor
) -> schema.Equality:
    error = abs(networks.accuracy(problem, x_adv) - networks.accuracy(problem, expected))
    metric = "difference of robust accuracy, of at most two samples: starts or choices differ"
    return schema.Equality(error, 2 / len(x_adv), metric, "textbook")


def _equal_iterates(
    x_adv: torch.Tensor, expected: torch.Tensor, tolerance: float, label: str, one_in: int
) -> schema.Equality:
    samples = zip(x_adv, expected, strict=True)
    worst = sorted(harness.max_difference(own, other) for own, other in samples)
    error = worst[len(worst) - 1 - len(worst) // one_in]
    outliers = sum(value > tolerance for value in worst)
    return schema.Equality(error, tolerance, _METRIC.format(one_in), label, outliers)


def _robustness(case: AttackCase, problem: Problem) -> Callable[[torch.Tensor], schema.Robustness]:
    settings = case.settings
    clean = networks.accuracy(problem, problem.x)
    return lambda x_adv: schema.Robustness(
        attack=settings.kind,
        norm=settings.norm,
        eps=settings.eps,
        step_size=settings.step_size,
        steps=settings.steps,
        restarts=settings.restarts,
        seed=settings.seed,
        n=len(problem.x),
        model=problem.name,
        data=problem.data,
        clean_accuracy=clean,
        robust_accuracy=networks.accuracy(problem, x_adv),
    )


def run_case(
    case: AttackCase,
    problem: Problem,
    where: schema.Environment,
    *,
    rounds: int,
    clock: Shown = "wall",
) -> list[schema.Row]:
    """The rows of one case; the baseline is torchattacks, or the textbook loop without it.

    The call that is compared with the reference is the warm-up. clock: the time that is shown, on a
    CPU; on a GPU it is the device's own.
    """
    runs = build_providers(case, problem)
    on_cpu = problem.x.device.type == "cpu"
    clocks = BothClocks(clock) if on_cpu else None
    description = harness.Case(
        suite=SUITE,
        name=case.name,
        shape=tuple(problem.x.shape),
        dtype=str(problem.x.dtype).removeprefix("torch."),
        n=len(problem.x),
        timed=_TIMED.format(clock=clock if on_cpu else "device"),
        not_timed=_NOT_TIMED,
        baseline="torchattacks" if "torchattacks" in runs else "textbook",
    )
    rows = harness.measure(
        description,
        runs,
        equality_check(case, problem),
        where,
        harness.Timing(rounds, warmup=0, clock=clocks),
        robustness=_robustness(case, problem),
    )
    rows = [replace(row, robustness=None) if row.provider == BARE else row for row in rows]
    return rows if clocks is None else clocks.rows(rows, runs)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--cases", default="", help="run the cases whose name matches this regex")
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each provider")
    parser.add_argument("--data", help="folder of MNIST's idx files; random images without it")
    parser.add_argument("--samples", type=int, help="at most so many samples a case")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its own choice if none")
    parser.add_argument(
        "--clock",
        choices=get_args(Shown),
        default="process",
        help="the time shown and compared on a CPU; rows hold the medians of both",
    )
    output.add_option(parser)
    options = parser.parse_args(arguments)
    chosen = selection.matching(options.cases, (case.name for case in CASES), option="--cases")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = environment.default_device()
    where = environment.describe(
        peers.DISTRIBUTIONS, device=device, module="benchmarks.attacks", arguments=arguments
    )
    builders, built, rows = problems(options.data), {}, []
    for case in (case for case in CASES if case.name in chosen):
        n = min(case.n, options.samples or case.n)
        key = (case.problem, n)
        if key not in built:
            built[key] = builders[case.problem](n, device)
        rounds = min(options.rounds, case.most_rounds)
        print(f"{case.name}, n={n}, {rounds} rounds", flush=True)
        found = run_case(case, built[key], where, rounds=rounds, clock=options.clock)
        harness.print_rows(found)
        rows += found
    print(f"\n{tables.attacks_by_case(rows)}\n\n{ratios.table(rows)}\n")
    output.record(rows, options.results)


if __name__ == "__main__":
    main()
