"""What `version="fast"` misses where gradients are masked: `python -m benchmarks.masked`.

Nine networks whose gradients are masked in three ways, trained here from fixed seeds, and the
package's own digits networks, whose are not; with `--models`, mnist_tf too, and of unmasked ones
mnist_kw_0.1 and cifar_madry_8px. Each is attacked by "standard" and by "fast", seed by seed. A row
says what fell, the passes, the warnings, and of "fast" the points that only one of both broke. No
row is written whose successes the model does not confirm within eps.

    python -m benchmarks.masked --threads 1
    python -m benchmarks.masked --only tanh --seeds 0 --samples 50
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import fastadv
from benchmarks.autoattack.cases import EnsembleCase, load
from benchmarks.execution.runs import process_clock
from benchmarks.harness import environment, harness, output, schema, selection
from benchmarks.harness.networks import Problem
from benchmarks.masked.networks import JUDGED, NETWORKS, Masked
from fastadv.data import load_digits
from fastadv.models import digits_net

SUITE = "masked"
_VERSIONS = ("standard", "fast")  # the first is the reference
_METRIC = (
    "successes that the model does not confirm on the returned tensor, or that lie outside of eps "
    "or bounds in float64"
)
_OWN = {"digits_fast-at": 0.18, "digits_standard": 0.08}
_THIRD = (("mnist_tf", "0.3"), ("mnist_kw_0.1", "0.1"), ("cifar_madry_8px", "8/255"))

Case = tuple[str, float, Callable[[], Problem]]  # what the table says, eps, what is attacked


def cases(folder: Path | None, samples: int) -> Iterator[Case]:
    """The nine, the package's own, and with their folder those of others."""
    for network in NETWORKS:
        name = f"{network.name}: {network.way}"
        yield name, network.eps, lambda own=network: _masked(own, samples)
    for name, eps in _OWN.items():
        yield f"{name}: unmasked", eps, lambda own=name: _own(own, samples)
    for name, eps_text in _THIRD if folder is not None else ():
        case = EnsembleCase(name, eps_text, samples)
        way = "of others" if name == "mnist_tf" else "unmasked"
        yield f"{name}: {way}", case.eps, lambda own=case: load(own, folder, samples)  # type: ignore[arg-type]


def _masked(network: Masked, samples: int) -> Problem:
    model = network.trained(output.SCRATCH / SUITE)
    return _on_digits(network.name, model, samples)


def _own(name: str, samples: int) -> Problem:
    return _on_digits(name, digits_net(weights=name.removeprefix("digits_")), samples)  # type: ignore[arg-type]


def _on_digits(name: str, model: torch.nn.Module, samples: int) -> Problem:
    x, y = load_digits("test")
    return Problem(name, "UCI digits, test", model, x[:samples], y[:samples])


def rows_of(
    case: Case, seed: int, environment: schema.Environment, *, batch_size: int | None
) -> list[schema.Row]:
    """Both versions on one network with one seed, the reference first."""
    name, eps, make = case
    problem, rows, fallen = make(), [], {}
    for version in _VERSIONS:
        run = _Run(problem, eps, version, seed, batch_size)
        seconds = process_clock(run)
        fallen[version] = run.result.success
        passes = run.result.forwards + run.result.backwards
        extra: dict[str, float] = {"seed": seed, "passes": passes, **run.warned}
        if version != _VERSIONS[0]:
            first = fallen[_VERSIONS[0]]
            extra["missed"] = int((first & ~run.result.success).sum())
            extra["beyond"] = int((run.result.success & ~first).sum())
            extra["share of passes"] = round(extra["passes"] / rows[0].extra["passes"], 3)
        ratio = rows[0].q50 / (1e3 * seconds) if rows else 1.0
        rows.append(_row(name, run, environment, seconds=seconds, ratio=ratio, extra=extra))
    return rows


class _Run:
    def __init__(
        self, problem: Problem, eps: float, version: str, seed: int, batch_size: int | None
    ) -> None:
        self.problem, self.eps, self.version, self.seed = problem, eps, version, seed
        self.attack = fastadv.autoattack(fastadv.Linf(eps), version, seed=seed)  # type: ignore[arg-type]
        self.execution = fastadv.Execution(batch_size=batch_size)

    def __call__(self) -> None:
        x, y = self.problem.x, self.problem.y
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.result = self.attack.run(self.problem.model, x, y, execution=self.execution)
        said = [w.message for w in caught if isinstance(w.message, fastadv.AttackWarning)]
        self.warned = {f"warned: {warning.code}": warning.count for warning in said}

    def unconfirmed(self) -> int:
        with torch.no_grad():
            wrong = self.problem.model(self.result.x_adv).argmax(1) != self.problem.y
        inside = fastadv.contains(self.attack.threat, self.result.x_adv, self.problem.x)
        return int((self.result.success & ~(wrong & inside)).sum())


def _row(
    name: str,
    run: _Run,
    environment: schema.Environment,
    *,
    seconds: float,
    ratio: float,
    extra: dict[str, float],
) -> schema.Row:
    problem, result = run.problem, run.result
    n, milliseconds = len(problem.x), 1e3 * seconds
    right = result.clean_prediction == problem.y
    return schema.Row(
        suite=SUITE,
        case=name,
        provider=run.version,
        shape=tuple(problem.x.shape),
        dtype="float32",
        n=n,
        rounds=1,
        q20=milliseconds,
        q50=milliseconds,
        q80=milliseconds,
        unit="ms",
        timed="process time of one run, confirmation included",
        not_timed="import, training, loading",
        baseline=_VERSIONS[0],
        ratio=ratio,
        equality=schema.Equality(run.unconfirmed(), 0, _METRIC, "the model in plain PyTorch"),
        environment=environment,
        robustness=schema.Robustness(
            attack=f"AutoAttack, version {run.version!r}",
            norm="linf",
            eps=run.eps,
            step_size=2 * run.eps,
            steps=run.attack.attacks[0].steps,
            restarts=1,
            seed=run.seed,
            n=n,
            model=problem.name,
            data=problem.data,
            clean_accuracy=float(right.double().mean()),
            robust_accuracy=float((~result.success).double().mean()),
        ),
        extra=extra,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.masked",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=Path, help="folder of load_models.py")
    parser.add_argument("--only", default="", help="networks whose name or way matches")
    parser.add_argument("--samples", type=int, default=200, help="test points of each network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the attacks")
    parser.add_argument("--batch-size", type=int, help="slots, as fastadv takes them if not given")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    output.add_option(parser)
    options = parser.parse_args(arguments)
    every = list(cases(options.models, options.samples))
    wanted = selection.matching(options.only, (name for name, *_ in every), option="--only")
    torch.set_num_threads(options.threads)
    where = environment.describe(
        [], device=torch.device("cpu"), module="benchmarks.masked", arguments=arguments
    )
    rows = []
    for case in every:
        if case[0] not in wanted:
            continue
        print(case[0] + (" (judge)" if case[0].endswith(JUDGED) else ""), flush=True)
        for seed in options.seeds:
            rows += rows_of(case, seed, where, batch_size=options.batch_size)
            harness.print_rows(rows[-2:])
            for row in rows[-2:]:
                print(f"    {row.provider}: {row.extra}", flush=True)
    output.record(rows, options.results)


if __name__ == "__main__":
    main()
