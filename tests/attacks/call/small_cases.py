"""Small models of any input shape, and PGD in four steps on them."""

import torch
from toy_models import Quadratic, threat_of

import fastadv
from fastadv.attacks import Attack

KEEPS = ("first_success", "best", "last")


def size_of(shape: tuple[int, ...]) -> int:
    return int(torch.tensor(shape).prod()) if shape else 1


def case_of(
    shape: tuple[int, ...], n: int = 7, dtype: torch.dtype = torch.float32, classes: int = 4
) -> tuple[Quadratic, torch.Tensor]:
    model = Quadratic(size_of(shape), classes, seed=3, dtype=dtype)
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(4)).to(dtype)
    return model, x


def attack_of(norm: str, keep: str = "first_success", **more) -> Attack:
    threat = more.pop("threat", None) or threat_of(norm, 2.0)
    options = dict(restarts=1 if keep == "last" else 2) | more
    return fastadv.pgd(threat, steps=4, keep=keep, **options)
