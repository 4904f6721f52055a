"""Models that clamp their input in every way that users do, around one trained network."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

import fastadv
from fastadv import training
from fastadv.data import load_digits
from fastadv.models import digits_net

MEAN, STD = 0.3, 0.4
_LOW, _HIGH = (0 - MEAN) / STD, (1 - MEAN) / STD


class Behind(nn.Module):
    """net(function(x))."""

    def __init__(self, function, net: nn.Module) -> None:
        super().__init__()
        self.function, self.net = function, net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.function(x))


class Cropped(nn.Module):
    """The network without the outermost pixels, which are zero for it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(F.pad(x[..., 1:-1, 1:-1], (1, 1, 1, 1)))


def _tensor(value: float, x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=x.dtype)


# name -> (the clamp, under which rules the gradient at the bounds is lost). Half of it, as tensors
# leave it, is not: its sign is right
_FORMS = {
    "clamp": (lambda x: x.clamp(0, 1), ("new",)),
    "clip": (lambda x: torch.clip(x, 0, 1), ("new",)),
    "clamp_min, clamp_max": (lambda x: x.clamp_min(0).clamp_max(1), ("new",)),
    "clamp_": (lambda x: x.clone().clamp_(0, 1), ("new",)),
    "tensors": (lambda x: torch.clamp(x, _tensor(0.0, x), _tensor(1.0, x)), ()),
    "hardtanh": (lambda x: F.hardtanh(x, 0, 1), ("old", "new")),
    "min(max)": (lambda x: torch.min(torch.max(x, _tensor(0.0, x)), _tensor(1.0, x)), ()),
    "then normalised": (lambda x: ((x.clamp(0, 1) - MEAN) / STD) * STD + MEAN, ("new",)),
}
FORMS = (*_FORMS, "inside Normalized")


def clamping(name: str, net: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """(`net` behind a clamp, the rules under which it loses the gradient at the bounds)."""
    if name == "inside Normalized":
        inner = Behind(lambda z: z.clamp(_LOW, _HIGH) * STD + MEAN, net)
        return fastadv.Normalized(inner, (MEAN,), (STD,)), ("new",)
    function, lost = _FORMS[name]
    return Behind(function, net), lost


@functools.cache
def trained() -> nn.Module:
    """Three epochs of Fast-AT on the digits: about half of them are robust at eps 0.12."""
    net = digits_net(width=6)
    x, y = load_digits("train")
    step = training.FastAT(fastadv.Linf(0.12), eps_warmup=20)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        for index in torch.randperm(len(x), generator=generator).split(64):
            loss = step.loss(net, x[index], y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    optimizer.zero_grad()
    return net.eval()
