"""A model that is easily fooled, images for it, and what a call warns of."""

import warnings

import torch

import fastadv


def warned(call):
    """(what was returned, (code, count) of every AttackWarning); other warnings fail."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    messages = [w.message for w in caught]
    assert all(isinstance(message, fastadv.AttackWarning) for message in messages), messages
    return result, [(message.code, message.count) for message in messages]


def flat(x: torch.Tensor) -> torch.Tensor:
    """Three classes of images of any size, some of which are easily fooled."""
    rows = x.flatten(1)
    thirds = rows.tensor_split(3, dim=1)
    return torch.stack([third.sum(1) for third in thirds], 1)


def images(size: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, size, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    return x, flat(x).argmax(1)
