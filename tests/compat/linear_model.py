"""A linear model of two classes, whose attacks are known in closed form."""

import torch
from torch import nn

WEIGHT = torch.tensor([[0.0, 0.0, 0.0, 0.0], [-2.0, 3.0, 1.0, 0.0]])
LABELS = torch.zeros(2, dtype=torch.int64)


class Linear(nn.Module):
    """Two classes; the gradient of CE(y=0) has the signs of WEIGHT[1]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T.to(x.dtype)
