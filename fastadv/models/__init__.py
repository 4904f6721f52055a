"""Small reference networks for examples, tests and benchmarks, with seeded initialisation."""

from fastadv.models.digits import DigitsNet, digits_net
from fastadv.models.mnist import MnistNet, mnist_net

__all__ = ["DigitsNet", "MnistNet", "digits_net", "mnist_net"]
