"""What a clamp in the model costs attacks, by library and rule: `python -m benchmarks.clamping`.

Of `x.clamp(0, 1)` at x = 0 or 1 the gradient is 1 up to torch 2.13 ("old") and 0 since 2.14
("new"), and entries of images lie there. The same network is attacked bare and behind clamps of
several forms, which change no logit; every success is judged by the benchmark on the model itself,
within eps and bounds, and verdicts are compared with those of the same attack on the bare network.
Under each rule: the one of the installed torch is torch's own, the other is put in its place.

    python -m benchmarks.clamping --data DIR --authors DIR      (mnist_net needs DIR)
    python -m benchmarks.clamping --rule new --case "digits_net PGD"

Rows are written case by case: what was killed goes on with --case. Seed 0.
"""

import argparse
import contextlib
import copy
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.autoattack.parties import authors_package, authors_version
from benchmarks.clamping import tables as clamping_tables
from benchmarks.clamping.cases import (
    BARE,
    CASES,
    NETWORKS,
    ClampingCase,
    Network,
    behind,
    gradient_kept,
)
from benchmarks.clamping.providers import Outcome, Provider, forms, providers, seed_generators
from benchmarks.clamping.rules import RULES, clamp_rule, installed_rule
from benchmarks.harness import environment, harness, networks, output, peers, schema, selection
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Unavailable
from fastadv.containment import contains

SUITE = "clamping"
_SEED = 0
_TIMED = "process time of one call of the attack on a form of the model, quantiles over its forms"
_NOT_TIMED = "import, first calls, training of the network, verification by the benchmark"
_METRIC = (
    "max |logits - those of the bare network| over forms, at x and at what was found: a clamp "
    "changes nothing within bounds, normalising there and back rounds"
)
_ROUNDING = 1e-4  # of logits of about 10, from pixels rounded by 1e-7


@dataclass(frozen=True)
class Judged:
    """An attack on one form of a network. robust: (n,) bool; refused: beyond eps or bounds."""

    outcome: Outcome
    robust: torch.Tensor
    refused: int
    error: float
    seconds: float


def attack_form(
    form: str, provider: Provider, case: ClampingCase, bare: Problem, eps: float
) -> Judged:
    """Attack the network behind a clamp, and judge what was found on that model."""
    model = behind(form, copy.deepcopy(bare.model))
    seed_generators(_SEED)
    began = time.process_time()
    outcome = provider(case, replace(bare, model=model), eps)
    seconds = time.process_time() - began
    with torch.no_grad():
        clean, logits = model(bare.x), model(outcome.x_adv)
        error = max(
            harness.max_difference(clean, bare.model(bare.x)),
            harness.max_difference(logits, bare.model(outcome.x_adv)),
        )
    correct, fooled = clean.argmax(1) == bare.y, logits.argmax(1) != bare.y
    inside = contains(case.threat(eps), outcome.x_adv, bare.x)
    refused = int((correct & fooled & ~inside).sum())
    return Judged(outcome, correct & ~(fooled & inside), refused, error, seconds)


def warm_up(network: Network, problem: Problem, takers: dict[str, Provider]) -> None:
    """The first calls, which import and allocate, on two samples."""
    few = replace(problem, x=problem.x[:2], y=problem.y[:2])
    for case in (CASES[0], next(case for case in CASES if case.kind is None)):
        for provider in takers.values():
            with contextlib.suppress(Unavailable):
                provider(case, few, network.eps[case.norm])


def run_case(
    case: ClampingCase,
    network: Network,
    problem: Problem,
    where: schema.Environment,
    takers: dict[str, Provider],
) -> list[schema.Row]:
    """One row a library, of all forms, under the rule in force; names those that have no such
    attack."""
    rows = []
    eps = network.eps[case.norm]
    for name, provider in takers.items():
        try:
            judged = {
                form: attack_form(form, provider, case, problem, eps) for form in forms(name, case)
            }
        except Unavailable as reason:
            print(f"  without {name}: {reason}", file=sys.stderr)
            continue
        rows.append(_row(case, network, problem, where, name, judged))
    return rows


def _row(
    case: ClampingCase,
    network: Network,
    problem: Problem,
    where: schema.Environment,
    name: str,
    judged: dict[str, Judged],
) -> schema.Row:
    seconds = [one.seconds for one in judged.values()]
    q20, q50, q80 = harness.quantiles(seconds)
    bare = judged[BARE]
    ratios = sorted(bare.seconds / value for value in seconds)
    chosen = case.settings(network.eps[case.norm])
    n = len(problem.x)
    return schema.Row(
        suite=SUITE,
        case=f"{case.name} {network.name}",
        provider=name,
        shape=tuple(problem.x.shape),
        dtype="float32",
        n=n,
        rounds=len(judged),
        q20=q20,
        q50=q50,
        q80=q80,
        unit="s",
        timed=_TIMED,
        not_timed=_NOT_TIMED,
        baseline=BARE,
        ratio=ratios[len(ratios) // 2],
        equality=schema.Equality(
            max(one.error for one in judged.values()), _ROUNDING, _METRIC, "the bare network"
        ),
        environment=where,
        robustness=schema.Robustness(
            attack=case.name,
            norm=case.norm,
            eps=chosen.eps,
            step_size=chosen.step_size,
            steps=case.steps,
            restarts=1,
            seed=_SEED,
            n=n,
            model=problem.name,
            data=problem.data,
            clean_accuracy=networks.accuracy(problem, problem.x),
            robust_accuracy=int(bare.robust.sum()) / n,
        ),
        extra={k: v for form, one in judged.items() for k, v in _figures(form, one, bare).items()},
    )


def _figures(form: str, one: Judged, bare: Judged) -> dict[str, float]:
    """missed: broken on the bare network and not here; beyond: the other way round."""
    found: dict[str, float] = {
        "kept": gradient_kept(form),
        "robust": int(one.robust.sum()),
        "missed": int((one.robust & ~bare.robust).sum()),
        "beyond": int((~one.robust & bare.robust).sum()),
        "refused": one.refused,
        "warned": int(one.outcome.warned),
        "inset": one.outcome.inset,
        "seconds": round(one.seconds, 3),
    }
    if one.outcome.passes is not None:
        found |= dict(zip(("forwards", "backwards"), one.outcome.passes, strict=True))
    return {f"{form}: {name}": value for name, value in found.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clamping",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rule", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--case", default="", help='cases that match: "digits_net FGSM", ...')
    parser.add_argument("--data", type=Path, help="folder of MNIST's idx files")
    parser.add_argument("--authors", type=Path, help="folder of a checkout of fra31/auto-attack")
    parser.add_argument("--samples", type=int, help="at most so many samples a case")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    names = (f"{network.name} {case.name}" for network in NETWORKS for case in network.cases())
    chosen = selection.matching(options.case, names, option="--case")
    torch.set_num_threads(options.threads)
    takers = providers(_authors(options.authors))
    where = environment.describe(
        peers.DISTRIBUTIONS,
        device=torch.device("cpu"),
        module="benchmarks.clamping",
        arguments=arguments,
    )
    where = replace(where, versions=where.versions | authors_version())
    rows = []
    for network in NETWORKS:
        cases = [case for case in network.cases() if f"{network.name} {case.name}" in chosen]
        if cases and network.needs_data and options.data is None:
            print(f"without {network.name}: give --data", file=sys.stderr)
            cases = []
        if not cases:
            continue
        problem = network.load(options.data, options.samples)
        warm_up(network, problem, takers)
        for rule in options.rule:
            told = replace(where, versions=where.versions | {"clamp rule": _told(rule)})
            for case in cases:
                n = network.samples.get(case.name, len(problem.x))
                some = replace(problem, x=problem.x[:n], y=problem.y[:n])
                print(f"{network.name} {case.name}, n={len(some.x)}, {rule} rule", flush=True)
                with _in_force(rule):
                    found = run_case(case, network, some, told, takers)
                output.record(found, options.results)
                harness.print_rows(found)
                rows += found
    if not rows:
        sys.exit(f"no case matches --case {options.case!r} without --data")
    print(clamping_tables.libraries(rows))


def _authors(folder: Path | None) -> ModuleType | None:
    if folder is None:
        print("without autoattack: give --authors", file=sys.stderr)
        return None
    return authors_package(folder)


def _in_force(rule: str) -> AbstractContextManager[object]:
    return contextlib.nullcontext() if rule == installed_rule() else clamp_rule(rule)


def _told(rule: str) -> str:
    return rule if rule == installed_rule() else f"{rule} (in place of torch's)"


if __name__ == "__main__":
    main()
