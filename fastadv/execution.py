"""How an attack is run: fast where nothing depends on it, exact where a success is confirmed."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Batching = Literal["continuous", "plain"]
Precision = Literal["fp32", "bf16", "fp16"]
CudaGraph = Literal["auto", True, False]
Auto = Literal["auto"]  # in place of an Execution: what `fastadv.tune` finds


@dataclass(frozen=True)
class Execution:
    """How to run an attack: search fast, confirm slowly. No verdict is weakened by any of it.

    precision: "bf16" and "fp16" search in half precision: passes under autocast, iterates and
    losses in float32; "fp32" is the model as it is. channels_last: images and 4-D weights in that
    layout. fold_batchnorm: BatchNorm folded into the convolution or linear layer before it; refused
    with a ValueError where the logits would change. compile: forward and backward by torch.compile,
    without weight gradients. All of these work on a copy of the model, and every success that they
    find is confirmed on the user's own: a sample whose success it denies is attacked further. They
    may find other adversarial examples than fp32, but report none that is not one.
    final_pass: attack what survived again, with the user's model itself, where the search used
    another and the attack stops at successes; the cost is in the result.

    inset: what becomes of a model that clamps its input and so has no gradient at the bounds. None:
    it is noticed, and from then on the model is differentiated with the entries that lie at a bound
    moved inside by the least amount that gives them one, at most 2^-20 of the range, while losses,
    predictions and successes stay those of the iterate itself (one forward more a step). It is the
    one case in which gradients are not taken where the papers' code takes them (contract C1). 0.0:
    nobody looks. Another number: move by that amount from the start.

    cuda_graph: "auto" captures a step once on a GPU and replays it, falling back to eager steps
    with one `ExecutionWarning`; True raises where it cannot; False never does. batching:
    "continuous" refills the slot of a finished sample from a queue and shrinks the batch when the
    queue is empty; "plain" runs every sample through every step. batch_size: slots held at once,
    halved when memory runs out. None is all samples on a GPU; on a CPU as many rows a pass as keep
    it fast: so many that its largest activation, which the first pass shows, takes 3 MiB, and 32
    while they stay below 16 MiB, at least 8; of models that torch.compile has made all samples.
    timed: measure after an attack what its passes cost on their own, by a few more of them. Of
    these the results do not depend (contract C2).

    Example: `attack.run(model, x, y, execution=fastadv.Execution(precision="bf16"))`.
    """

    precision: Precision = "fp32"
    channels_last: bool = False
    fold_batchnorm: bool = False
    cuda_graph: CudaGraph = "auto"
    compile: bool = False
    batching: Batching = "continuous"
    batch_size: int | None = None
    final_pass: bool = False
    timed: bool = False
    inset: float | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("precision", get_args(Precision)),
            ("cuda_graph", get_args(CudaGraph)),
            ("batching", get_args(Batching)),
        ):
            value = getattr(self, name)
            if value not in choices:
                words = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {words}; got {value!r}")
        if not isinstance(self.cuda_graph, str | bool):  # 0 is not False, which it equals
            raise ValueError(
                f"cuda_graph must be one of {get_args(CudaGraph)}; got {self.cuda_graph!r}"
            )
        for name in ("channels_last", "fold_batchnorm", "compile", "final_pass", "timed"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False; got {getattr(self, name)!r}")
        inset = self.inset
        is_number = isinstance(inset, float | int) and not isinstance(inset, bool)
        if inset is not None and not (is_number and 0 <= inset < math.inf):
            raise ValueError(f"inset must be None or a number of at least 0; got {inset!r}")
        size = self.batch_size
        if size is not None and not (isinstance(size, int) and size >= 1):
            raise ValueError(f"batch_size must be at least 1, an integer or None; got {size!r}")

    @property
    def is_exact(self) -> bool:
        """Whether the search asks the user's model itself."""
        return self.precision == "fp32" and not (
            self.channels_last or self.fold_batchnorm or self.compile
        )
