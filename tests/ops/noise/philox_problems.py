"""What tests of the draws share: every kind of draw, by its name, and keys far apart."""

import torch

from fastadv.kernels.noise import streams
from fastadv.ops.noise import philox

KINDS = ("words", "uniforms", "signs", "exponentials", "signed_exponentials", "normals")
IDS = (0, 1, -7, 2**31 + 5, 2**40 + 3, -(2**63), 2**63 - 1)


def eager(kind, seed, ids, draws, count, purpose=streams.USER):
    return getattr(philox, kind)(seed, ids, purpose, draws, count)


def keys(device):
    ids = torch.tensor(IDS, device=device)
    draws = torch.tensor([0, 1, 2**24 - 1, 5, 0, 7, 2], dtype=torch.int32, device=device)
    return ids, draws
