"""What is to be attacked: samples, labels, targets, radii and start points."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from fastadv.ops import layout
from fastadv.region import Region

Extra = tuple[torch.Tensor, ...]  # what a model takes beside x, a row a sample


@dataclass(frozen=True)
class Work:
    """One row a sample; None where an attack does not need it.

    x, x_init: (n, ...). labels, targets, sample_ids: (n,) int64. reference: (n, C) clean
    probabilities. ranking: (n, T) int64, the classes to aim at, most likely first. eps, step_size:
    (n,) in the dtype that x is computed in. y: (n, ...) what an objective judges by, while labels
    are 0. extra: (n, ...) each, what the model takes beside x. region: where elements may go, None
    where all are alike; in units of its eps, if it has one, eps is 1.
    """

    x: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor | None
    reference: torch.Tensor | None
    ranking: torch.Tensor | None
    sample_ids: torch.Tensor
    eps: torch.Tensor
    step_size: torch.Tensor
    x_init: torch.Tensor | None
    y: torch.Tensor | None = None
    extra: Extra = ()
    region: Region | None = None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, samples: torch.Tensor) -> "Work":
        def pick(rows: Any) -> Any:
            if isinstance(rows, tuple):
                return tuple(map(pick, rows))
            if isinstance(rows, Region):
                return rows.take(samples)
            return None if rows is None else layout.gather_rows(rows, samples)

        return Work(**{name: pick(rows) for name, rows in vars(self).items()})

    def aimed(self, ranks: torch.Tensor) -> "Work":
        """This work with the target of rank `ranks` for each row, where targets are ranked."""
        if self.ranking is None:
            return self
        targets = self.ranking.gather(1, ranks.long()[:, None])[:, 0]
        return replace(self, targets=targets)


def spread(name: str, value: float | torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A float or (n,) tensor as one value a sample; ValueError for another length."""
    dtype = layout.compute_dtype(x)
    if isinstance(value, torch.Tensor):
        if value.shape not in (torch.Size(), x.shape[:1]):
            raise ValueError(
                f"{name} must be a float or one value a sample, ({len(x)},); got "
                f"{tuple(value.shape)}{_hint(name, value)}"
            )
        return value.to(x.device, dtype).expand(len(x)).contiguous()
    return torch.full((len(x),), value, dtype=dtype, device=x.device)


def _hint(name: str, value: torch.Tensor) -> str:
    return f". One value an element carries the batch axis: {name}[None]" if value.ndim == 1 else ""
