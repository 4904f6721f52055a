"""Wide residual networks: the reference of the robustness leaderboards."""

from fastadv.models.arguments import require_positive
from fastadv.models.initialisation import build_seeded
from fastadv.models.preact_resnet import PreActResNet

_STEM = 16  # channels of the stem, and of the first group at width 1


def wide_resnet(
    seed: int = 0, *, classes: int = 10, depth: int = 28, width: int = 10, dropout: float = 0.0
) -> PreActResNet:
    """A freshly initialised WRN-depth-width on the CPU, a pure function of its arguments.

    (B, 3, 32, 32) pixels in [0, 1] to (B, classes) logits. depth: 6 n + 4 for n blocks in each of
    three groups. width: the groups have 16, 32 and 64 times as many channels. WRN-28-10 has
    36,479,194 parameters at 10 classes, WRN-34-10 has 46,160,474. dropout: between the
    convolutions of a block; above 0, train mode reads and writes torch's global generator, as
    nn.Dropout does; the constructor never does.

    He initialisation with biases 0, as TRADES and its successors start this network, whose learning
    rates and weight decays go with it; uniform instead of normal, with the same variance, six times
    that of torch's default. Raises ValueError for another depth, a width or classes below 1, or a
    dropout outside [0, 1).

    >>> wide_resnet(seed=1, depth=10, width=1).eval()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Zagoruyko and Komodakis 2016, Wide Residual Networks, arXiv:1605.07146, table 1.
    """
    require_positive(classes=classes, width=width)
    blocks, remainder = divmod(depth - 4, 6)
    if remainder or blocks < 1:
        raise ValueError(f"depth must be 6 n + 4 with n at least 1 (10, 16, 22, 28); got {depth}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1); got {dropout}.")
    channels = (_STEM * width, 2 * _STEM * width, 4 * _STEM * width)
    return build_seeded(
        lambda: PreActResNet(
            stem=_STEM, channels=channels, blocks=blocks, classes=classes, dropout=dropout
        ),
        seed=seed,
        initialisation="he",
    )
