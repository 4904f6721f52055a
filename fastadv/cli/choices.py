"""Threat models, attacks, targets and executions that a command line names."""

import inspect
from typing import Any

from fastadv.attacks import Attack
from fastadv.attacks.attack import constructors, norms_of
from fastadv.cli.numbers import number
from fastadv.cli.user_error import UserError
from fastadv.elements import has_radius
from fastadv.execution import Auto
from fastadv.recipes import TrainedRun
from fastadv.sparse import L0
from fastadv.threat_model import L1, L2, Linf, ThreatModel

ATTACKS = constructors()
EXECUTION = "auto: the fastest, measured first, as by fastadv tune; default: as the options say."
FORMATS = ("auto", "npz", "pt", "mnist", "cifar10", "folder")
_THREATS = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


def norm_of(text: str) -> str:
    """linf, l2, l1 or l0, in any case: L2, Linf, L_inf, inf."""
    plain = text.lower().replace("_", "").replace("-", "")
    plain = "linf" if plain == "inf" else plain
    if plain not in _THREATS:
        raise UserError(f"--norm must be one of {', '.join(_THREATS)}; got {text!r}")
    return plain


def make_threat(norm: str, eps: float) -> ThreatModel:
    return _THREATS[norm_of(norm)](eps)


def make_threats(
    norm: str | None, eps: list[str] | None, run: TrainedRun | None
) -> list[ThreatModel]:
    """One for each --eps; what is left out is that of the run."""
    if eps:
        chosen = norm or ("linf" if run is None else run.recipe.norm)
        return [make_threat(chosen, _radius(text)) for text in eps]
    if run is None:
        raise UserError("--eps is needed: a radius in units of the input, such as 8/255 or 0.03")
    if norm is not None and norm_of(norm) != run.recipe.norm:
        raise UserError(f"--eps is needed with --norm {norm}: the run's is of {run.recipe.norm}")
    return [run.recipe.threat]


def _radius(text: str) -> float:
    if "," in text:
        several = " ".join(f"--eps {part}" for part in text.replace(" ", "").split(","))
        raise UserError(f"--eps takes one radius; evaluate draws a curve of several, {several}")
    radius = number("eps", text)
    if radius < 0:
        raise UserError(f"--eps must not be negative; got {text}")
    return radius


def make_attack(name: str, threat: ThreatModel, options: dict[str, Any]) -> Attack:
    """The attack of that name, in any case, with - or _; options that are None are left to its
    defaults."""
    name = name.lower().replace("-", "_")
    if name not in ATTACKS:
        raise UserError(f"--attack must be one of {', '.join(ATTACKS)}; got {name!r}")
    constructor = ATTACKS[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in inspect.signature(constructor).parameters:
            raise UserError(f"--{key.replace('_', '-')} does not apply to {name}")
    norms = norms_of(name)
    if threat.norm not in norms:
        raise UserError(f"--attack {name} takes --norm {' or '.join(norms)}; got {threat.norm}")
    if not has_radius(threat) and constructor(_THREATS[threat.norm](1.0)).needs_radius:
        raise UserError(
            f"--eps inf is for attacks that look for the nearest example, as minimum_norm and fmn: "
            f"{name} needs a radius"
        )
    return constructor(threat, **given)


def make_target(text: str | None) -> int | str | None:
    """A class index, or one of the rules that `Attack.run` knows."""
    return int(text) if text is not None and text.isdecimal() else text


def make_execution(text: str | None) -> Auto | None:
    if text not in (None, "auto"):
        raise UserError(f"--execution must be auto; got {text!r}")
    return None if text is None else "auto"
