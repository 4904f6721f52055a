"""Linear models of two classes in float64, whose training steps have closed forms.

The margin of label 0 is m = w.x with w = W[0] - W[1]; the loss is log(1 + exp(-m)), its gradient in
x is -sigmoid(-m) * w, in W[0] -sigmoid(-m) * x, in W[1] the negative of that.
"""

import torch
from torch import nn

LR = 0.5
W = ((2.0, -3.0), (0.0, 0.0))
LABEL = torch.tensor([0])


def linear(rows: tuple[tuple[float, ...], ...] = W) -> nn.Linear:
    model = nn.Linear(len(rows[0]), len(rows), bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(rows, dtype=torch.float64))
    return model


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=LR)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def margin(x: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    weight = torch.tensor(W, dtype=torch.float64) if weight is None else weight
    return x @ (weight[0] - weight[1])


def weights_after_one_update_at(x_adv: torch.Tensor) -> torch.Tensor:
    push = LR * torch.sigmoid(-margin(x_adv)) * x_adv[0]
    return torch.tensor(W, dtype=torch.float64) + torch.stack([push, -push])


def assert_trained_on(model: nn.Linear, loss: torch.Tensor, x_adv: torch.Tensor) -> None:
    """One SGD update by the gradient at x_adv and nothing else; the loss that goes with it."""
    torch.testing.assert_close(loss, torch.log1p(torch.exp(-margin(x_adv)))[0])
    torch.testing.assert_close(model.weight.detach(), weights_after_one_update_at(x_adv))


def small_net() -> nn.Sequential:
    """A nonlinear network in float64."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net
