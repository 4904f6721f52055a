"""What a joint search knows of every sample, and how far it may still go."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastadv.attacks.call.result import AttackResult
from fastadv.engine import looks
from fastadv.ops import layout
from fastadv.threat_model import ThreatModel

_SHARE, _MOST, _LEAST = 0.1, 0.3, 1e-3  # of the distance, by which the next ball is smaller
_GROWTH, _SHRINKAGE = 1.5, 0.5  # of that share, after a success and a failure
_MASKED_SHARE = 0.5


class Clean(NamedTuple):
    """The model at x: (n,) margins max_{j != y} z_j - z_y, and predictions."""

    loss: torch.Tensor
    prediction: torch.Tensor


@dataclass
class Found:
    """(n,) tensors on the device of x, a row a sample.

    x_adv: (n, ...) the nearest adversarial example, x while there is none. distance: its own, inf
    while there is none, 0 for a sample that is wrong as it is. loss, prediction: the model's there.
    best_at: passes when it was found; step: steps at the first success; -1 if there was none.
    left: passes that the sample still has. share: of the distance, by which the next ball is
    smaller. failures: balls in which nothing was found. masked: where the first searches have found
    nothing. budget: passes that every sample had.
    """

    budget: int
    x_adv: torch.Tensor
    distance: torch.Tensor
    loss: torch.Tensor
    prediction: torch.Tensor
    best_at: torch.Tensor
    step: torch.Tensor
    left: torch.Tensor
    share: torch.Tensor
    failures: torch.Tensor
    masked: torch.Tensor

    @classmethod
    def of_clean(
        cls, x: torch.Tensor, threat: ThreatModel, labels: torch.Tensor, clean: Clean, budget: int
    ) -> "Found":
        """After one look at x."""
        wrong = clean.prediction != labels
        none = torch.full_like(labels, -1).masked_fill(wrong, 0)
        distance = threat.distance(x, x).masked_fill(~wrong, torch.inf)
        return cls(
            budget=budget,
            x_adv=x.clone(memory_format=torch.preserve_format),
            distance=distance,
            loss=clean.loss.clone(),
            prediction=clean.prediction.clone(),
            best_at=none,
            step=none.clone(),
            left=torch.full_like(labels, budget - 1).masked_fill(wrong, 0),
            share=torch.full_like(distance, _SHARE),
            failures=torch.zeros_like(labels),
            masked=torch.zeros_like(wrong),
        )

    @property
    def look(self) -> looks.Look:
        """How far the search is: of the passes of samples that need more, how many are made."""
        open_ = self.left > 0
        made = 1 - self.left[open_] / self.budget
        return looks.Look(len(open_), int((~open_).sum()), float(made.sum()))

    def enter_search(self, rows: torch.Tensor, result: AttackResult, passes: int) -> None:
        """Of `rows`, what a search from x has found, with so many passes a sample."""
        assert result.best_at is not None
        hit = result.success.nonzero()[:, 0]
        before = self.budget - 1 - self.left[rows[hit]]
        self.left[rows] -= passes
        self.enter(
            rows[hit],
            layout.gather_rows(result.x_adv, hit),
            result.distance[hit],
            loss=result.loss[hit],
            prediction=result.prediction[hit],
            best_at=before + result.best_at[hit],
            step=before // 2 + result.step[hit],
        )

    def mask(self, rows: torch.Tensor) -> None:
        """Note for which of `rows` the searches from x have found nothing."""
        lost = rows[self.distance[rows].isinf()]
        self.masked[lost] = True
        self.share[lost] = _MASKED_SHARE

    def enter(
        self,
        rows: torch.Tensor,
        x_adv: torch.Tensor,
        distance: torch.Tensor,
        *,
        loss: torch.Tensor,
        prediction: torch.Tensor,
        best_at: torch.Tensor,
        step: torch.Tensor,
    ) -> None:
        """Points of `rows` that the model misclassifies: kept where they are nearer; (k,) each."""
        is_first = rows[self.step[rows] < 0]
        self.step[is_first] = step[self.step[rows] < 0]
        nearer = distance < self.distance[rows]
        kept = rows[nearer]
        self.x_adv[kept] = layout.gather_rows(x_adv, nearer.nonzero()[:, 0])
        columns = dict(distance=distance, loss=loss, prediction=prediction, best_at=best_at)
        for name, values in columns.items():
            column = getattr(self, name)
            column[kept] = values[nearer].to(column.dtype)

    def finish_within(self, threat: ThreatModel) -> None:
        """No pass is left to samples whose example lies within the radius of `threat`."""
        eps = torch.as_tensor(threat.eps, dtype=self.distance.dtype, device=self.distance.device)
        self.left[self.distance <= eps] = 0

    def next_radius(self, rows: torch.Tensor, widest: float) -> torch.Tensor:
        """Of `rows`: a little less than the distance known, `widest` where none is."""
        nearest = self.distance[rows]
        known = nearest * (1 - self.share[rows])
        return torch.where(nearest.isinf(), torch.full_like(nearest, widest), known)

    def adapt(self, rows: torch.Tensor, won: torch.Tensor) -> None:
        """The next balls of `rows` are smaller by more where the last ones were won, by less
        elsewhere."""
        share = self.share[rows]
        most = torch.where(self.masked[rows], _MASKED_SHARE, _MOST)
        grown = torch.minimum(share * _GROWTH, most)
        self.share[rows] = torch.where(won, grown, (share * _SHRINKAGE).clamp(min=_LEAST))
        self.failures[rows] += (~won).long()

    def withdraw(
        self, rows: torch.Tensor, x: torch.Tensor, loss: torch.Tensor, prediction: torch.Tensor
    ) -> None:
        """Put x back where `rows`, (n,) bool, says; loss, prediction: the model's at x."""
        self.x_adv[rows] = x[rows]
        self.loss[rows], self.prediction[rows] = loss[rows], prediction[rows]
        self.best_at[rows] = -1
