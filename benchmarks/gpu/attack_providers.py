"""Who takes part in the attack section, and when a result is good enough to have a time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import fastadv
from benchmarks.attacks import __main__ as attacks
from benchmarks.autoattack.runs import missed_and_beyond, verdict
from benchmarks.gpu import networks as gpu_networks
from benchmarks.harness import harness, peers, schema
from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Attack, Settings

BARE = "bare passes"
TORCHATTACKS = "torchattacks"
_NET = (
    "samples that the textbook loop broke and this one left, less those it broke beyond, over n; "
    "tolerance 1 in 32, at least 2: rounding decides near the boundary, and starts differ"
)


# of bare passes: precision to whether they run in channels_last, as is faster
_LAYOUTS = {"fp32": False, "bf16": True}


@dataclass(frozen=True)
class Variant:
    """A way to run fastadv's PGD; execution: arguments of `fastadv.Execution`.

    all_steps: no early stop and no verification, as torchattacks does; else the first success.
    """

    name: str
    all_steps: bool
    execution: dict[str, Any]

    @property
    def precision(self) -> str:
        return str(self.execution.get("precision", "fp32"))


_GRAPH: dict[str, Any] = {"cuda_graph": True}
_EAGER: dict[str, Any] = {"cuda_graph": False}
_LAST: dict[str, Any] = {"channels_last": True}
_BF16: dict[str, Any] = {"precision": "bf16"}
VARIANTS = (
    Variant("fastadv fp32, all steps", True, _EAGER),
    Variant("fastadv fp32 graph, all steps", True, _GRAPH),
    Variant("fastadv bf16 graph channels_last, all steps", True, _BF16 | _GRAPH | _LAST),
    Variant("fastadv fp32", False, _EAGER),
    Variant("fastadv fp32 graph", False, _GRAPH),
    Variant("fastadv bf16", False, _BF16 | _EAGER),
    Variant("fastadv bf16 graph", False, _BF16 | _GRAPH),
    Variant("fastadv bf16 graph channels_last", False, _BF16 | _GRAPH | _LAST),
    Variant(
        "fastadv bf16 graph channels_last folded",
        False,
        _BF16 | _GRAPH | _LAST | {"fold_batchnorm": True},
    ),
)
# where a call takes many seconds
_FEW = {
    "fastadv fp32 graph",
    "fastadv bf16 graph channels_last folded",
    "fastadv bf16 graph channels_last, all steps",
}


def chosen(*, few: bool, restarts: int) -> list[Variant]:
    return [
        variant
        for variant in VARIANTS
        if (not few or variant.name in _FEW) and (restarts == 1 or not variant.all_steps)
    ]


def build(
    settings: Settings,
    problem: Problem,
    *,
    few: bool,
    on_gpu: bool,
    report: Callable[[str, Exception], None],
) -> dict[str, Attack]:
    """The calls, each on its own copy of the model; report is told of those that cannot be."""
    builders: dict[str, Callable[[Problem], Attack]] = {}
    for variant in chosen(few=few, restarts=settings.restarts):
        builders[variant.name] = lambda own, v=variant: _fastadv(settings, own, v, on_gpu)
    builders |= {
        TORCHATTACKS: lambda own: peers.torchattacks(settings, own),
        "foolbox": lambda own: peers.foolbox(settings, own),
        "textbook": lambda own: attacks.textbook(settings, own),
    }
    if few:
        del builders["foolbox"], builders["textbook"]
    # without a GPU there is no graph, and a CPU may emulate bf16
    precisions = [p for p in _LAYOUTS if p == "bf16" or not few] if on_gpu else ["fp32"]
    for precision in precisions:
        if settings.restarts == 1:  # with restarts, samples that fell are attacked no more
            builders[f"{BARE} {precision}"] = lambda own, p=precision: gpu_networks.bare_passes(
                own, p, channels_last=_LAYOUTS[p], count=settings.steps
            )
    runs: dict[str, Attack] = {}
    for name, make in builders.items():
        try:
            runs[name] = make(replace(problem, model=copy.deepcopy(problem.model)))
        except Exception as error:
            report(name, error)
    return runs


def execution(on_gpu: bool, **arguments: Any) -> fastadv.Execution:
    """Raises for what is not available; without a GPU, where no graph can be, it is not asked."""
    if not on_gpu:
        arguments["cuda_graph"] = "auto"
    return fastadv.Execution(**arguments)


def _fastadv(settings: Settings, problem: Problem, variant: Variant, on_gpu: bool) -> Attack:
    how = execution(on_gpu, **variant.execution)
    attack = fastadv.pgd(
        fastadv.Linf(settings.eps),
        steps=settings.steps,
        step_size=settings.step_size,
        restarts=settings.restarts,
        random_start=settings.restarts > 1,
        seed=settings.seed,
        keep="last" if variant.all_steps else "first_success",
    )
    return lambda: attack(problem.model, problem.x, problem.y, execution=how)


class Watched:
    """A call whose first run notes the peak memory beyond what was there, in MiB."""

    def __init__(self, run: Attack, device: torch.device) -> None:
        self.run, self.device = run, device
        self.peak_mib: float | None = None

    def __call__(self) -> torch.Tensor:
        if self.peak_mib is not None or self.device.type != "cuda":
            return self.run()
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        result = self.run()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        self.peak_mib = round(max(0, peak) / 2**20, 1)
        return result


def check_of(settings: Settings, problem: Problem) -> harness.Check:
    """Verdicts against the textbook loop's, by the fp32 model; of bare passes the gradient."""
    robust = _robust(settings, problem, attacks.textbook(settings, problem)())

    def check(name: str, output: torch.Tensor) -> schema.Equality:
        if name.startswith(BARE):
            return _same_gradient(problem, output, name.removeprefix(f"{BARE} "))
        missed, beyond = missed_and_beyond(_robust(settings, problem, output), robust)
        n = len(problem.x)
        return schema.Equality(max(missed - beyond, 0) / n, max(2, n // 32) / n, _NET, "textbook")

    return check


def _robust(settings: Settings, problem: Problem, x_adv: torch.Tensor) -> str:
    """ "1" for each sample for which x_adv is no adversarial example within eps and bounds."""
    with torch.no_grad():
        claimed = problem.model(x_adv).argmax(1) != problem.y
    return verdict(problem, settings.eps, ~claimed, x_adv)[0]


def _same_gradient(problem: Problem, grad: torch.Tensor, precision: str) -> schema.Equality:
    last = _LAYOUTS[precision]
    expected = gpu_networks.gradient_in(problem, precision, channels_last=last).double()
    error = float((grad.double() - expected).norm() / expected.norm().clamp_min(1e-30))
    return schema.Equality(
        error,
        0.2 if precision == "bf16" else 0.02,
        "relative L2 distance of the input gradient, in TF32 or bf16; algorithms may differ",
        "eager gradient of the same precision",
    )
