"""The reference networks by name, as the command line and the benchmarks ask for them."""

from typing import Literal, Protocol

from torch import nn

from fastadv.models.digits import digits_net
from fastadv.models.fast_cifar import fast_cifar_net
from fastadv.models.mnist import mnist_net
from fastadv.models.mnist_conv import mnist_conv_net
from fastadv.models.preact_resnet import preact_resnet18
from fastadv.models.wide_residual import wide_resnet

ModelName = Literal["digits", "mnist", "mnist-conv", "preact-resnet18", "wrn-28-10", "fast-cifar"]


class _Constructor(Protocol):
    def __call__(self, seed: int = 0, *, classes: int = 10) -> nn.Module: ...


_CONSTRUCTORS: dict[ModelName, _Constructor] = {
    "digits": digits_net,
    "mnist": mnist_net,
    "mnist-conv": mnist_conv_net,
    "preact-resnet18": preact_resnet18,
    "wrn-28-10": wide_resnet,  # its defaults
    "fast-cifar": fast_cifar_net,
}


def names() -> tuple[ModelName, ...]:
    """The names that `build` knows, small networks of each data set first.

    >>> names()[0]
    'digits'
    """
    return tuple(_CONSTRUCTORS)


def build(name: ModelName, *, seed: int = 0, classes: int = 10) -> nn.Module:
    """The reference network of that name, freshly initialised on the CPU, at default sizes.

    "digits": (B, 1, 8, 8); "mnist" and "mnist-conv": (B, 1, 28, 28); the others: (B, 3, 32, 32);
    pixels in [0, 1] to (B, classes) logits. A pure function of its arguments; the global
    generators are neither read nor written. Raises ValueError for a name that `names` does not
    list, or classes below 1.

    >>> build("mnist", seed=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if name not in _CONSTRUCTORS:
        raise ValueError(f"name must be one of {', '.join(names())}; got {name!r}.")
    return _CONSTRUCTORS[name](seed, classes=classes)
