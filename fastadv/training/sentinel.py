"""The sentinel: sees training collapse on held-out samples, and knows the way back."""

import copy
import math
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from fastadv.diagnostics import emit
from fastadv.elements import check_radius
from fastadv.ops import doubles
from fastadv.threat_model import ThreatModel, check_threat
from fastadv.training import arguments, snapshot
from fastadv.training.craft import inner_module
from fastadv.training.examination import look
from fastadv.training.methods import Step, check_watched
from fastadv.training.multistep import PGDAT
from fastadv.training.regions import quarter
from fastadv.training.verdict import (
    Check,
    Collapse,
    TrainingWarning,
    best_pgd,
    explain,
    judge,
)

_Step = TypeVar("_Step", bound=Step)

OnCollapse = Literal["warn", "stop", "rollback"]
_AS_GOOD = 0.02  # PGD accuracies this close are the same: one sigma of 500 samples
_GLANCES = 4  # looks at the losses for each check by PGD
_MOST_ROLLBACKS = 3
_RESTARTS_AT_THE_END = 5  # MNIST: within 0.8 points of PGD-50-10, for a tenth of the work


@dataclass(eq=False, repr=False)
class Sentinel:
    """Every `every` batches: accuracy on held-out samples, clean, under one step and under PGD-10.

    x, y: held-out *training* samples, 500 or more of all classes, on the model's device, which
    training must not see. on_collapse: "warn"; "stop", which puts the last good weights back and
    raises `Collapse`; or "rollback", which puts weights and optimizer state back and goes on with
    PGD-5 at a quarter of eps a step, eps growing over `rescue_warmup` batches (two checks if 0).
    Four times between two checks the means of training and craft loss are read, which tells NaN
    and, where the training loss is the lower one (the craft no longer hurts), brings the check
    forward, as a "suspect" check does the next one; otherwise nothing is synchronised. Verdicts:
    "collapse", catastrophic overfitting seen twice; "stuck", one class for `patience` checks;
    "nan". How they are reached: `fastadv.training.verdict.judge`. `history` has every check, each
    about 24 units a held-out sample. floor: what `finish` demands, an accuracy that belongs to a
    data set.

    Example: `sentinel = fastadv.training.Sentinel(threat, x_held, y_held, every=300)`, then after
    each batch `step = sentinel.watch(step, model, optimizer)`.
    Source: Wong et al. 2020, arXiv:2001.03994, and Andriushchenko and Flammarion 2020,
    arXiv:2007.02617, watch PGD on training samples; the rescue is ours.
    """

    threat: ThreatModel
    x: torch.Tensor
    y: torch.Tensor
    _: KW_ONLY
    every: int
    on_collapse: OnCollapse = "warn"
    rescue_warmup: int = 0
    floor: float = 0.0
    patience: int = 2
    batch_size: int = 500
    seed: int = 0
    history: list[Check] = field(init=False, default_factory=list)
    batches: int = field(init=False, default=0)
    rollbacks: int = field(init=False, default=0)
    _first: int = field(init=False, default=0)  # of the history since the last rollback
    _sums: torch.Tensor | None = field(
        init=False, default=None
    )  # of the losses since the last check
    _added: int = field(init=False, default=0)
    _good: dict[str, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        check_threat(self.threat)
        check_radius(self.threat, "a Sentinel")
        if self.on_collapse == "rollback":
            quarter(self.threat)
        self.x = arguments.check_batch(self.threat, None, self.x, self.y)
        counts = (("every", 1), ("rescue_warmup", 0), ("patience", 1), ("batch_size", 1))
        for name, lowest in counts:
            arguments.check_count(self, name, lowest)
        if self.on_collapse not in get_args(OnCollapse):
            raise ValueError(
                f"on_collapse must be one of {get_args(OnCollapse)}; got {self.on_collapse!r}"
            )
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1); got {self.floor}")
        if len(self.y.unique()) < 2:
            raise ValueError(
                f"y must hold samples of several classes; got {len(self.y)} of one. Hold out "
                "samples from all of the data"
            )
        self.rescue_warmup = self.rescue_warmup or 2 * self.every

    def __repr__(self) -> str:
        return (
            f"<Sentinel of {len(self.x)} samples at {self.threat!r}, every {self.every} batches, "
            f"on_collapse={self.on_collapse!r}>"
        )

    def watch(
        self, step: _Step, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> _Step | PGDAT:
        """The step to go on with: `step` itself, or after a rollback the one that rescues.

        Call it after every batch, with the optimizer step done. Raises `Collapse` for "stop", and
        where three rollbacks did not help; emits `TrainingWarning` otherwise.
        """
        check_watched(step)
        if self._good is None:
            self.keep(model, optimizer)  # nothing better is known yet
        self.batches += 1
        self._add(step)
        is_due = self.batches % self.every == 0
        if not is_due and self.batches % max(1, self.every // _GLANCES):
            return step
        train, craft = self._mean_losses()
        is_odd = not math.isfinite(train) or train < craft or self._is_suspect
        if not (is_due or is_odd):
            return step
        is_warm = step.batches >= step.eps_warmup
        check = self.examine(model, train_loss=train, craft_loss=craft, is_warm=is_warm)
        since = self.history[self._first :]
        check = judge(check, since, patience=self.patience)
        self.history.append(check)
        self._sums = None
        if check.verdict not in ("good", "suspect"):
            return self._act(check, since, step, model, optimizer)
        if self._is_worth_keeping(check, since):
            self.keep(model, optimizer)
        return step

    def _is_worth_keeping(self, check: Check, since: list[Check]) -> bool:
        """As good as the best. While a rescue's eps grows, what came before is still better."""
        is_growing = not check.is_warm and self.rollbacks > 0
        is_good = check.verdict == "good" and not check.is_constant
        return is_good and not is_growing and check.pgd >= best_pgd(since) - _AS_GOOD

    def finish(
        self,
        step: _Step,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        judged: nn.Module | None = None,
    ) -> _Step | PGDAT:
        """The gate at the end: PGD-10 with 5 restarts must leave `floor`, or the net is "weak".

        Some single-step runs end weak without ever collapsing. Returns `step` if all is well or has
        been rescued before; else warns or, for "rollback", returns the step that rescues: train on.
        judged: the network that is handed over, if it is another (an average of the weights).
        """
        check_watched(step)
        if not self.floor:
            return step
        check = self.examine(judged or model, restarts=_RESTARTS_AT_THE_END)
        check = replace(check, verdict="weak" if check.pgd < self.floor else "good")
        since = self.history[self._first :]
        self.history.append(check)
        if check.verdict == "good" or (self.rollbacks and self.on_collapse == "rollback"):
            return step
        return self._act(check, since, step, model, optimizer)

    @property
    def _is_suspect(self) -> bool:
        return bool(self.history) and self.history[-1].verdict == "suspect"

    def _act(
        self,
        check: Check,
        since: list[Check],
        step: _Step,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> _Step | PGDAT:
        message = explain(check, since, n=len(self.x), threat=repr(self.threat), floor=self.floor)
        if self.on_collapse == "warn" or (self.on_collapse == "stop" and check.verdict == "weak"):
            if not since or since[-1].verdict != check.verdict:
                emit(TrainingWarning(check.verdict, message))
            return step
        self._restore(model, optimizer)
        if self.on_collapse == "stop" or self.rollbacks == _MOST_ROLLBACKS:
            raise Collapse(check.verdict, f"{message} The last good weights are back in the model.")
        self.rollbacks += 1
        self._first = len(self.history)
        rescue = self.rescue_step(step)
        message = f"{message} Back to the last good weights, and on with {rescue!r}."
        emit(TrainingWarning(check.verdict, message))
        return rescue

    def rescue_step(self, step: Step) -> PGDAT:
        """PGD-5 with an eps warm-up, longer each time, and what of `step` applies to it."""
        rescue = PGDAT(
            self.threat,
            steps=5,
            step_size=quarter(self.threat),
            eps_warmup=self.rescue_warmup * max(1, self.rollbacks),
            precision=step.precision,
            label_smoothing=step.label_smoothing,
            seed=self.seed + self.rollbacks,
            bn=getattr(step, "bn", "batch"),
            modifiers=getattr(step, "modifiers", ()),
        )
        rescue._watch.take_over(step._watch)
        return rescue

    def _add(self, step: Step) -> None:
        if self._sums is None:
            self._sums = torch.zeros(2, dtype=doubles.widest(self.x), device=self.x.device)
            self._added = 0
        for i, loss in enumerate((step.train_loss, getattr(step, "craft_loss", None))):
            self._sums[i] += math.nan if loss is None else loss
        self._added += 1

    def _mean_losses(self) -> tuple[float, float]:
        """Over the batches since the last check, and over all ranks; synchronises."""
        assert self._sums is not None, "called after a batch was added"
        means = self._sums / self._added
        if arguments.is_distributed():  # all ranks decide alike
            torch.distributed.all_reduce(means)
            means /= torch.distributed.get_world_size()
        train, craft = means.tolist()
        return train, craft

    def examine(
        self,
        model: nn.Module,
        *,
        train_loss: float = math.nan,
        craft_loss: float = math.nan,
        is_warm: bool = True,
        restarts: int = 1,
    ) -> Check:
        """A look at the model as it is, without a verdict; the model is left as it was."""
        seen = look(
            inner_module(model),
            self.x,
            self.y,
            self.threat,
            batch_size=self.batch_size,
            restarts=restarts,
            seed=self.seed,
        )
        return Check(
            batch=self.batches,
            samples=len(self.x),
            train_loss=train_loss,
            craft_loss=craft_loss,
            is_warm=is_warm,
            **seen._asdict(),
        )

    def keep(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take weights and optimizer state for the last good ones.

        `watch` does so, from the first batch on; call it before training too, and what goes wrong
        in that batch can be undone. Raises `Collapse` for weights that are not finite.
        """
        self._good = snapshot.taken(model, optimizer)

    def _restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self._good is not None, "kept at the first batch"
        snapshot.put_back(self._good, model, optimizer)

    @property
    def good_weights(self) -> dict[str, torch.Tensor] | None:
        """The last good ones, by name, with "1: " before those of a second module that the model
        reaches; None before any were kept."""
        return None if self._good is None else self._good["model"]

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, safe to load with weights_only; held-out samples aside."""
        return {
            "batches": self.batches,
            "rollbacks": self.rollbacks,
            "first": self._first,
            "history": [asdict(check) for check in self.history],
            "sums": self._sums,
            "added": self._added,
            "good": self._good,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the sentinel that gave `state`; raises ValueError if it does not fit."""
        names = ("batches", "rollbacks", "first", "history", "sums", "added", "good")
        arguments.check_state(state, names)
        self.batches, self.rollbacks = state["batches"], state["rollbacks"]
        self._first = state["first"]
        self.history = [Check(**check) for check in state["history"]]
        self._sums = None if state["sums"] is None else state["sums"].to(self.x.device)
        self._added = state["added"]
        self._good = copy.deepcopy(state["good"])
