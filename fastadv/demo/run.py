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
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from fastadv import plots, textbook
from fastadv.attacks import Attack, fgsm, pgd
from fastadv.data import load_digits
from fastadv.demo.agreement import Agreement, agreement
from fastadv.demo.figures import draw_accuracies, draw_examples, draw_restarts
from fastadv.demo.networks import EPS, train_fast, train_standard
from fastadv.evaluation import Report, evaluate
from fastadv.evaluation.proportions import wilson_interval
from fastadv.plots.style import check_installed
from fastadv.threat_model import Linf


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
class DemoResult:
    rows: tuple[Row, ...]
    agreements: tuple[Agreement, ...]
    figures: tuple[Path, ...]
    training_seconds: dict[str, float]
    seconds: float

    def robust_accuracy(self, network: str, attack_name: str) -> float:
        (row,) = (r for r in self.rows if (r.network, r.attack_name) == (network, attack_name))
        return row.report.robust_accuracy


def attacks(*, seed: int) -> dict[str, Attack]:
    """The attacks of the table, at `EPS`, by name; PGD-50-10 is 50 steps and 10 restarts."""
    threat = Linf(EPS)
    return {
        "FGSM": fgsm(threat, seed=seed),
        "PGD-10": pgd(threat, steps=10, seed=seed),
        "PGD-50-10": pgd(threat, steps=50, restarts=10, seed=seed),
    }


def run_demo(
    out: str | Path = "demo-output",
    *,
    seed: int = 0,
    repeats: int = 3,
    console: Console | None = None,
) -> DemoResult:
    """Train, attack, compare, print the table and save three PNGs to the folder `out`.

    repeats: how often each attack is timed, fastadv and textbook taking turns.
    """
    check_installed()
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
        for attack_name, attack in attacks(seed=seed).items()
    )
    agreements = tuple(agreement(name, net, x, y, seed=seed) for name, net in networks.items())
    figures = (
        _save(draw_accuracies(networks, x, y, seed=seed), out / "accuracy_vs_eps.png"),
        _save(draw_examples(networks["standard"], x, y, seed=seed), out / "examples.png"),
        _save(draw_restarts(networks, x, y, seed=seed), out / "restarts.png"),
    )
    return DemoResult(rows, agreements, figures, training_seconds, time.perf_counter() - began)


def _compare(
    network: str,
    net: nn.Module,
    attack_name: str,
    attack: Attack,
    x: torch.Tensor,
    y: torch.Tensor,
    repeats: int,
) -> Row:
    ours, theirs = [], []
    for _ in range(repeats):
        report = evaluate(net, (x, y), attack, batch_size=len(x), progress=False)
        ours.append(report.seconds)
        start = time.perf_counter()
        x_adv = _textbook_attack(attack, net, x, y)
        theirs.append(time.perf_counter() - start)
    return Row(
        network,
        attack_name,
        report,
        _accuracy(net, x_adv, y),
        statistics.median(ours),
        statistics.median(theirs),
    )


def _textbook_attack(
    attack: Attack, net: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    eps = float(attack.threat.eps)
    if attack.constructor == "fgsm":
        return textbook.fgsm(net, x, y, eps=eps)
    return textbook.pgd(
        net,
        x,
        y,
        eps=eps,
        steps=attack.steps,
        step_size=float(attack.effective_step_size),
        restarts=attack.restarts,
        generator=torch.Generator().manual_seed(attack.seed),
    )


@torch.no_grad()
def _accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return int((net(x).argmax(1) == y).sum()) / len(y)


def _save(figure, path: Path) -> Path:
    plots.save(figure, path)
    return path


def _print(result: DemoResult, console: Console, *, seed: int, repeats: int) -> None:
    n = result.rows[0].report.n
    table = Table(
        title=f"8x8 digits, n = {n} held out; L-infinity, eps = {EPS:g}, seed {seed}",
        caption="Accuracy in %, with its 95 % interval over samples. FGSM is one step without a "
        "random start; PGD-10 has 10 steps and 1 restart, PGD-50-10 has 50 steps and 10 restarts. "
        "The textbook runs every restart of every sample to the end; fastadv verifies what it "
        f"returns. Times: median of {repeats}, one CPU thread, the two taking turns, all {n} "
        "samples at once.",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("network")
    table.add_column("attack")
    for column in (
        "fastadv\n%",
        "95 %\ninterval",
        "textbook\n%",
        "fastadv\nms",
        "textbook\nms",
        "ratio",
    ):
        table.add_column(column, justify="right")
    last = None
    for row in result.rows:
        report = row.report
        if row.network != last:
            if last is not None:
                table.add_section()
            clean = f"{100 * report.clean_accuracy:.1f}"
            interval = wilson_interval(int(report.clean_correct.sum()), n)
            table.add_row(row.network, "none", clean, _range(interval), clean, "-", "-", "-")
            last = row.network
        table.add_row(
            row.network,
            row.attack_name,
            f"{100 * report.robust_accuracy:.1f}",
            _range(report.confidence_interval),
            f"{100 * row.textbook_accuracy:.1f}",
            f"{1000 * row.fastadv_seconds:.0f}",
            f"{1000 * row.textbook_seconds:.0f}",
            f"{row.ratio:.1f}x",
        )
    console.print(table)
    for found in result.agreements:
        console.print(str(found))
    console.print(f"figures: {', '.join(str(path) for path in result.figures)}")
    console.print(f"took {result.seconds:.1f} s")


def _range(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}"
