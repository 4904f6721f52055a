"""Reference networks for examples, tests, benchmarks and training, with seeded initialisation."""

from fastadv.models.digits import DigitsNet, digits_net
from fastadv.models.fast_cifar import FastCifarNet, fast_cifar_net
from fastadv.models.mnist import MnistNet, mnist_net
from fastadv.models.mnist_conv import MnistConvNet, mnist_conv_net
from fastadv.models.preact_resnet import PreActResNet, preact_resnet18
from fastadv.models.registry import build, names
from fastadv.models.wide_residual import wide_resnet

__all__ = [
    "DigitsNet",
    "FastCifarNet",
    "MnistConvNet",
    "MnistNet",
    "PreActResNet",
    "build",
    "digits_net",
    "fast_cifar_net",
    "mnist_conv_net",
    "mnist_net",
    "names",
    "preact_resnet18",
    "wide_resnet",
]


def __dir__() -> list[str]:
    return sorted(__all__)
