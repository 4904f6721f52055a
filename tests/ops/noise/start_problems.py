"""What tests of random starts share: images, ids far apart, and the usual settings."""

import torch

DEFAULTS = dict(eps=0.25, seed=-77, draw=3, scale=0.1)


def images(shape, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def sample_ids(batch, device):
    return torch.tensor([5, -7, 2**40 + 3, 0, 1, 2**31, 9, -(2**63)][:batch], device=device)
