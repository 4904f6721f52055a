"""Ensembles of attacks: AutoAttack and its protocol."""

from fastadv.ensemble.constructor import autoattack

__all__ = ["autoattack"]


def __dir__() -> list[str]:
    return sorted(__all__)
