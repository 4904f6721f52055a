"""The versions of AutoAttack: which attacks, in which order, with which budgets."""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from fastadv.attacks import Attack, apgd_ce, apgd_dlr, apgd_t, fab, fab_t, square
from fastadv.attacks.auto_pgd.attack import AutoPGD
from fastadv.threat_model import ThreatModel

Version = Literal["standard", "plus", "rand", "fast", "custom"]
Keep = Literal["first_success", "authors"]
VERSIONS: tuple[Version, ...] = get_args(Version)
# shares of the clean margin: where APGD left up to 0.34 on masked gradients, FAB broke most, but a
# quarter is what unmasked models can be given for what they cost
_NEAREST, _NEAR = 0.1, 0.25
_OTHER_WINDOWS = 2**31  # beyond what one tries as seeds: runs at seeds 0 and 1 share no search
_DLR_CLASSES = {"apgd_dlr": 3, "apgd_t": 4}  # fewer leave the loss undefined


def attacks_of(
    version: Version, threat: ThreatModel, *, keep: Keep, seed: int
) -> tuple[Attack, ...]:
    """The attacks of a version but "custom", as the authors set them for the norm."""
    common: dict[str, Any] = dict(keep=keep, seed=seed)
    if version == "rand":
        return (
            apgd_ce(threat, eot=20, **common),
            apgd_dlr(threat, eot=20, **common),
        )
    if version == "plus":
        return (
            apgd_ce(threat, restarts=5, **common),
            apgd_dlr(threat, restarts=5, **common),
            fab(threat, restarts=5, **common),
            square(threat, seed=seed),
            apgd_t(threat, **common),
            fab_t(threat, **common),
        )
    is_l1 = threat.norm == "l1"
    if version == "fast":
        return (
            apgd_ce(threat, steps=20, large_radii=is_l1, **common),
            apgd_t(threat, steps=30, loss="difference", large_radii=is_l1, **common),
            square(threat, queries=1000, seed=seed),
            # for doubtful samples, see `reserved_of`; APGD from where Square ended
            apgd_t(threat, steps=30, loss="difference", **common),
            apgd_t(threat, steps=30, loss="difference", **common),
            fab_t(threat, n_target_classes=3, **common),
            square(threat, seed=seed + _OTHER_WINDOWS),  # than those that failed
        )
    return (
        apgd_ce(threat, restarts=5 if is_l1 else 1, large_radii=is_l1, **common),
        apgd_t(threat, n_target_classes=5 if is_l1 else 9, large_radii=is_l1, **common),
        fab_t(threat, **common),
        square(threat, seed=seed),
    )


@dataclass(frozen=True)
class Doubt:
    """Which samples, robust so far, an attack in reserve is for. ahead: those that Square came
    closer to breaking than the gradients, which may then be masked; of the others those that have
    less than `left` of their clean margin left; rough: of all those whose gradient says little of
    the loss within eps, see `fastadv.ensemble.linearity`."""

    ahead: bool = True
    left: float = 0.0
    rough: bool = False


def reserved_of(version: Version) -> tuple[Doubt, ...]:
    """For whom the last attacks are, one for each; none if all are for all samples. The first is
    for those alone that Square came closer to breaking."""
    if version != "fast":
        return ()
    near = Doubt(ahead=False, left=_NEAR, rough=True)
    return Doubt(), Doubt(ahead=False, left=_NEAREST), near, Doubt()


def fitted(attack: Attack, classes: int) -> Attack:
    """`attack` itself, or with the margin loss where `classes` leave its DLR loss undefined."""
    if isinstance(attack, AutoPGD) and attack.loss == "dlr":
        if classes < _DLR_CLASSES[attack.constructor]:
            # of two classes the only wrong one is the target: `apgd_dlr` has no loss to show
            targets = attack.n_target_classes or 1
            return replace(attack, constructor="apgd_t", n_target_classes=targets, loss="margin")
    return attack


def effort_of(attack: Attack) -> int:
    """What an attack that breaks nothing costs a sample, in passes; one backward counts as two."""
    a_step = 3 if attack.takes_gradients else 1
    return attack.steps * attack.restarts * max(1, attack.most_targets) * attack.passes * a_step


def name_of(attack: Attack) -> str:
    """The name that the authors' log gives an attack: "APGD-CE", "FAB-T", ..."""
    return attack.constructor.replace("_", "-").upper()
