"""What Square breaks alone is told of all samples at once, not of a block."""

import warnings

import torch
from torch import nn

import fastadv
from fastadv.evaluation import evaluate


class Masked(nn.Module):
    """A step function: no gradient leads anywhere, but every sample is near the step."""

    def forward(self, x):
        above = (x.flatten(1).mean(1) > 0.5).float() + 0 * x.sum()
        return torch.stack([0.5 - above, above - 0.5], 1)


def masked(first: str = "gradient"):
    threat = fastadv.Linf(0.1)
    square = fastadv.square(threat, queries=30)
    other = fastadv.bim(threat, steps=1)
    attacks = [square] if first == "square" else [other, square]
    return fastadv.autoattack(threat, version="custom", attacks=attacks)


def square_gains(near: int, far: int, attack) -> int | None:
    x = torch.cat([torch.full((near, 1, 5, 5), 0.52), torch.full((far, 1, 5, 5), 1.0)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = evaluate(Masked(), (x, torch.ones(len(x)).long()), attack, batch_size=64)
    said = [w.message.count for w in caught if getattr(w.message, "code", "") == "square_gains"]
    count = report.warnings.get("square_gains")
    assert said == ([] if count is None else [count])
    return count


def test_square_is_judged_on_all_samples_not_on_a_block():
    assert square_gains(3, 1097, masked()) == 3  # 0.27 %
    assert square_gains(2, 1098, masked()) is None  # 0.18 %, and 0.39 % of the first block
    assert square_gains(3, 7, masked(first="square")) is None
