"""Threat models, attacks, targets and executions that a command line names."""

import inspect
from typing import Any

from fastadv.attacks import Attack
from fastadv.attacks.attack import constructors
from fastadv.cli.user_error import UserError
from fastadv.execution import Auto
from fastadv.threat_model import L1, L2, Linf, ThreatModel

ATTACKS = constructors()
EXECUTION = "auto: the fastest, measured first, as by fastadv tune."
_THREATS = {"linf": Linf, "l2": L2, "l1": L1}


def make_threat(norm: str, eps: float) -> ThreatModel:
    if norm not in _THREATS:
        raise UserError(f"--norm must be one of {', '.join(_THREATS)}; got {norm!r}")
    return _THREATS[norm](eps)


def make_attack(name: str, threat: ThreatModel, options: dict[str, Any]) -> Attack:
    """The attack of that name; options that are None are left to its defaults."""
    if name not in ATTACKS:
        raise UserError(f"--attack must be one of {', '.join(ATTACKS)}; got {name!r}")
    constructor = ATTACKS[name]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in inspect.signature(constructor).parameters:
            raise UserError(f"--{key.replace('_', '-')} does not apply to {name}")
    return constructor(threat, **given)


def make_target(text: str | None) -> int | str | None:
    """A class index, or one of the rules that `Attack.run` knows."""
    return int(text) if text is not None and text.isdecimal() else text


def make_execution(text: str | None) -> Auto | None:
    if text not in (None, "auto"):
        raise UserError(f"--execution must be auto; got {text!r}")
    return None if text is None else "auto"
