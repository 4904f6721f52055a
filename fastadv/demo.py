"""The demo: a standard and a Fast-AT network on the embedded digits, attacked and compared.

Trains both on the CPU, attacks them with FGSM, PGD-10 and PGD-50-10 at one radius, times fastadv
against the textbook loop on the same task, and draws three figures. Takes well under 90 s on two
busy cores. The result is a function of the seed, but for the times and, across machines, for how
they round.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from fastadv import ops, plots, textbook
from fastadv.attacks import Attack, fgsm, pgd
from fastadv.data import load_digits
from fastadv.demo_networks import EPS, train_fast, train_standard
from fastadv.evaluation import Report, evaluate
from fastadv.threat_model import Linf, start_point

_CURVE_EPS = tuple(k / 32 for k in range(9))
_CURVE_STEPS, _CURVE_RESTARTS = 20, 2
_RUNS = 20  # restarts in the figure of losses


@dataclass(frozen=True)
class Row:
    """One line of the table: a network under an attack. Times are medians, in seconds."""

    network: str
    attack_name: str
    report: Report
    textbook_accuracy: float
    fastadv_seconds: float
    textbook_seconds: float

    @property
    def ratio(self) -> float:
        return self.textbook_seconds / self.fastadv_seconds


@dataclass(frozen=True)
class Agreement:
    """PGD-10 of fastadv and of the textbook from the same starts: samples with equal x_adv."""

    network: str
    equal: int
    n: int
    largest_difference: float


@dataclass(frozen=True)
class DemoResult:
    rows: tuple[Row, ...]
    agreements: tuple[Agreement, ...]
    figures: tuple[Path, ...]
    training_seconds: dict[str, float]
    seconds: float

    def robust_accuracy(self, network: str, attack_name: str) -> float:
        (row,) = (r for r in self.rows if (r.network, r.attack_name) == (network, attack_name))
        return row.report.robust_accuracy


def attacks(eps: float, *, seed: int) -> dict[str, Attack]:
    """The attacks of the table by name; PGD-50-10 is 50 steps and 10 restarts."""
    threat = Linf(eps)
    return {
        "FGSM": fgsm(threat, seed=seed),
        "PGD-10": pgd(threat, steps=10, seed=seed),
        "PGD-50-10": pgd(threat, steps=50, restarts=10, seed=seed),
    }


def run_demo(
    out: str | Path = "demo-output", *, seed: int = 0, repeats: int = 3,
    console: Console | None = None,
) -> DemoResult:  # fmt: skip
    """Train, attack, compare, print the table and save three PNGs to the folder `out`.

    repeats: how often each attack is timed, fastadv and textbook taking turns.
    """
    console = console or Console()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with _one_thread():
        result = _demo(out, seed, repeats, console)
    _print(result, console, seed=seed, repeats=repeats)
    return result


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The networks are too small to share among threads, and sums round alike on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _demo(out: Path, seed: int, repeats: int, console: Console) -> DemoResult:
    began = time.perf_counter()
    x, y = load_digits("test")
    networks, training_seconds = {}, {}
    for name, train in (("standard", train_standard), ("Fast-AT", train_fast)):
        start = time.perf_counter()
        networks[name] = train(*load_digits("train"), seed=seed)
        training_seconds[name] = time.perf_counter() - start
        console.print(f"trained the {name} network in {training_seconds[name]:.1f} s")
    rows = tuple(
        _compare(name, net, attack_name, attack, x, y, repeats)
        for name, net in networks.items()
        for attack_name, attack in attacks(EPS, seed=seed).items()
    )
    agreements = tuple(_agreement(name, net, x, y, seed) for name, net in networks.items())
    figures = (
        _save(_curve(networks, x, y, seed), out / "accuracy_vs_eps.png"),
        _save(_sheet(networks["standard"], x, y, seed), out / "examples.png"),
        _save(_losses(networks, x, y, seed), out / "restarts.png"),
    )
    return DemoResult(rows, agreements, figures, training_seconds, time.perf_counter() - began)


def _compare(
    network: str, net: nn.Module, attack_name: str, attack: Attack, x: torch.Tensor,
    y: torch.Tensor, repeats: int,
) -> Row:  # fmt: skip
    report = evaluate(net, (x, y), attack, batch_size=len(x), progress=False)
    times: dict[str, list[float]] = {"fastadv": [], "textbook": []}
    accuracy = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        attack.run(net, x, y)
        times["fastadv"].append(time.perf_counter() - start)
        start = time.perf_counter()
        x_adv = _textbook_attack(attack, net, x, y)
        times["textbook"].append(time.perf_counter() - start)
        accuracy = _accuracy(net, x_adv, y)
    return Row(
        network, attack_name, report, accuracy, statistics.median(times["fastadv"]),
        statistics.median(times["textbook"]),
    )  # fmt: skip


def _textbook_attack(
    attack: Attack, net: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    eps = float(attack.threat.eps)
    if attack.constructor == "fgsm":
        return textbook.fgsm(net, x, y, eps=eps)
    return textbook.pgd(
        net, x, y, eps=eps, steps=attack.steps, step_size=float(attack.effective_step_size),
        restarts=attack.restarts, generator=torch.Generator().manual_seed(attack.seed),
    )  # fmt: skip


def _agreement(
    network: str, net: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int
) -> Agreement:
    threat = Linf(EPS)
    attack = pgd(threat, steps=10, keep="last", seed=seed)
    x_init = start_point(threat, x, seed=seed)
    ours = attack(net, x, y, x_init=x_init)
    theirs = textbook.pgd(
        net, x, y, eps=EPS, steps=10, step_size=float(attack.effective_step_size), x_init=x_init
    )
    largest = (ours - theirs).abs().flatten(1).amax(1)
    return Agreement(network, int((largest == 0).sum()), len(x), float(largest.max()))


@torch.no_grad()
def _accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return int((net(x).argmax(1) == y).sum()) / len(y)


def _curve(networks: dict[str, nn.Module], x: torch.Tensor, y: torch.Tensor, seed: int):
    reports: dict[str, list[Report]] = {}
    for name, net in networks.items():
        reports[name] = []
        for eps in _CURVE_EPS:
            attack = pgd(Linf(eps), steps=_CURVE_STEPS, restarts=_CURVE_RESTARTS, seed=seed)
            reports[name].append(evaluate(net, (x, y), attack, progress=False))
    return plots.accuracy_against_eps(
        _CURVE_EPS,
        {name: [r.robust_accuracy for r in found] for name, found in reports.items()},
        intervals={name: [r.confidence_interval for r in found] for name, found in reports.items()},
        mark=EPS,
        title=f"Digits 8x8, L-infinity PGD, {_CURVE_STEPS} steps, {_CURVE_RESTARTS} restarts, "
        f"n = {len(x)}, seed {seed}",
    )


def _sheet(net: nn.Module, x: torch.Tensor, y: torch.Tensor, seed: int):
    """One sample a class: the first that the network knows and PGD-10 fools."""
    result = attacks(EPS, seed=seed)["PGD-10"].run(net, x, y)
    fooled = result.success & (result.clean_prediction == y)
    hits = [((y == digit) & fooled).nonzero().flatten() for digit in range(10)]
    chosen = torch.cat([found[:1] for found in hits])
    with torch.no_grad():
        logits, logits_adv = net(x[chosen]), net(result.x_adv[chosen])
    return plots.example_sheet(
        x[chosen], result.x_adv[chosen], y[chosen], logits, logits_adv,
        title=f"Standard network under L-infinity PGD, 10 steps, eps = {EPS:g}, seed {seed}: "
        "prediction and confidence",
    )  # fmt: skip


def _losses(networks: dict[str, nn.Module], x: torch.Tensor, y: torch.Tensor, seed: int):
    """20 restarts of the first sample that every network classifies correctly."""
    with torch.no_grad():
        known = torch.stack([net(x).argmax(1) == y for net in networks.values()]).all(0)
    index = int(known.nonzero()[0])
    runs = {
        f"{name} network": losses_of_restarts(net, x[index], int(y[index]), seed=seed)
        for name, net in networks.items()
    }
    return plots.restart_losses(
        runs,
        title=f"{_RUNS} restarts of L-infinity PGD on one digit ({int(y[index])}, held-out sample "
        f"{index}): 50 steps, eps = {EPS:g}, seed {seed}",
    )


def losses_of_restarts(
    net: nn.Module, x: torch.Tensor, y: int, *, seed: int, steps: int = 50, restarts: int = _RUNS
) -> torch.Tensor:
    """(restarts, steps + 1) cross-entropy of one sample x along PGD at `EPS` from random starts."""
    threat = Linf(EPS)
    rows = x.expand(restarts, *x.shape).contiguous()
    labels = torch.full((restarts,), y)
    same_sample = torch.zeros(restarts, dtype=torch.int64)
    draws = torch.arange(restarts, dtype=torch.int32)
    x_adv = start_point(threat, rows, seed=seed, sample_ids=same_sample, draw=draws)
    losses = []
    for step in range(steps + 1):
        leaf = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(net(leaf), labels, reduction="none")
        losses.append(loss.detach())
        if step < steps:
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            x_adv = ops.linf_step(leaf.detach(), grad, rows, step_size=2.5 * EPS / steps, eps=EPS)
    return torch.stack(losses, dim=1)


def _save(figure, path: Path) -> Path:
    figure.savefig(path)
    return path


def _print(result: DemoResult, console: Console, *, seed: int, repeats: int) -> None:
    n = result.rows[0].report.n
    table = Table(
        title=f"8x8 digits, {n} held out; L-infinity, eps = {EPS:g} (3/16), seed {seed}",
        caption=f"Accuracies in %, 95 % intervals over samples. Times: median of {repeats}, "
        "one CPU thread, fastadv and textbook taking turns, all {n} "
        "samples at once. The textbook runs every restart of every sample to the end.",
        caption_justify="left",
        title_justify="left",
    )
    columns = ("network", "attack", "steps", "restarts", "clean", "robust", "textbook\nrobust",
               "fastadv\nms", "textbook\nms", "ratio")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("network", "attack") else "right")
    for k, row in enumerate(result.rows):
        low, high = row.report.confidence_interval
        table.add_row(
            row.network,
            row.attack_name,
            str(row.report.steps),
            str(row.report.restarts),
            f"{100 * row.report.clean_accuracy:.1f}",
            f"{100 * row.report.robust_accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{100 * row.textbook_accuracy:.1f}",
            f"{1000 * row.fastadv_seconds:.1f}",
            f"{1000 * row.textbook_seconds:.1f}",
            f"{row.ratio:.1f}x",
            end_section=k % 3 == 2,
        )
    console.print(table)
    for found in result.agreements:
        console.print(
            f"{found.network}: PGD-10 from the same starts, fastadv and textbook agree bit for bit "
            f"on {found.equal} of {found.n} samples (largest difference "
            f"{found.largest_difference:.3g})"
        )
    console.print(f"figures: {', '.join(str(path) for path in result.figures)}")
    console.print(f"took {result.seconds:.1f} s")
