"""Models as torch records them: scripted, traced, frozen, exported; of one small network."""

import warnings

import torch
from torch import nn


def network(mode: str = "eval") -> nn.Sequential:
    """With dropout and batch norm, whose statistics are not those of a new one."""
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5))
    net = nn.Sequential(nn.Flatten(), *normed, nn.Linear(16, 4))
    with torch.no_grad():
        net[2].running_mean.uniform_(-0.1, 0.1)
        net[2].running_var.uniform_(0.05, 0.15)
        net[5].bias -= net.eval()(images(32)).mean(0)
    return net.train(mode == "train")


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(1))


def data(n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    x = images(n)
    with torch.no_grad():
        return x, network()(x).argmax(1)


def recorded(how: str, net: nn.Module) -> nn.Module:
    """`net` in the mode that it is in. how: "script", "trace", "freeze", "export"."""
    x, _ = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated in some versions
        if how == "script":
            return torch.jit.script(net)
        if how == "trace":
            return torch.jit.trace(net, x, check_trace=False)
        if how == "freeze":
            return torch.jit.freeze(torch.jit.script(net))
        rows = torch.export.Dim("rows", min=1, max=4096)
        return torch.export.export(net, (x,), dynamic_shapes=({0: rows},)).module()
