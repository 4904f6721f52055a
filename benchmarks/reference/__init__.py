"""Textbook loops in plain PyTorch that every benchmark compares with."""

from benchmarks.reference.loops import mifgsm, pgd_first_success
from benchmarks.reference.training import fast_step, free_replays, nfgsm_step, pgd_step
from benchmarks.reference.training_regularised import mart_step, trades_step
from benchmarks.reference.training_run import (
    PerSampleImages,
    interpolated_lr,
    preloaded,
    train,
)
from benchmarks.reference.training_yopo import yopo_step
from fastadv.textbook import fgsm, pgd

__all__ = [
    "PerSampleImages",
    "fast_step",
    "fgsm",
    "free_replays",
    "interpolated_lr",
    "mart_step",
    "mifgsm",
    "nfgsm_step",
    "pgd",
    "pgd_first_success",
    "pgd_step",
    "preloaded",
    "trades_step",
    "train",
    "yopo_step",
]
