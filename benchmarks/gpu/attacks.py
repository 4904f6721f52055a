"""Section "attacks": PGD from end to end against other libraries and the bare passes."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from benchmarks.gpu import attack_providers as providers
from benchmarks.gpu import networks as gpu_networks
from benchmarks.gpu.session import Session
from benchmarks.harness import harness, schema
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Settings

SUITE = "gpu_attacks"
_TIMED = (
    "one call on n samples in memory, warm; 'all steps': neither early stop nor verification, as "
    "torchattacks; the other fastadv rows stop at the first success, which the fp32 model confirms"
)
_NOT_TIMED = "import, construction, the first call with compilation and graph capture, evaluation"
_EAGER_SHARE = 12  # calls of attacks, in units of an all-steps one, that a round of all costs


@dataclass(frozen=True)
class AttackCase:
    """PGD on a network of `gpu_networks`; few: only the providers that matter most."""

    network: str
    n: int
    steps: int
    restarts: int = 1
    few: bool = False

    @property
    def name(self) -> str:
        runs = f"PGD-{self.steps}" + (f"-{self.restarts}" if self.restarts > 1 else "")
        return f"{runs} {self.network} batch {self.n}"


# the most telling first
CASES = (
    AttackCase("preact_resnet18", 128, 20),
    AttackCase("preact_resnet18", 1024, 20),
    AttackCase("mnist_net", 256, 20),
    AttackCase("wrn-28-10", 128, 20),
    AttackCase("preact_resnet18", 128, 50, 10, few=True),
    AttackCase("wrn-28-10", 1024, 20, few=True),
    AttackCase("mnist_net", 256, 50, 10),
    AttackCase("preact_resnet18", 1024, 50, 10, few=True),
    AttackCase("wrn-28-10", 128, 50, 10, few=True),
    AttackCase("wrn-28-10", 1024, 50, 10, few=True),
)
_TINY = (
    AttackCase("preact_resnet18", 6, 3),
    AttackCase("mnist_net", 4, 2, 2, few=True),
)


def main(session: Session) -> None:
    built: dict[str, Problem] = {}
    radii: dict[str, float] = {}  # of a network: another batch of noise takes about the same
    for case in _TINY if session.tiny else CASES:
        key = f"{case.network} {case.n}"
        with session.guarded(case.name):
            if key not in built:
                built[key] = gpu_networks.problem(
                    case.network, case.n, session.device, tiny=session.tiny
                )
            if case.network not in radii:
                radii[case.network] = gpu_networks.radius_for_half(built[key])
            run_case(session, case, built[key], radii[case.network])
        gc.collect()
        if session.on_gpu:
            torch.cuda.empty_cache()  # the graphs of a case hold gigabytes


def run_case(session: Session, case: AttackCase, problem: Problem, eps: float) -> None:
    """The rows of one case, if the time suffices for one call of everybody and a timed one."""
    passes = case.steps * case.restarts
    once = seconds_of(gpu_networks.bare_passes(problem, "fp32", channels_last=False, count=1))
    callers = 6 if case.few else _EAGER_SHARE
    if not session.may_begin(case.name, seconds=2 * callers * passes * once):
        return
    settings = Settings("pgd", "linf", eps, eps / 4, case.steps, case.restarts)
    print(f"{case.name}, eps {eps:.2g}")
    runs = {
        name: providers.Watched(run, session.device)
        for name, run in providers.build(
            settings,
            problem,
            few=case.few,
            on_gpu=session.on_gpu,
            report=lambda name, error: session.report(f"{case.name}, {name}", error),
        ).items()
    }
    baseline = providers.TORCHATTACKS if providers.TORCHATTACKS in runs else next(iter(runs))
    description = harness.Case(
        suite=SUITE,
        name=case.name,
        shape=tuple(problem.x.shape),
        dtype="float32",
        n=len(problem.x),
        timed=_TIMED,
        not_timed=_NOT_TIMED,
        baseline=baseline,
    )
    rows = session.measure(
        description, runs, providers.check_of(settings, problem), harness.Timing(7, warmup=0)
    )
    common = {"eps": eps, "steps": case.steps, "restarts": case.restarts}
    common["tf32_convolutions"] = float(torch.backends.cudnn.allow_tf32)
    extra = {name: dict(common) for name in runs}
    for name, watched in runs.items():
        if watched.peak_mib is not None:
            extra[name]["peak_memory_mib"] = watched.peak_mib
    session.add(
        with_overheads([replace(row, extra=row.extra | extra[row.provider]) for row in rows])
    )


def with_overheads(rows: list[schema.Row]) -> list[schema.Row]:
    """Rows of fastadv with all steps, with their time over that of bare passes, in percent."""
    bare = {row.provider: row.q50 for row in rows if row.provider.startswith(providers.BARE)}
    known = {variant.name: variant for variant in providers.VARIANTS}
    told = []
    for row in rows:
        variant = known.get(row.provider)
        limit = None if variant is None else bare.get(f"{providers.BARE} {variant.precision}")
        if variant is not None and variant.all_steps and limit:
            percent = round(100 * (row.q50 / limit - 1), 1)
            row = replace(row, extra=row.extra | {"over_bare_percent": percent})
        told.append(row)
    return told


def seconds_of(run: Callable[[], torch.Tensor]) -> float:
    """Seconds of a warm call, the device waited for."""
    for _ in range(2):
        run()
    _wait()
    began = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
