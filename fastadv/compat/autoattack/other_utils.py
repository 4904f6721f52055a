"""The authors' log and the norms that scripts import from there."""

import os

import torch

from fastadv.compat.autoattack.sub_attack import Norm


class Logger:
    """Prints a line and, with a log_path, appends it to that file."""

    def __init__(self, log_path: str | os.PathLike[str] | None) -> None:
        self.log_path = log_path

    def log(self, str_to_log: str) -> None:
        print(str_to_log)
        if self.log_path is not None:
            with open(self.log_path, "a") as file:
                file.write(str_to_log + "\n")


def L0_norm(x: torch.Tensor) -> torch.Tensor:
    """(B,) how many elements of each sample are not 0."""
    return (x != 0).flatten(1).sum(1)


def L1_norm(x: torch.Tensor, keepdim: bool = False) -> torch.Tensor:
    """(B,) ||x||_1 of each sample; with keepdim (B, 1, ...)."""
    return _kept(x.abs().flatten(1).sum(1), x, keepdim)


def L2_norm(x: torch.Tensor, keepdim: bool = False) -> torch.Tensor:
    """(B,) ||x||_2 of each sample; with keepdim (B, 1, ...)."""
    return _kept(x.square().flatten(1).sum(1).sqrt(), x, keepdim)


_LENGTHS = {"L1": L1_norm, "L2": L2_norm, "Linf": lambda x: x.abs().flatten(1).amax(1)}


def check_imgs(adv: torch.Tensor, x: torch.Tensor, norm: Norm) -> str:
    """Print and return the largest perturbation, the number of NaN and the range of adv."""
    largest = _LENGTHS[norm](adv - x).max()
    line = (
        f"max {norm} pert: {largest:.5f}, nan in imgs: {adv.isnan().sum()}, "
        f"max in imgs: {adv.max():.5f}, min in imgs: {adv.min():.5f}"
    )
    print(line)
    return line


def makedir(path: str | os.PathLike[str]) -> None:
    os.makedirs(path, exist_ok=True)


def _kept(values: torch.Tensor, x: torch.Tensor, keepdim: bool) -> torch.Tensor:
    return values.view(-1, *[1] * (x.ndim - 1)) if keepdim else values
