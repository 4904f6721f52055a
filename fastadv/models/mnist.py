"""The MNIST network of the Fast-AT paper."""

from torch import nn

from fastadv.models.arguments import require_positive
from fastadv.models.initialisation import build_seeded
from fastadv.models.single_channel import SingleChannelConv2d


class MnistNet(nn.Sequential):
    """Two strided convolutions and two linear layers: (B, 1, 28, 28) to (B, classes) logits.

    166,406 parameters at 10 classes. The layers lie in one Sequential, as the authors' do, so that
    the state dicts of their checkpoints (keys 0.weight to 7.bias) load as they are. Raises
    ValueError if classes is below 1.

    Wong, Rice and Kolter 2020, Fast is better than free, arXiv:2001.03994, section 5.1; also the
    small MNIST network of Wong and Kolter 2018, arXiv:1711.00851.
    """

    def __init__(self, *, classes: int = 10):
        require_positive(classes=classes)
        super().__init__(
            SingleChannelConv2d(16, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )


def mnist_net(seed: int = 0, *, classes: int = 10) -> MnistNet:
    """A freshly initialised `MnistNet` on the CPU, a pure function of its arguments.

    Inputs in [0, 1], not normalised. The global generators are neither read nor written. Raises
    ValueError if classes is below 1.

    >>> mnist_net(seed=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return build_seeded(lambda: MnistNet(classes=classes), seed=seed)
