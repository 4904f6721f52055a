"""What a GPU run is held to: each bar beside its worst measured value, met or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.autoattack.entrants import AUTHORS
from benchmarks.gpu import measures
from benchmarks.gpu.measures import Measure
from benchmarks.harness import formatting
from benchmarks.harness.schema import Row

# names in rows; their modules are not imported, whose own imports may be missing (tests compare)
EPOCH = "Fast-AT, loader included, batch 128"
CPU_LOADER, ON_DEVICE = "textbook, CPU loader", "textbook, data on the device"
GRAPHED = "fastadv graphed"
_OF_EPOCH = measures.of_case("gpu_training", EPOCH)
_ON_RESNET = measures.of_case("gpu_attacks", "PGD-20 preact_resnet18 batch 128")
_LARGE, _LOGITS = [(256, 3, 224, 224)], [(4096, 1000), (4096, 21000)]
_HEADS = ("loss_head_ (ce)", "loss_head_ (margin)", "loss_head_ (dlr)")
_TRACKED = "loss_head_ (cross_entropy, tracked)"  # has no chain of plain torch beside it
_EAGER, _COMPILED = "eager chain", "torch.compile of the chain"


@dataclass(frozen=True)
class Bar:
    """source: of the goal. measure: every value that the goal holds for, from the rows and the
    numbers of the checks; the worst one is compared."""

    name: str
    goal: float
    higher: bool
    unit: str
    source: str
    measure: Measure

    def judged(self, rows: Sequence[Row], numbers: Mapping[str, float]) -> list[str]:
        """Cells: name, source, goal, worst value, where, verdict."""
        found = list(self.measure(rows, numbers))
        goal = f"{'>=' if self.higher else '<='} {self.goal:g} {self.unit}".strip()
        if not found:
            return [self.name, self.source, goal, formatting.EMPTY, "", "not measured"]
        where, worst = (min if self.higher else max)(found, key=lambda pair: pair[1])
        met = worst >= self.goal if self.higher else worst <= self.goal
        value = f"{worst:.3g} {self.unit}".strip()
        return [self.name, self.source, goal, value, where, "met" if met else "NOT MET"]


# what a GPU run was built to reach, then what other sources ask of the same run
BARS = (
    Bar("L-inf step, of copy bandwidth", 90, True, "%", "GPU goals",
        measures.share(measures.op("linf_step_", shapes=_LARGE))),
    Bar("L-inf step over the eager chain", 4, True, "x", "GPU goals",
        measures.over(measures.op("linf_step_", shapes=_LARGE), _EAGER)),
    Bar("L-inf step over torch.compile", 0.97, True, "x", "GPU goals",
        measures.over(measures.op("linf_step_", shapes=_LARGE), _COMPILED)),
    Bar("loss heads, of copy bandwidth", 80, True, "%", "GPU goals",
        measures.share(measures.op(*_HEADS, _TRACKED, shapes=_LOGITS))),
    Bar("loss heads over the eager chain", 4, True, "x", "GPU goals",
        measures.over(measures.op(*_HEADS, shapes=_LOGITS), _EAGER)),
    Bar("loss heads over torch.compile", 0.97, True, "x", "GPU goals",
        measures.over(measures.op(*_HEADS, shapes=_LOGITS), _COMPILED)),
    Bar("host time of linf_step_", 15, False, "us", "GPU goals", measures.host("linf_step_")),
    Bar("host time of the cross-entropy head", 15, False, "us", "GPU goals",
        measures.host("loss_head_ (ce)")),
    Bar("L2 step, of copy bandwidth", 80, True, "%", "GPU goals",
        measures.share(measures.op("l2_step_"))),
    Bar("L2 step over the eager chain", 3, True, "x", "GPU goals",
        measures.over(measures.op("l2_step_"), _EAGER)),
    Bar("L1 projection over the authors', 3x224x224", 20, True, "x", "GPU goals",
        measures.over(measures.sized("project_l1", 224), AUTHORS)),
    Bar("L1 projection over the authors', 3x32x32", 20, True, "x", "GPU goals",
        measures.over(measures.sized("project_l1", 32), AUTHORS)),
    Bar("PGD-20 over torchattacks, bf16 confirmed", 3, True, "x", "GPU goals",
        measures.over(_ON_RESNET, "torchattacks", measures.confirmed_bf16, best=True)),
    Bar("PGD-20 over torchattacks, fp32, all steps", 1.8, True, "x", "GPU goals",
        measures.over(_ON_RESNET, "torchattacks", measures.same_work, best=True)),
    Bar("PGD-20's time over bare replayed passes", 3, False, "%", "GPU goals",
        measures.extra(_ON_RESNET, "over_bare_percent", measures.graph_all_steps)),
    Bar("AutoAttack, 1,000 images, over the authors'", 5, True, "x", "GPU goals",
        measures.over(measures.standard, AUTHORS, best=True)),
    Bar("its flags that differ, in 250 images", 1, False, "", "GPU goals", measures.flags),
    Bar("synchronisations of a captured step", 0, False, "", "GPU goals",
        measures.extra(measures.steps, "synchronisations", lambda name: "graph" in name)),
    Bar("Fast-AT epoch over a CPU loader", 5, True, "x", "GPU goals",
        measures.over(_OF_EPOCH, CPU_LOADER, GRAPHED.__eq__)),
    Bar("Fast-AT epoch over data on the device", 1.8, True, "x", "GPU goals",
        measures.over(_OF_EPOCH, ON_DEVICE, GRAPHED.__eq__)),
    Bar("CIFAR-10 speed-run to 45 % (5 seeds)", 20, False, "s", "GPU goals",
        measures.speed_run("cifar10", 8 / 255, 0.45, 5)),
    Bar("MNIST speed-run to 87 % (10 seeds)", 3, False, "s", "GPU goals",
        measures.speed_run("mnist", 0.3, 0.87, 10)),
    Bar("GPU tests that fail", 0, False, "", "GPU goals",
        measures.number("tests failed", "tests error")),
    Bar("sanitizer errors", 0, False, "", "GPU goals",
        measures.number("memcheck errors", "racecheck errors")),
    Bar("AutoAttack, net misses in 250 images", 1, False, "", "AutoAttack", measures.net_misses),
    Bar("kernels of a PGD step", 2, False, "", "contract C5", measures.kernels("PGD")),
    Bar("kernels of an APGD step", 3, False, "", "contract C5", measures.kernels("APGD-CE")),
    Bar("synchronisations of an eager step", 0, False, "", "contract C5",
        measures.extra(measures.steps, "synchronisations", lambda name: "graph" not in name)),
)  # fmt: skip

HEADS = ["bar", "source", "goal", "worst measured", "where", "verdict"]


def judged(rows: Sequence[Row], numbers: Mapping[str, float]) -> list[list[str]]:
    """A line a bar, in the order of `BARS`, as `HEADS` names the cells."""
    return [bar.judged(rows, numbers) for bar in BARS]
