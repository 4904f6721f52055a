"""What a PGD step costs beside the model, counted: `python -m benchmarks.attacks.counts --help`.

Counts do not depend on the machine: Triton kernels run in the interpreter, on the CPU.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from benchmarks.attacks import __main__ as attacks
from benchmarks.harness import environment, networks, output, peers, schema
from benchmarks.harness.peers import Settings, Unavailable
from benchmarks.harness.tally import Tally
from fastadv.ops import backend
from fastadv.textbook import Norm

SUITE = "counts"


@dataclass(frozen=True)
class StepCost:
    """Cost of one step of an attack beside one forward and backward of the model to its input.

    ops: dispatched at depth 0. launches: Triton launches, and ATen kernels also inside our ops.
    bytes_per_element: read and written, over the elements of x; NaN for Triton on a device.
    data_dependent_ops: results the host has to wait for. names: the ops at depth 0, and "> op"
    inside ours, with the model's own, to read when a count is not as expected.
    """

    ops: int
    launches: int
    bytes_per_element: float
    data_dependent_ops: int
    names: dict[str, int] = field(default_factory=dict, compare=False)


def count_step(
    run_k_steps: Callable[[int], object],
    *,
    model: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    k: int = 2,
) -> StepCost:
    """The cost of one step: `run_k_steps(k + 1)` less `run_k_steps(k)` less the model.

    One-off work (checks, copies, the start) is in both runs and cancels; an op's first call, which
    is compared with its reference, is made before them. model, x: what the attack
    is run on; the model's forward and backward to x is counted alone and taken off. The backend is
    the one chosen by `fastadv.ops.use_backend`.

    Example: `count_step(lambda k: fastadv.pgd(threat, steps=k, keep="last")(model, x, y),
    model=model, x=x)`.
    """
    run_k_steps(k + 1)
    shorter, longer = (_tally(lambda k=k: run_k_steps(k)) for k in (k, k + 1))
    own = _tally(_forward_and_backward(model, x))
    names = {
        name: longer.names[name] - shorter.names[name]
        for name in longer.names
        if longer.names[name] != shorter.names[name]
    }
    return StepCost(
        ops=longer.ops - shorter.ops - own.ops,
        launches=longer.launches - shorter.launches - own.launches,
        bytes_per_element=(longer.nbytes - shorter.nbytes - own.nbytes) / x.numel(),
        data_dependent_ops=longer.data_dependent - shorter.data_dependent - own.data_dependent,
        names=names,
    )


def _tally(run: Callable[[], object]) -> Tally:
    with Tally() as tally:
        run()
    return tally


def _forward_and_backward(
    model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> Callable[[], object]:
    leaf = x.detach().clone().requires_grad_()

    def run() -> None:
        with torch.enable_grad():
            logits = model(leaf)
        torch.autograd.grad(logits, leaf, torch.empty_like(logits))

    return run


def _rows(n: int, where: schema.Environment) -> list[schema.Row]:
    """One row a library: PGD in L-infinity and L2 and MI-FGSM on BatchNormNet, from x itself."""
    problem = networks.batchnorm(n, torch.device("cpu"))
    rows: list[schema.Row] = []
    cases: tuple[tuple[str, str, Norm, float], ...] = (
        ("PGD Linf", "pgd", "linf", 8 / 255),
        ("PGD L2", "pgd", "l2", 0.5),
        ("MI-FGSM", "mifgsm", "linf", 8 / 255),
    )
    for label, kind, norm, eps in cases:
        settings = Settings(kind, norm, eps, eps / 4, steps=3)
        case = attacks.AttackCase(f"{label}, one step", "BatchNormNet", n, settings)
        check = attacks.equality_check(case, problem)
        costs, equalities = {}, {}
        for name, (driver, choice) in _DRIVERS.items():
            try:
                with backend.use_backend(choice):
                    equalities[name] = check(name, driver(settings, problem)())
                    costs[name] = count_step(
                        lambda k, d=driver, s=settings: d(replace(s, steps=k), problem)(),
                        model=problem.model,
                        x=problem.x,
                    )
            except Unavailable as reason:
                print(f"  without {name}: {reason}")
        rows += [_row(case, problem, name, costs, equalities[name], where) for name in costs]
    return rows


def _row(
    case: attacks.AttackCase,
    problem: networks.Problem,
    name: str,
    costs: dict[str, StepCost],
    equality: schema.Equality,
    where: schema.Environment,
) -> schema.Row:
    cost, baseline = costs[name], "torchattacks" if "torchattacks" in costs else "textbook"
    size = round(cost.bytes_per_element, 2)
    return schema.Row(
        suite=SUITE,
        case=case.name,
        provider=name,
        shape=tuple(problem.x.shape),
        dtype="float32",
        n=len(problem.x),
        rounds=1,
        q20=size,
        q50=size,
        q80=size,
        unit="B/element",
        timed="nothing: bytes read and written by a step beside the model, counted",
        not_timed="forward and backward of the model, the start, checks",
        baseline=baseline,
        ratio=costs[baseline].bytes_per_element / cost.bytes_per_element,
        equality=equality,
        environment=where,
        extra={
            "ops": cost.ops,
            "launches": cost.launches,
            "data_dependent_ops": cost.data_dependent_ops,
        },
    )


_DRIVERS = {
    "fastadv, Triton (interpreted)": (attacks.last_iterate, "triton"),
    "fastadv, eager reference": (attacks.last_iterate, "reference"),
    "textbook": (attacks.textbook, "auto"),
    **{name: (driver, "auto") for name, driver in peers.DRIVERS.items()},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks.counts", description=__doc__
    )
    parser.add_argument("--samples", type=int, default=8, help="samples in the counted batch")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    if not backend.interpreting():
        if "triton" in sys.modules:
            raise RuntimeError("set TRITON_INTERPRET=1 before python starts: triton is loaded")
        os.environ["TRITON_INTERPRET"] = "1"
    where = environment.describe(
        peers.DISTRIBUTIONS,
        device=torch.device("cpu"),
        module="benchmarks.attacks.counts",
        arguments=arguments,
    )
    rows = _rows(options.samples, where)
    for row in rows:
        print(
            f"{row.case:20} {row.provider:30} {row.extra['ops']:4} ops "
            f"{row.extra['launches']:4} launches {row.q50:8.2f} B/element "
            f"{row.extra['data_dependent_ops']:3} data-dependent"
        )
    output.record(rows, options.results)


if __name__ == "__main__":
    main()
