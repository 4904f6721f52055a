"""Attacks: slot algorithms, and the constructors that name them."""

from fastadv.attacks.attack import Attack
from fastadv.attacks.constructors import bim, fgsm, mifgsm, pgd, rfgsm
from fastadv.attacks.result import AttackResult

__all__ = ["Attack", "AttackResult", "bim", "fgsm", "mifgsm", "pgd", "rfgsm"]
