"""Readers of small data sets: embedded digits, published MNIST and CIFAR-10 files."""

from fastadv.data.cifar10 import load_cifar10
from fastadv.data.digits import load_digits
from fastadv.data.images import to_unit_interval
from fastadv.data.mnist import load_mnist, read_idx

__all__ = ["load_cifar10", "load_digits", "load_mnist", "read_idx", "to_unit_interval"]
