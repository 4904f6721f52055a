"""minimum_norm: settings, checks, a run, and its constructor."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from fastadv import diagnostics, losses
from fastadv.attacks.attack import Attack, constructor, in_norms
from fastadv.attacks.automatic import resolved
from fastadv.attacks.call import inputs
from fastadv.attacks.call.call import Call
from fastadv.attacks.call.result import AttackResult, Cost
from fastadv.attacks.call.targets import Target
from fastadv.attacks.call.verdict import margin_of
from fastadv.attacks.joint.found import Clean, Found
from fastadv.attacks.joint.plans import first_searches
from fastadv.attacks.joint.polish import polish
from fastadv.attacks.joint.rounds import Attacked, run_round, run_squares
from fastadv.attacks.nearest.search import Keep, NearestAttack
from fastadv.containment import contains
from fastadv.engine import looks
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

# what a round says of its ball, of which the user knows nothing
_OF_ROUNDS = ("zero_radius", "small_radius", "unconfirmed", "clamped_input")


@dataclass(frozen=True, repr=False, eq=False)
class MinimumNorm(NearestAttack):
    """Several attacks in turn; see `fastadv.minimum_norm` for the settings."""

    constructor: str
    threat: ThreatModel
    budget: int
    keep: Keep = "first_success"
    seed: int = 0

    def __post_init__(self) -> None:
        self.check("budget")
        self._first()

    def _first(self) -> list[Attack]:
        return first_searches(self._unlimited, self.budget, self.seed)

    @property
    def _unlimited(self) -> ThreatModel:
        return replace(self.threat, eps=math.inf)  # type: ignore[type-var]

    @property
    def steps(self) -> int:
        """Of two passes each."""
        return self.budget // 2

    @property
    def resolved_loss(self) -> losses.Loss:
        return losses.UNCAPPED_MARGIN

    @property
    def effective_step_size(self) -> float:
        return 0.0  # its members have their own

    def algorithm(self, oracle: Oracle, *, targets: int, first_step: int, room: int) -> NoReturn:
        raise AssertionError("run carries out its members, each with an algorithm of its own")

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: Target | None = None,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
    ) -> torch.Tensor:
        """The adversarial examples alone, x where none was found; arguments as in `run`."""
        return self.run(
            model,
            x,
            y,
            target=target,
            sample_ids=sample_ids,
            x_init=x_init,
            extra=extra,
            mask=mask,
            execution=execution,
        ).x_adv

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        target: Target | None = None,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
    ) -> AttackResult:
        """The nearest adversarial example of every sample that `budget` passes find.

        Arguments as in `Attack.run`, but for target and x_init, which it does not take: it looks
        for the nearest wrong class, from x. `best_at` counts the passes when an example was found.

        Example: `fastadv.minimum_norm(fastadv.L2()).run(model, x, y).distance`.
        """
        for name, value in (("target", target), ("x_init", x_init)):
            if value is not None:
                raise ValueError(
                    f"minimum_norm goes from x to the nearest wrong class and takes no {name}=: "
                    "use fastadv.fmn"
                )
        execution = resolved(execution, self._first(), model, x, extra)
        look = Call(
            self._first()[0],
            model,
            x,
            y,
            target=None,
            sample_ids=sample_ids,
            x_init=None,
            extra=extra,
            mask=mask,
            execution=execution,
        )
        given = look.given
        if len(given.x) == 0:
            return look.result()
        logits = look.clean_logits()
        labels = logits.argmax(1) if given.labels is None else given.labels
        inputs.check_range(labels, logits.shape[1], name="y")
        clean = Clean(*margin_of(logits, labels))
        found = Found.of_clean(given.x, self.threat, labels, clean, self.budget)
        execution = replace(look.execution, batch_size=look.batch_size)
        attacked = Attacked(
            model,
            given.x,
            labels,
            logits,
            given.sample_ids,
            given.extra,
            self._unlimited,
            execution,
        )
        passes = self._searched(attacked, found)
        return self._result(look, found, clean, passes, execution)

    def _searched(self, attacked: Attacked, found: Found) -> tuple[int, int]:
        """(forwards, backwards) of all members, whose points are entered in `found`."""
        outer = looks.listener()
        rows = (found.left > 0).nonzero()[:, 0]
        if len(rows) == 0:
            return 0, 0
        with looks.heard_by(None):
            passes = []
            for search in self._first():
                result = attacked.call(search, rows).result()
                found.enter_search(rows, result, 2 * search.steps + 1)
                passes.append((result.forwards, result.backwards))
            found.mask(rows)
            with diagnostics.without(*_OF_ROUNDS):
                self._note(found, outer)
                passes.append(run_squares(attacked, found, self.seed))
                number = 0
                while number == 0 or passes[-1] != (0, 0):
                    self._note(found, outer)
                    passes.append(run_round(attacked, found, self.seed + number))
                    number += 1
                passes.append(polish(attacked, found))
        return sum(f for f, _ in passes), sum(b for _, b in passes)

    def _note(self, found: Found, listener: looks.Listener | None) -> None:
        """Between two members: who is done, and how far the others are."""
        if self.stops_early:
            found.finish_within(self.threat)
        if listener is not None:
            listener(found.look)

    def _result(
        self, look: Call, found: Found, clean: Clean, passes: tuple[int, int], execution: Execution
    ) -> AttackResult:
        x = look.given.x
        success = (found.step >= 0) & contains(self.threat, found.x_adv, x)
        if self.discards_outside:
            found.withdraw(~success, x, clean.loss, clean.prediction)
        distance = self.threat.distance(found.x_adv, x)
        if self.seeks_nearest:
            distance[~success] = torch.inf
        return AttackResult(
            x_adv=look.given.as_given(found.x_adv),
            success=success,
            loss=found.loss,
            distance=distance,
            step=found.step.masked_fill(~success, -1),
            prediction=found.prediction,
            clean_prediction=clean.prediction,
            forwards=look.oracle.forwards + passes[0],
            backwards=passes[1],
            cost=Cost(seconds=time.perf_counter() - look.began),
            best_at=found.best_at,
            execution=execution,
        )


@constructor
@in_norms("linf", "l2", "l1", "l0")
def minimum_norm(
    threat: ThreatModel,
    *,
    budget: int = 1000,
    keep: Keep = "first_success",
    seed: int = 0,
) -> MinimumNorm:
    """Several attacks in turn, for the nearest adversarial example that `budget` passes find.

    First FMN (L-infinity; L2 and L1 with few passes), PDPGD (L2, L1, L0) and sigma-zero (L0); then
    rounds of ten steps of APGD on z_t - z_y, in L0 of PGD, in a ball that is smaller than the
    distance known so far: by a tenth at first, by more after a success, by less after a failure. A
    round begins at the nearest example, drawn into the ball, and aims at its class; after a failure
    at the likeliest classes in turn, in L-infinity from a random point as well. Where the first
    search finds nothing, as with gradients that are masked, images are left to Square, in balls
    that shrink in the same way. At the end, but in L0, x is projected onto the boundary, linearised
    at the nearest example.

    threat: `fastadv.L2()`, `Linf()`, `L1()` or `L0()`; with a radius, `fastadv.L2(0.5)`, a sample
    is finished when one of them has found a point within it. budget: forward and backward passes a
    sample, at least 60, with the look at x and those that confirm what is found; where a confirming
    model is another than the one attacked, or a clamp is looked through, these come on top. keep:
    "best" looks for the nearest example though there is a radius. seed: of what APGD and Square
    draw. Where nothing is found the result is x, and without a radius the distance inf.

    Raises ValueError for a smaller budget, for target= and x_init=, for masks, for radii or bounds
    of elements, and for an L0 of pixels.
    Example: `fastadv.minimum_norm(fastadv.L2()).run(model, x, y).distance`.
    Source: its members'; compared by the protocol of Cina et al. 2024, arXiv:2404.19460.
    """
    return MinimumNorm("minimum_norm", threat, budget, keep, seed)
