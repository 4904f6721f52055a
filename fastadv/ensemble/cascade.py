"""One attack after another, each on the samples that the ones before it could not break."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from fastadv import diagnostics
from fastadv.attacks import Attack
from fastadv.attacks.auto_pgd.attack import AutoPGD
from fastadv.attacks.call.call import Call
from fastadv.attacks.call.result import Stage
from fastadv.attacks.call.verdict import FAULT_EMPTY_GRADIENT, Fallen, margin_of
from fastadv.attacks.square_search.attack import SquareAttack
from fastadv.engine import looks
from fastadv.engine.looks import Listener, Look
from fastadv.ensemble.linearity import rough
from fastadv.ensemble.versions import Doubt, effort_of, fitted, name_of
from fastadv.execution import Execution
from fastadv.isolation import Model
from fastadv.ops import layout
from fastadv.values import same_value

_ROBUST, _WRONG = -1, -2  # in `broken_by`, which else holds the index of a stage


@dataclass
class Progress:
    """What is known after the stages that are done; (n,) tensors on the device of x.

    broken_by: index of the stage that broke a sample, -1 if none has, -2 if the model got it wrong
    as it was. step, prediction, margin (max_{j != y} z_j - z_y): at x_adv, which is x where not
    broken. faults: bits of `fastadv.kernels.slots`. by_gradient, by_search: the highest margin that
    an attack with gradients, and Square, reached on a sample that it did not break; x_searched:
    (n, ...) where Square did, (0, ...) if no attack is to start there. inset: by how much entries
    at a bound are moved inside to be differentiated, as one attack has found for all after it.
    """

    broken_by: torch.Tensor
    step: torch.Tensor
    prediction: torch.Tensor
    margin: torch.Tensor
    faults: torch.Tensor
    by_gradient: torch.Tensor
    by_search: torch.Tensor
    x_adv: torch.Tensor
    x_searched: torch.Tensor
    stages: list[Stage] = field(default_factory=list)
    inset: float = 0.0

    @classmethod
    def of_clean(
        cls, x: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor, *, searches: bool = False
    ) -> "Progress":
        margin, prediction = margin_of(logits, labels)
        robust = prediction == labels
        return cls(
            broken_by=torch.where(robust, _ROBUST, _WRONG),
            step=torch.where(robust, -1, 0),
            prediction=prediction,
            margin=margin,
            faults=torch.zeros_like(prediction, dtype=torch.int32),
            by_gradient=margin.new_full((len(x),), -torch.inf),
            by_search=margin.new_full((len(x),), -torch.inf),
            x_adv=x.clone(memory_format=torch.preserve_format),
            x_searched=torch.empty_like(x if searches else x[:0]),
        )

    @property
    def robust(self) -> torch.Tensor:
        return self.broken_by == _ROBUST

    def doubtful(self, doubt: Doubt) -> torch.Tensor:
        """(n,) bool: robust so far, and what `doubt` says."""
        nearest = torch.maximum(self.by_gradient, self.by_search)
        is_ahead = self.by_search > self.by_gradient
        is_near = nearest > doubt.left * self.margin  # the clean margin, which is negative
        return self.robust & torch.where(is_ahead, doubt.ahead, is_near)

    def attacked_by(self, index: int, count: int, reserved: tuple[Doubt, ...]) -> torch.Tensor:
        """(n,) bool: whom the attack `index` of `count` is for, the last being `reserved`."""
        place = index - (count - len(reserved))
        return self.robust if place < 0 else self.doubtful(reserved[place])


class Attacked(NamedTuple):
    """What all stages attack. logits: (n, C) of the model at x; sample_ids: (n,); extra: (n, ...)
    each. mask: of the dimensions of x, n rows or one."""

    model: Model
    x: torch.Tensor
    labels: torch.Tensor
    logits: torch.Tensor
    sample_ids: torch.Tensor
    extra: tuple[torch.Tensor, ...] = ()
    mask: torch.Tensor | None = None


def run_cascade(
    attacks: tuple[Attack, ...],
    attacked: Attacked,
    progress: Progress,
    *,
    reserved: tuple[Doubt, ...],
    execution: Execution,
    on_stage: Callable[[Progress], None] | None,
) -> None:
    """Carry out the stages that `progress` does not have. The last attacks, as many as `reserved`
    has, are for doubtful samples; APGD starts from the closest point that Square has found there.

    A success is confirmed by the model before it counts. on_stage is called after every stage, with
    all that is needed to go on from there.
    """
    fell_back = False
    for index, attack in enumerate(attacks):
        if index < len(progress.stages):
            continue
        is_reserved = index >= len(attacks) - len(reserved)
        chosen = progress.attacked_by(index, len(attacks), reserved)
        forwards = backwards = 0
        if is_reserved and reserved[index - len(attacks)].rough:
            forwards, backwards = _add_rough(chosen, attack, attacked, progress, execution)
        alive = chosen.nonzero()[:, 0]
        if len(alive) == 0:
            stage = Stage(name_of(attack), repr(attack), 0, 0, 0.0, 0, 0, 0)
        else:
            with looks.heard_by(_of_all_stages(attacks, index, len(attacked.x))):
                stage = _run_stage(
                    attack,
                    index,
                    attacked,
                    progress,
                    alive,
                    execution=execution,
                    is_reserved=is_reserved,
                )
        stage = stage._replace(
            forwards=stage.forwards + forwards, backwards=stage.backwards + backwards
        )
        progress.stages.append(stage)
        if not fell_back and len(alive) and fitted(attack, attacked.logits.shape[1]) is not attack:
            fell_back = True  # one warning a run, of the first attack's samples
            diagnostics.warn("few_classes", len(alive), len(attacked.x))
        if on_stage is not None:
            on_stage(progress)


def _add_rough(
    chosen: torch.Tensor,
    attack: Attack,
    attacked: Attacked,
    progress: Progress,
    execution: Execution,
) -> tuple[int, int]:
    """Add to `chosen` robust samples whose gradient says little; (forwards, backwards) of that."""
    asked = progress.robust.nonzero()[:, 0]
    if len(asked) == 0:
        return 0, 0
    if progress.inset:
        execution = replace(execution, inset=progress.inset)
    found, empty, call = rough(
        _narrowed(attack, asked).threat,
        attacked.model,
        layout.gather_rows(attacked.x, asked),
        attacked.labels[asked],
        attacked.logits[asked],
        sample_ids=attacked.sample_ids[asked],
        extra=[layout.gather_rows(rows, asked) for rows in attacked.extra],
        mask=_rows_of(attacked.mask, asked),
        execution=execution,
    )
    chosen[asked[found]] = True
    progress.faults[asked[empty]] |= FAULT_EMPTY_GRADIENT
    return call.oracle.forwards, call.oracle.backwards


def _of_all_stages(attacks: tuple[Attack, ...], index: int, samples: int) -> Listener | None:
    """Who hears of the stage `index`, so that what it is told is of all stages and samples."""
    outer = looks.listener()
    if outer is None:
        return None
    efforts = [effort_of(attack) for attack in attacks]
    before, own = (sum(part) / sum(efforts) for part in (efforts[:index], [efforts[index]]))

    def heard(look: Look) -> None:
        alive = look.samples - look.fallen
        outer(Look(samples, samples - alive, alive * before + look.made * own))

    return heard


def _run_stage(
    attack: Attack,
    index: int,
    attacked: Attacked,
    progress: Progress,
    alive: torch.Tensor,
    *,
    execution: Execution,
    is_reserved: bool,
) -> Stage:
    """Attack the samples `alive` and enter what fell."""
    suited = fitted(attack, attacked.logits.shape[1])
    if progress.inset:
        execution = replace(execution, inset=progress.inset)
    x_init = None
    if is_reserved and isinstance(attack, AutoPGD):
        x_init = layout.gather_rows(progress.x_searched, alive)
    call = Call(
        _narrowed(suited, alive),
        attacked.model,
        layout.gather_rows(attacked.x, alive),
        attacked.labels[alive],
        target=None,
        sample_ids=attacked.sample_ids[alive],
        x_init=x_init,
        extra=[layout.gather_rows(rows, alive) for rows in attacked.extra],
        mask=_rows_of(attacked.mask, alive),
        execution=execution,
        clean_logits=attacked.logits[alive],
    )
    call.oracle.whole = min(call.batch_size, len(attacked.x))
    found = call.fallen()
    progress.inset = call.oracle.inset
    rows = alive[found.indices]
    progress.broken_by[rows] = index
    progress.step[rows] = found.step
    progress.prediction[rows] = found.prediction
    progress.margin[rows] = found.margin.to(progress.margin.dtype)
    progress.x_adv[rows] = found.x_adv
    progress.faults[alive] |= torch.as_tensor(found.faults, device=alive.device)
    if x_init is None:  # from where Square ended, a gradient says nothing of masking
        _note_reached(progress, suited, alive, found)
    return Stage(
        name=name_of(attack),
        attack=repr(suited),
        attacked=len(alive),
        broken=len(rows),
        forwards=call.oracle.forwards,
        backwards=call.oracle.backwards,
        discarded=int(call.oracle.discarded),
        **call.cost._asdict(),
    )


def _note_reached(progress: Progress, attack: Attack, alive: torch.Tensor, found: Fallen) -> None:
    """Where the loss of an attack is a margin: how close it came, and where Square did."""
    is_search = isinstance(attack, SquareAttack)
    if not is_search and not (
        isinstance(attack, AutoPGD) and attack.loss in ("difference", "margin")
    ):
        return
    column = progress.by_search if is_search else progress.by_gradient
    before = column[alive]
    # cast first: the host has float64, the device may not
    margins = torch.as_tensor(found.reached).to(column.dtype).to(column.device)
    column[alive] = torch.maximum(before, margins)
    if is_search and len(progress.x_searched):
        closer = margins > before
        progress.x_searched[alive[closer]] = found.x_reached[closer]


def _narrowed(attack: Attack, rows: torch.Tensor) -> Attack:
    """`attack` for `rows` of the samples, where each has a radius of its own."""
    threat = attack.threat
    bounds = threat.bounds
    if bounds is not None:
        bounds = tuple(_rows_of(side, rows) for side in bounds)
    narrowed = dict(eps=_rows_of(threat.eps, rows), bounds=bounds)
    if all(same_value(value, getattr(threat, name)) for name, value in narrowed.items()):
        return attack
    return replace(attack, threat=replace(threat, **narrowed))  # type: ignore[type-var]


def _rows_of(value: Any, rows: torch.Tensor) -> Any:
    """`rows` of a tensor that has one for each sample: not of those that all samples share."""
    is_shared = not isinstance(value, torch.Tensor) or value.ndim == 0
    if is_shared or (value.ndim > 1 and len(value) == 1):
        return value
    return value.to(rows.device)[rows]
