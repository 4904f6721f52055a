"""A small convolutional network for the 8x8 digits."""

from torch import nn

from fastadv.models.arguments import require_positive
from fastadv.models.initialisation import build_seeded


class DigitsNet(nn.Sequential):
    """Two convolutions and two linear layers: (B, 1, 8, 8) to (B, classes) logits.

    width: channels of the first convolution; the second has twice as many. 38,282 parameters at
    width 16 and 10 classes. No normalisation layers: train and eval mode agree. Raises ValueError
    if width or classes is below 1.
    """

    def __init__(self, width: int = 16, *, classes: int = 10):
        require_positive(width=width, classes=classes)
        super().__init__(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )


def digits_net(seed: int = 0, *, classes: int = 10, width: int = 16) -> DigitsNet:
    """A freshly initialised `DigitsNet` on the CPU, a pure function of its arguments.

    Inputs as `fastadv.data.load_digits` gives them, in [0, 1]. The global generators are neither
    read nor written. Raises ValueError if width or classes is below 1.

    >>> digits_net(seed=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return build_seeded(lambda: DigitsNet(width, classes=classes), seed=seed)
