"""A model that counts what it is asked, and keeps the nearest wrong query of every sample."""

import bisect

import torch
from torch import nn

NORMS: dict[str, float] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
_MARKS = (25, 50, 100, 200, 300, 400, 600, 800, 1000, 1500, 2000, 4000)  # passes a sample


def distances(x: torch.Tensor, others: torch.Tensor, norm: str) -> torch.Tensor:
    """(n,) float64: of every row of x to the same row of others."""
    moved = x.detach().flatten(1).double() - others.detach().flatten(1).double()
    return torch.linalg.vector_norm(moved, NORMS[norm], dim=1)


def _into_box(x: torch.Tensor) -> torch.Tensor:
    """What is to be added: exactly 0 inside of it."""
    return x.clamp(0, 1) - x


class Counted(nn.Module):
    """`model`, to which queries come moved into [0, 1], though gradients as if they had not been: a
    clamp would lose those of pixels at a bound. x: (n, ...), y: (n,) right labels.

    passed: [rows, backward passes] of every call. nearest: (n,) float64, the distance of the
    nearest query that the model does not give the sample's label. A query belongs to the sample
    that it is nearest to in L2, so that an attack may order its batches as it likes. marks: passes
    a sample -> `nearest` at that time.
    """

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> None:
        super().__init__()
        self.model, self.x, self.y, self.norm = model, x, y, norm
        self.passed: list[list[int]] = []
        self.nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
        self.marks: dict[int, torch.Tensor] = {}
        self._done = 0
        self._flat = x.flatten(1)
        self._squares = self._flat.square().sum(1)
        self.train(model.training)  # foolbox warns of what is in training mode

    @property
    def forwards(self) -> float:
        """A sample."""
        return sum(rows for rows, _ in self.passed) / len(self.x)

    @property
    def backwards(self) -> float:
        """A sample."""
        return sum(rows * times for rows, times in self.passed) / len(self.x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        asked, call = x + _into_box(x.detach()), [len(x), 0]
        self.passed.append(call)
        self._done += len(x)
        if asked.requires_grad:
            asked.register_hook(lambda gradient: self._count_backward(gradient, call))
        logits = self.model(asked)
        with torch.no_grad():
            self._look(asked, logits.argmax(1))
        return logits

    def _count_backward(self, gradient: torch.Tensor, call: list[int]) -> None:
        if torch._C._functorch.is_legacy_batchedtensor(gradient):  # type: ignore[attr-defined]
            # of several classes at once, each of which counts: DeepFool then takes one by one
            raise RuntimeError("how many gradients come at once is not to be seen here")
        call[1] += 1
        self._done += call[0]

    def _look(self, asked: torch.Tensor, prediction: torch.Tensor) -> None:
        for mark in _MARKS[: bisect.bisect_right(_MARKS, self._done / len(self.x))]:
            self.marks.setdefault(mark, self.nearest.clone())
        # ||q - x||^2 without ||q||^2, which is the same for all x
        owner = (self._squares - 2 * asked.flatten(1).to(self._flat.dtype) @ self._flat.T).argmin(1)
        wrong = (prediction != self.y[owner]).nonzero()[:, 0]
        if len(wrong):
            owner = owner[wrong]
            there = distances(asked[wrong], self.x[owner], self.norm)
            self.nearest.scatter_reduce_(0, owner, there, "amin")
