"""Perturbations kept by sample, in 8 bits an element: warm starts for the next epoch."""

from typing import Any

import torch

_LEVELS = 127  # int8, symmetric: delta = level / 127 * eps


class PerturbationBank:
    """Warm starts: the perturbation that a sample ended with is where its next craft starts.

    size: number of samples, ids 0..size-1. shape: of one sample. Kept in units of eps, in 8 bits:
    an error of at most eps / 254 an element (50,000 CIFAR-10 images: 154 MB; fp32: 614 MB), and
    while eps grows (warm-up) starts grow along. A sample never seen starts at x. Augmentation is
    not undone: after a random crop a start belongs to another crop, as in the code of FGSM-PGI's
    authors.

    Example: `fastadv.training.FastAT(threat, bank=PerturbationBank(len(x), x.shape[1:]))`.
    Source: Zheng et al. 2020, arXiv:1912.11969 (ATTA); Jia et al. 2022, arXiv:2207.08859.
    """

    def __init__(
        self, size: int, shape: tuple[int, ...] | torch.Size, *, device: torch.device | str = "cpu"
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        self.levels: torch.Tensor = torch.zeros(size, *shape, dtype=torch.int8, device=device)

    def __repr__(self) -> str:
        size, *shape = self.levels.shape
        device = self.levels.device
        where = "" if device.type == "cpu" else f", device={str(device)!r}"
        return f"fastadv.training.PerturbationBank({size}, {tuple(shape)}{where})"

    def check_ids(self, ids: torch.Tensor) -> None:
        """Raises ValueError for a sample that the bank does not hold; synchronises."""
        size = len(self.levels)
        if bool(((ids < 0) | (ids >= size)).any()):
            raise ValueError(
                f"sample_ids must lie in [0, {size}), those of the bank; got {ids.tolist()}"
            )

    def get(
        self, ids: torch.Tensor, x: torch.Tensor, *, eps: float, bounds: tuple[float, float] | None
    ) -> torch.Tensor:
        """x + the perturbations of `ids`, clamped to bounds, (B, ...)."""
        if x.shape[1:] != self.levels.shape[1:]:
            raise ValueError(
                f"x must hold samples of {tuple(self.levels.shape[1:])}, those of the bank; got "
                f"{tuple(x.shape[1:])}"
            )
        delta = self.levels.index_select(0, ids).to(x.dtype).mul_(eps / _LEVELS)
        start = delta.add_(x)
        return start if bounds is None else start.clamp_(*bounds)

    def put(self, ids: torch.Tensor, x_adv: torch.Tensor, x: torch.Tensor, *, eps: float) -> None:
        """Keep x_adv - x for `ids`, rounded to the nearest of 255 levels in [-eps, eps]."""
        if eps == 0:
            return
        levels = (x_adv - x).mul_(_LEVELS / eps).round_().clamp_(-_LEVELS, _LEVELS)
        self.levels.index_copy_(0, ids, levels.to(torch.int8))

    def state_dict(self) -> dict[str, Any]:
        return {"levels": self.levels}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the bank of `state` is of another size."""
        levels = state["levels"]
        if levels.shape != self.levels.shape:
            raise ValueError(
                f"state holds a bank of {tuple(levels.shape)}; this one is "
                f"{tuple(self.levels.shape)}"
            )
        self.levels.copy_(levels)
