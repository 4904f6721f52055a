"""The same training twice, eagerly and recorded, compared as bits."""

import copy

import torch
from torch import nn
from training_problems import conv_net, train_batch

from fastadv.training import graphed


def sgd(model: nn.Module, **more: object) -> torch.optim.SGD:
    given = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "fused": True, **more}
    return torch.optim.SGD(model.parameters(), **given)


class Pair:
    """The same training twice: the eager loop, and `graphed`."""

    def __init__(self, make, *, net=None, optimizer=sgd, **more) -> None:
        self.eager = conv_net(bn=True) if net is None else net
        self.net = copy.deepcopy(self.eager)
        self.eager_step, self.step = make(), make()
        self.eager_optimizer, self.optimizer = optimizer(self.eager), optimizer(self.net)
        self.run = graphed(self.step, self.optimizer, **more)

    def train(self, data, **more) -> None:
        """Both on each batch; losses are compared as bits."""
        for x, y in data:
            *_, eager = train_batch(self.eager_step, self.eager, self.eager_optimizer, x, y, **more)
            loss = self.run(self.net, x, y, **more)
            assert torch.equal(loss, eager) and not loss.requires_grad
        self.agree()

    def agree(self) -> None:
        mine, theirs = self.net.state_dict(), self.eager.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
        assert self.step.batches == self.eager_step.batches
        for name in ("train_loss", "craft_loss"):
            a, b = getattr(self.step, name, None), getattr(self.eager_step, name, None)
            assert a is None and b is None or torch.equal(a, b)
        assert all(p.grad is None for p in self.net.parameters())
