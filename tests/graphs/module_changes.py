"""A small network, and changes of what a recorded step of it has baked in."""

import torch
from torch import nn


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten())


def _replace(net: nn.Sequential) -> None:
    net[0] = nn.Conv2d(1, 2, 3)


def _assign(net: nn.Sequential) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


CHANGES = {
    "mode": lambda net: net[1].eval(),
    "a plain attribute": lambda net: setattr(net[2], "p", 0.1),
    "a tuple": lambda net: setattr(net[0], "padding", (1, 1)),
    "a plain tensor": lambda net: setattr(net, "scale", torch.ones(1)),
    "dtype": lambda net: net.double(),
    "layout": lambda net: net.to(memory_format=torch.channels_last),
    "a frozen weight": lambda net: net[0].weight.requires_grad_(False),
    "a submodule": _replace,
    "tensors assigned": _assign,
    "a hook": lambda net: net[0].register_forward_hook(lambda *a: None),
    "a buffer gone": lambda net: setattr(net[1], "running_mean", None),
}
