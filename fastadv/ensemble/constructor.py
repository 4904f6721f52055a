"""AutoAttack as an object: its version, its attacks, and a run of it."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch

from fastadv import diagnostics
from fastadv.attacks import Attack, AttackResult, fgsm
from fastadv.attacks.argument import checked_attacks
from fastadv.attacks.automatic import resolved
from fastadv.attacks.call import inputs
from fastadv.attacks.call.call import Call
from fastadv.attacks.call.result import Cost
from fastadv.attacks.call.settings import check_takes_regions
from fastadv.attacks.call.verdict import warn_of_faults
from fastadv.attacks.joint.attack import MinimumNorm
from fastadv.attacks.square_search.attack import SquareAttack
from fastadv.attacks.streaming import StreamingAttack
from fastadv.called_here import answered
from fastadv.elements import check_radius
from fastadv.ensemble import checks
from fastadv.ensemble.cascade import Attacked, Progress, run_cascade
from fastadv.ensemble.versions import VERSIONS, Keep, Version, attacks_of, reserved_of
from fastadv.execution import Auto, Execution
from fastadv.isolation import Model
from fastadv.oracle import pass_size
from fastadv.threat_model import ThreatModel, check_threat
from fastadv.values import same_settings

_BATCH_SIZE = (
    128  # slots at most, where the caller does not say: of a sample's targets few at a time
)


@dataclass(frozen=True, repr=False, eq=False)
class AutoAttack:
    """An ensemble with its settings; made by `fastadv.autoattack` and callable."""

    threat: ThreatModel
    version: Version
    attacks: tuple[Attack, ...]
    keep: Keep
    seed: int | None

    def __eq__(self, other: object) -> bool:
        return same_settings(self, other)

    def __hash__(self) -> int:
        return hash((self.version, self.seed, self.threat))

    def __repr__(self) -> str:
        given = [repr(self.threat)]
        if self.version != "standard":
            given.append(f"version={self.version!r}")
        if self.version == "custom":
            given.append(f"attacks=[{', '.join(repr(attack) for attack in self.attacks)}]")
        for name, default in (("keep", "first_success"), ("seed", 0)):
            if getattr(self, name) != default:
                given.append(f"{name}={getattr(self, name)!r}")
        return f"fastadv.autoattack({', '.join(given)})"

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        sample_ids: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
    ) -> torch.Tensor:
        """The adversarial examples alone, x where none was found; arguments as in `run`."""
        more = dict(extra=extra, mask=mask, execution=execution)
        return self.run(model, x, y, sample_ids=sample_ids, **more).x_adv  # type: ignore[arg-type]

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        sample_ids: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
        execution: Execution | Auto | None = None,
        progress: Progress | None = None,
        on_stage: Callable[[Progress], None] | None = None,
    ) -> AttackResult:
        """Run the attacks in order, each on the samples that the ones before it left robust.

        Arguments as in `Attack.run`; mask: where each of the attacks takes one. progress: what an
        interrupted run of the same arguments had reported to `on_stage` last: only the missing
        attacks are run; to keep it, copy it, as the run goes on writing to it. execution: without a
        batch_size 128 slots, on a CPU fewer where activations are large (see `Execution`); or
        "auto", what `fastadv.tune` finds. The result's `stages` say what each attack broke,
        `broken_by` which attack broke a sample; its forwards leave out the few of the checks, after
        which come `AttackWarning`s for signs of masked gradients: "randomised", "dynamic",
        "probabilities", "squashed", "few_classes", "zero_gradient", "square_gains",
        "empty_gradient" (of "fast"), "clamped_input", "recorded_in_training".

        Example: `fastadv.autoattack(fastadv.Linf(8 / 255)).run(model, x, y).success`.
        """
        execution = resolved(execution, self.attacks, model, x, extra, rows=_BATCH_SIZE)
        is_free = execution.batch_size is None
        if is_free:
            execution = replace(execution, batch_size=_BATCH_SIZE)
        attacks = self._seeded_attacks()
        if mask is not None:
            for attack in attacks:
                check_takes_regions(attack, "mask=")
        if any(isinstance(attack, SquareAttack) for attack in attacks):
            _check_images(x, self.threat)
        look = Call(
            fgsm(self.threat, loss="margin", seed=attacks[0].seed),
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
        if len(look.given.x) == 0:
            return replace(look.result(), broken_by=torch.empty_like(look.given.sample_ids))
        look.oracle.is_sizing = is_free and pass_size.may_split(model, look.given.x)
        logits = look.clean_logits()
        if is_free:
            execution = replace(execution, batch_size=min(_BATCH_SIZE, look.oracle.fast))
        labels = logits.argmax(1) if look.given.labels is None else look.given.labels
        inputs.check_range(labels, logits.shape[1], name="y")
        checks.examine(
            model,
            look.given.x[: look.batch_size],
            [rows[: look.batch_size] for rows in look.given.extra],
            seed=attacks[0].seed,
            expects_random=self.version == "rand",
        )
        reserved = reserved_of(self.version)
        if progress is None:
            progress = Progress.of_clean(look.given.x, labels, logits, searches=bool(reserved))
        run_cascade(
            attacks,
            Attacked(
                model,
                look.given.x,
                labels,
                logits,
                look.given.sample_ids,
                look.given.extra,
                look.given.mask,
            ),
            progress,
            reserved=reserved,
            execution=execution,
            on_stage=on_stage,
        )
        warn_of_faults(progress.faults.cpu().numpy(), of_ensemble=True)
        was_found = execution.inset is None and progress.inset > 0
        diagnostics.warn("clamped_input", len(labels) if was_found else 0, len(labels))
        gains = checks.gains_of_square(progress.stages, len(reserved))
        checks.warn_of_square(gains, len(labels))
        return AttackResult(
            x_adv=progress.x_adv,
            success=~progress.robust,
            loss=progress.margin,
            distance=self.threat.distance(progress.x_adv, look.given.x),
            step=progress.step,
            prediction=progress.prediction,
            clean_prediction=logits.argmax(1),
            forwards=look.oracle.forwards + sum(stage.forwards for stage in progress.stages),
            backwards=sum(stage.backwards for stage in progress.stages),
            inset=progress.inset,
            cost=functools.reduce(Cost.plus, (stage.cost for stage in progress.stages), Cost()),
            broken_by=progress.broken_by,
            stages=tuple(progress.stages),
            execution=execution,
        )

    def streaming(self, *, seen: int = 0) -> StreamingAttack:
        """This ensemble, counting the samples it has seen: every call draws new noise, and the
        examples of a data set do not depend on how it is cut into batches.

        Sample k of a call has the id seen + k; see `StreamingAttack`, whose `seen` can be read and
        set. Raises ValueError for a negative seen.
        Example: `stream = fastadv.autoattack(fastadv.Linf(8 / 255)).streaming()`, then
        `for x, y in loader: x_adv = stream(model, x, y)`.
        """
        return StreamingAttack(self, seen=seen)

    def _seeded_attacks(self) -> tuple[Attack, ...]:
        """The attacks; with seed=None, as in the authors' code, seeded by the time of the run."""
        if self.seed is not None:
            return self.attacks
        seed = time.time_ns()
        return tuple(replace(attack, seed=seed + attack.seed) for attack in self.attacks)  # type: ignore[type-var]


def _check_images(x: object, threat: ThreatModel) -> None:
    """Before hours of other attacks, not after them."""
    least = 1 if threat.norm == "linf" else 5
    if isinstance(x, torch.Tensor) and (x.ndim != 4 or min(x.shape[2:]) < least):
        raise ValueError(
            f"the Square Attack needs images (B, C, H, W), in L2 and L1 of at least 5 x 5 pixels; "
            f"got x of shape {tuple(x.shape)}: use version='custom' with attacks=[...] without it"
        )


@answered
def autoattack(
    threat: ThreatModel,
    version: Version = "standard",
    *,
    attacks: Sequence[Attack | str] = (),
    keep: Keep = "first_success",
    seed: int | None = 0,
) -> AutoAttack:
    """AutoAttack: attacks in order, each on the samples that the ones before it left robust.

    threat: `Linf`, `L2` or `L1`. version: "standard" is APGD-CE, APGD-T and FAB-T with 9 targets
    (L1: five starts and five targets of APGD, in the large radii), then Square with 5,000 queries;
    "plus" is APGD-CE and APGD-DLR with five starts, FAB with five, Square, APGD-T, FAB-T; "rand",
    for random models, is APGD-CE and APGD-DLR averaged over 20 passes; "fast", which is not
    AutoAttack, is APGD-CE with 20 steps, APGD on z_t - z_y towards 9 targets with 30, Square with
    1,000 queries; then, only for samples that Square came closer to breaking than the gradients,
    that APGD from where Square ended, FAB-T towards 3 targets, and Square as in "standard" with
    another seed; of the others, those with a tenth of their margin left get that APGD, those with a
    quarter that FAB-T; "custom" is `attacks`, in their order; a name, as "apgd-ce", is that attack
    at its defaults. Fewer classes are fewer targets, and where they leave the DLR loss undefined
    (3, targeted 4) the margin loss is used, with a warning. keep: "first_success" stops a slot
    there; "authors" makes all steps and returns what the authors' code does, which changes no
    verdict. seed: of all randomness; None takes the time, as the authors' default. Raises
    ValueError for an unknown version, or attacks that do not belong to it; TypeError for what is no
    attack.

    Example: `fastadv.evaluate(net, (x, y), fastadv.autoattack(fastadv.Linf(8 / 255)))`.
    Source: Croce and Hein 2020, arXiv:2003.01690; L1: 2021, arXiv:2103.01208.
    """
    check_threat(threat)
    check_radius(threat, "autoattack")
    if threat.norm == "l0":
        raise ValueError(f"autoattack is not defined in L0; got {threat!r}: use fastadv.pgd")
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {VERSIONS}; got {version!r}")
    if keep not in get_args(Keep):
        raise ValueError(f"keep must be one of {get_args(Keep)}; got {keep!r}")
    if seed is not None and not isinstance(seed, int):
        raise ValueError(f"seed must be an integer or None; got {seed!r}")
    given = checked_attacks(attacks, threat, seed=seed or 0)
    if (version == "custom") != bool(given):
        raise ValueError(
            "attacks belongs to version='custom', and that needs at least one; got "
            f"version={version!r} and {len(given)} attacks"
        )
    chosen = given or attacks_of(version, threat, keep=keep, seed=seed or 0)
    for attack in chosen:
        if attack.threat != threat:
            raise ValueError(f"every attack must have the threat {threat!r}; got {attack!r}")
        objective = attack.resolved_loss.objective
        if objective is not None:
            raise ValueError(
                f"an ensemble compares margins of classes, which {objective!r} has not: evaluate "
                "its attacks one by one"
            )
        if isinstance(attack, MinimumNorm):
            raise ValueError(f"{attack!r} is an ensemble of its own: evaluate it alone")
        if attack.keep not in get_args(Keep):
            raise ValueError(f"every attack must have keep of {get_args(Keep)}; got {attack!r}")
    return AutoAttack(threat, version, chosen, keep, seed)
