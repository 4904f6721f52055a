"""What a training run is, in plain values: frozen, comparable, and kept in its checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

from fastadv import models
from fastadv.elements import check_radius
from fastadv.models.registry import ModelName
from fastadv.ops.augment.batch import Flip
from fastadv.threat_model import L1, L2, Linf, ThreatModel
from fastadv.training.sentinel import OnCollapse

Method = Literal["free", "fast", "nfgsm", "pgd", "trades", "mart", "yopo"]
Precision = Literal["fp32", "bf16"]
Dataset = Literal["digits", "mnist", "cifar10"]
Optimizer = Literal["adam", "sgd"]
Norm = Literal["linf", "l2", "l1"]
_COUNTS = (
    *("epochs", "batch_size", "steps", "replays"),
    *("held_out", "rescue_epochs", "classes"),
)
METHODS: tuple[Method, ...] = get_args(Method)
_THREATS = {"linf": Linf, "l2": L2, "l1": L1}

Knots = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the outcome of a run, beside the data. Durations are in epochs.

    eps: radius in `norm` ("linf", "l2" or "l1"), pixels in [0, 1]. model: a name of
    `fastadv.models`, or "module:function" for a network of one's own. classes: of the data. epochs:
    passes over the data, each of `replays` updates a batch. learning_rate: knots (epoch, rate),
    linear in between; at a jump (two knots at one epoch) the earlier holds up to it. step_size: in
    units of eps. steps: of the craft; of YOPO the full passes, each with `inner` cheap steps.
    noise: of N-FGSM, in units of eps. beta: of TRADES and MART. ema: decay of the averaged weights,
    which are then what is evaluated and saved; 0 for none. held_out: training samples kept for the
    sentinel and for choosing the best epoch, at most a fifth of them. floor: what the sentinel
    demands at the end. rescue_epochs: at least so many of PGD-5 follow a rollback, the rate rising
    to rescue_learning_rate while eps grows and, over their second half, falling to 0.
    Raises ValueError for values that make no run. See `fastadv.recipes.recipe` for the published.

    Example: `dataclasses.replace(recipe("digits", "fast"), flip=None, held_out=100)`.
    """

    dataset: str
    method: Method
    model: ModelName | str
    eps: float
    epochs: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: Knots
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    step_size: float
    steps: int = 1
    inner: int = 0
    replays: int = 1
    noise: float = 1.0
    beta: float = 0.0
    clamp_start: bool = True
    eps_warmup: float = 0.0
    ema: float = 0.0
    label_smoothing: float = 0.0
    crop: int = 0
    flip: Flip | None = None
    held_out: int = 1000
    precision: Precision = "fp32"
    channels_last: bool = False
    seed: int = 0
    on_collapse: OnCollapse = "warn"
    sentinel_every: float = 0.5
    floor: float = 0.0
    rescue_epochs: int
    rescue_learning_rate: float
    norm: Norm = "linf"
    classes: int = 10

    def __post_init__(self) -> None:
        _check_choice("norm", self.norm, get_args(Norm))
        check_radius(self.threat, "a Recipe")  # the threat model refuses one in other units
        _check_choice("method", self.method, METHODS)
        if not self.is_own_model:
            _check_choice("model", self.model, (*models.names(), "module:function"))
        _check_choice("optimizer", self.optimizer, get_args(Optimizer))
        _check_choice("precision", self.precision, get_args(Precision))
        _check_choice("on_collapse", self.on_collapse, get_args(OnCollapse))
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1; got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed must be an integer in [0, 2^63); got {self.seed!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), 0 for no average; got {self.ema}")
        for name in ("sentinel_every", "rescue_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if not self.eps_warmup >= 0:
            raise ValueError(f"eps_warmup must not be negative; got {self.eps_warmup}")
        _check_knots(self.learning_rate)

    @property
    def threat(self) -> ThreatModel:
        """Linf, L2 or L1 at `eps`."""
        return _THREATS[self.norm](self.eps)

    @property
    def is_own_model(self) -> bool:
        """Whether the network is one's own, and has to be given where the recipe is used."""
        return ":" in self.model

    def rate_at(self, epoch: float) -> float:
        """The learning rate after `epoch` epochs, a fraction within one.

        Example: `recipe("mnist", "fast").rate_at(2.0)` is 0.0025.
        """
        knots = self.learning_rate
        for (before, low), (after, high) in pairwise(knots):
            if epoch <= after and before < after:
                share = max(0.0, (epoch - before) / (after - before))
                return low + share * (high - low)
        return knots[-1][1]

    def stretched(self, epochs: int) -> "Recipe":
        """The same over `epochs` epochs: learning rate and eps warm-up are stretched along."""
        factor = epochs / self.epochs
        knots = tuple((epoch * factor, rate) for epoch, rate in self.learning_rate)
        return replace(
            self, epochs=epochs, learning_rate=knots, eps_warmup=self.eps_warmup * factor
        )

    def with_peak(self, rate: float) -> "Recipe":
        """The same schedule, its highest learning rate being `rate`."""
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"learning_rate must be finite and above 0; got {rate}")
        factor = rate / max(rate for _, rate in self.learning_rate)
        knots = tuple((epoch, rate * factor) for epoch, rate in self.learning_rate)
        return replace(self, learning_rate=knots)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def _check_knots(knots: Knots) -> None:
    ascending = all(before <= after for (before, _), (after, _) in pairwise(knots))
    if not knots or not ascending or not all(r >= 0 and math.isfinite(r) for _, r in knots):
        raise ValueError(
            f"learning_rate must be knots (epoch, rate) in order, with rates >= 0; got {knots}"
        )
    if not any(rate for _, rate in knots):
        raise ValueError(f"learning_rate must be above 0 somewhere; got {knots}")
