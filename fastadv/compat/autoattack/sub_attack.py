"""What the authors' four attack classes share: their ball, their device, and a run of one alone."""

import time
from typing import Literal

import torch

import fastadv
from fastadv import diagnostics
from fastadv.attacks.auto_pgd.attack import Keep
from fastadv.isolation import Model, module_of
from fastadv.threat_model import ThreatModel

Norm = Literal["Linf", "L2", "L1"]
_BALLS = {"Linf": fastadv.Linf, "L2": fastadv.L2, "L1": fastadv.L1}
Device = torch.device | str | int | None


def threat_of(norm: Norm, eps: float | None) -> ThreatModel:
    """The ball of the authors' name for a norm, in [0, 1]; ValueError for another, or no radius."""
    if norm not in _BALLS:
        raise ValueError(f"norm must be one of {tuple(_BALLS)}; got {norm!r}")
    if eps is None:
        raise ValueError("eps must be given: the radius, in units of inputs in [0, 1]")
    return _BALLS[norm](eps)


def device_for(device: Device, model: Model, x: torch.Tensor) -> torch.device:
    """`device`, None for that of x; the model's own for a CUDA device where there is no CUDA."""
    if device is None:
        return x.device
    chosen = torch.device(device)
    if chosen.type != "cuda" or torch.cuda.is_available():
        return chosen
    return own_device(model, x)


def own_device(model: Model, x: torch.Tensor) -> torch.device:
    """The device of the model's first parameter; that of x for a model without any."""
    module = module_of(model)
    return x.device if module is None else next((p.device for p in module.parameters()), x.device)


def whole_seed(seed: float | None) -> int:
    """The seed as an integer; None for the time, in seconds as the authors take it."""
    return int(time.time() if seed is None else seed)


class SubAttack:
    """An attack with the authors' attributes, which count as they are when it is run."""

    norm: Norm
    eps: float | None
    seed: float | None
    device: Device

    def settings(self, *, keep: Keep, seed: int) -> fastadv.Attack:
        """The attack with the attributes as they are now; ValueError for those it cannot have."""
        raise NotImplementedError

    @property
    def target_model(self) -> Model:
        """The model that is attacked."""
        raise NotImplementedError

    def _attacked(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None,
        *,
        keep: Keep = "authors",
        x_init: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The adversarial examples on the attack's device, x itself where none was found."""
        model = self.target_model
        device = device_for(self.device, model, x)
        if y is not None and y.ndim == 0:  # one sample without its batch dimension
            x, y = x[None], y[None]
        with diagnostics.without("zero_radius", "rounded_input"):
            return self.settings(keep=keep, seed=whole_seed(self.seed))(
                model,
                x.to(device),
                None if y is None else y.to(device),
                x_init=None if x_init is None else x_init.to(device),
            )
