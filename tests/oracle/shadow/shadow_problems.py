"""Small networks, the float64 oracle, and search models built as an attack builds them."""

import contextlib
import copy

import torch
import torch.nn.functional as F
from torch import nn

import fastadv
from fastadv import models
from fastadv.isolation import isolated
from fastadv.oracle.shadow.search_model import search_model

_NOTHING = {
    "precision": "fp32",
    "channels_last": False,
    "fold_batchnorm": False,
    "compile": False,
}


@contextlib.contextmanager
def searching(model, x, **asked):
    """The search model of `model`, inside the isolation in which an attack uses it."""
    with isolated(model, device=x.device, seed=0):
        yield search_model(model, x=x, logits=model(x), **{**_NOTHING, **asked})


def input_gradient(forward, x, y, scale=1.0):
    """(logits, gradient of the summed cross-entropy) at x, as `Oracle` asks for them."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = forward(leaf)
        loss = F.cross_entropy(logits, y, reduction="sum") * scale
    (grad,) = torch.autograd.grad(loss, leaf)
    return logits.detach(), grad / scale


def in_float64(model, x, y):
    """The same of a float64 copy of `model` in eval mode."""
    exact = copy.deepcopy(model).double().eval()
    return input_gradient(exact, x.double(), y)


def relative(values, exact):
    """The largest error, of the largest exact value."""
    return float((values.double() - exact).abs().max() / exact.abs().max())


def labels(x, classes=5):
    return torch.arange(len(x)) % classes


def images(n=18, channels=3, size=8, seed=0):
    shape = (n, channels, size, size) if isinstance(size, int) else (n, channels, *size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Head(nn.Module):
    """Mean over positions, then a linear layer."""

    def __init__(self, inputs, classes=5):
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.linear(x.flatten(2).mean(2))


def lively(net, seed=0):
    """`net` in eval mode with weights, and BatchNorm statistics, that are far from trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.empty_like(p).normal_(generator=generator) / max(p[0].numel(), 4) ** 0.5)
        for m in net.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                if m.running_mean is not None:
                    m.running_mean.normal_(0, 0.3, generator=generator)
                    m.running_var.uniform_(0.3, 2, generator=generator)
                if m.affine:
                    m.weight.uniform_(0.5, 1.5, generator=generator)
                    m.bias.normal_(0, 0.3, generator=generator)
    return net.eval()


def conv_bn(**more):
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, **more),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, groups=3, **more),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            Head(6),
        )
    )


def one_conv():
    """The least that has a layer of every kind that a search model changes: compiled in no time."""
    return lively(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), Head(6))
    )


def normalized(net):
    return fastadv.Normalized(net, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)).eval()


def preact():
    return lively(models.preact_resnet.PreActResNet(stem=8, channels=(8, 16), blocks=1, classes=5))


def normalized_conv():
    return normalized(one_conv())


def normalized_preact():
    return normalized(preact())


def wide():
    return lively(models.wide_resnet(depth=10, width=1, classes=5))


def fast_cifar():
    return lively(models.fast_cifar_net(width=8, classes=5))


class Functional(nn.Module):
    """Parameters that functions use: no layer is a module."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(6, 3, 3, 3))
        self.gain = nn.Parameter(torch.empty(6, 1, 1))
        self.mixing = nn.Parameter(torch.empty(6, 6))
        self.outer = nn.Parameter(torch.empty(6, 5))

    def forward(self, x):
        hidden = torch.tanh(F.conv2d(x, self.kernel) * self.gain).mean((2, 3))
        hidden = torch.tanh(torch.einsum("bi,ij->bj", hidden, self.mixing))
        return hidden @ self.outer.t().t() * (1 + self.gain.mean())


def trace(model):
    """Everything about a module that a search could change, in comparable form."""
    return {
        "classes": [type(m) for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "identities": [id(t) for t in (*model.parameters(), *model.buffers())],
        "addresses": [t.data_ptr() for t in (*model.parameters(), *model.buffers())],
        "strides": [t.stride() for t in model.parameters()],
        "dtypes": [t.dtype for t in model.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "versions": [p._version for p in (*model.parameters(), *model.buffers())],
        "values": [t.tolist() for t in (*model.parameters(), *model.buffers())],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
    }
