"""Textbook loops in plain PyTorch that every benchmark compares with."""

from benchmarks.reference.loops import mifgsm, pgd_first_success
from fastadv.textbook import fgsm, pgd

__all__ = ["fgsm", "mifgsm", "pgd", "pgd_first_success"]
