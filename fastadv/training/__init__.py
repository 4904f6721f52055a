"""Adversarial training as objects that hand losses to the user's own loop."""

from fastadv.training.averaging import ema, swa
from fastadv.training.bank import PerturbationBank
from fastadv.training.fast import NFGSM, FastAT
from fastadv.training.free import FreeAT
from fastadv.training.graphed_step import GraphedStep, graphed
from fastadv.training.modifiers import AWP, CleanMixing, GradAlign
from fastadv.training.multistep import MART, PGDAT, TRADES
from fastadv.training.sentinel import Sentinel
from fastadv.training.step import CraftedStep
from fastadv.training.verdict import Check, Collapse, TrainingWarning
from fastadv.training.weight_loss import Crafted
from fastadv.training.yopo import YOPO

__all__ = [
    "AWP",
    "MART",
    "NFGSM",
    "PGDAT",
    "TRADES",
    "YOPO",
    "Check",
    "CleanMixing",
    "Collapse",
    "Crafted",
    "CraftedStep",
    "FastAT",
    "FreeAT",
    "GradAlign",
    "GraphedStep",
    "PerturbationBank",
    "Sentinel",
    "TrainingWarning",
    "ema",
    "graphed",
    "swa",
]


def __dir__() -> list[str]:
    return sorted(__all__)
