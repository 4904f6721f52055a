"""What is given where an attack is expected: taken as it is, or refused in words."""

from collections.abc import Iterable
from typing import Any

from fastadv.attacks.attack import constructors
from fastadv.attacks.streaming import StreamingAttack
from fastadv.threat_model import ThreatModel

_EXAMPLE = "such as fastadv.pgd(fastadv.Linf(8 / 255))"


def check_attack(attack: object, *needs: str, name: str = "attack") -> None:
    """Raises TypeError for what is no attack or ensemble; needs: attributes it must have.

    A stream is refused, as samples are numbered here, and so are classes, the functions that make
    attacks, names, threat models and the objects of other libraries: the error says what came and
    what to give in its place.
    """
    is_stream = isinstance(attack, StreamingAttack)
    if is_stream or isinstance(attack, type) or not callable(getattr(attack, "run", None)):
        raise _wrong(name, "an attack or an ensemble", _told(attack))
    if not all(hasattr(attack, one) for one in needs):
        raise _wrong(name, "an attack or an ensemble of fastadv", _told(attack))


def checked_attacks(
    attacks: object, threat: ThreatModel, *, seed: int, name: str = "attacks"
) -> tuple[Any, ...]:
    """The attacks of an ensemble, as a tuple; a name, as "apgd-ce", is that attack at its defaults.

    Raises TypeError where one of them is no attack, ValueError for a name that none has.
    """
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
        told = _told(attacks) + (", or a list of names" if isinstance(attacks, str) else "")
        raise TypeError(
            f"{name} must be a list of attacks or names, as in {name}=[fastadv.pgd(threat)] or "
            f'{name}=["apgd-ce"]; got {told}'
        )
    chosen = tuple(
        _named(f"{name}[{index}]", attack, threat, seed) if isinstance(attack, str) else attack
        for index, attack in enumerate(attacks)
    )
    for index, attack in enumerate(chosen):
        is_setting = callable(getattr(attack, "algorithm", None)) and hasattr(attack, "threat")
        if isinstance(attack, type) or not is_setting:
            told = _told(attack)
            if hasattr(attack, "attacks"):
                told = f"an ensemble, {attack!r}: give its attacks, [*ensemble.attacks]"
            raise _wrong(f"{name}[{index}]", "an attack of fastadv", told)
    return chosen


def _named(name: str, text: str, threat: ThreatModel, seed: int) -> Any:
    known = constructors()
    constructor = known.get(text.lower().replace("-", "_"))
    if constructor is None:
        raise ValueError(f"{name} must be an attack or one of {', '.join(known)}; got {text!r}")
    return constructor(threat, seed=seed)


def _wrong(name: str, wanted: str, told: str) -> TypeError:
    return TypeError(f"{name} must be {wanted}, {_EXAMPLE}; got {told}")


def _told(value: Any) -> str:
    """What came and, where it is known, what was meant."""
    if isinstance(value, StreamingAttack):
        return (
            f"{value!r}, which counts the samples that it is called with, while they are numbered "
            f"here: give the attack that it was made of, {value.attack!r}"
        )
    if isinstance(value, type):
        return f"the class {value.__qualname__}: give an attack, not its class"
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"{value!r}, a name: give the attack itself"
    if ThreatModel in type(value).__mro__:
        return f"{value!r}, a threat model: give an attack with it, fastadv.pgd({value!r})"
    if isinstance(value, list | tuple):
        return (
            f"a {type(value).__name__} of {len(value)}: give one, or an ensemble of them, "
            "fastadv.autoattack(threat, version='custom', attacks=[...])"
        )
    name = getattr(value, "__qualname__", None)
    if name is not None and callable(value):
        is_ours = value.__module__.startswith("fastadv.")
        hint = f": call it, fastadv.{name}(threat)" if is_ours else ""
        return f"the function {name}{hint}"
    if callable(getattr(value, "algorithm", None)):
        return f"{value!r} alone"
    kind = type(value)
    return f"{kind.__qualname__} of {kind.__module__}"
