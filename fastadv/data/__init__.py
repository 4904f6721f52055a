"""Data sets: readers of digits, MNIST and CIFAR-10, and batches of them made on the device."""

from fastadv.data.cifar10 import load_cifar10
from fastadv.data.device_loader import DeviceLoader, StartedBatches
from fastadv.data.digits import load_digits
from fastadv.data.images import to_unit_interval
from fastadv.data.mnist import load_mnist, read_idx
from fastadv.data.order import epoch_order

__all__ = [
    "DeviceLoader",
    "StartedBatches",
    "epoch_order",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "read_idx",
    "to_unit_interval",
]


def __dir__() -> list[str]:
    return sorted(__all__)
