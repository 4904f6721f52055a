"""Functions, partials and callable objects around a network leave it as it was, too."""

import functools

import pytest
import torch
from torch import nn

import fastadv


def _net() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))


def _call(net, x):
    return net(x)


class _Wrapper:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


_GLOBAL = _net()


def _through_a_global(x):
    return _GLOBAL(x)


@pytest.mark.parametrize("keep", ["first_success", "last"])
@pytest.mark.parametrize("kind", ["lambda", "partial", "object", "global", "normalized"])
def test_the_network_inside_is_evaluated_in_eval_mode_and_left_alone(kind, keep):
    net = _GLOBAL if kind == "global" else _net()
    model = {
        "lambda": lambda x: net(x),
        "partial": functools.partial(_call, net),
        "object": _Wrapper(net),
        "global": _through_a_global,
        "normalized": fastadv.Normalized(lambda x: net(x), [0.0] * 4, [1.0] * 4),
    }[kind]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x, y = torch.rand(8, 4), torch.randint(0, 3, (8,))
    result = fastadv.pgd(fastadv.Linf(0.1), keep=keep).run(model, x, y)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.training and all(m.training for m in net.modules())
    net.eval()
    assert torch.equal(net(result.x_adv).argmax(1), result.prediction)
    net.train()


def test_a_success_that_is_not_repeated_is_warned_of():
    def fickle(x):  # wrong whenever exactly six samples are asked together
        logits = torch.stack([x.sum(1), 2 - x.sum(1)], 1)
        return logits.flip(1) if len(x) == 6 else logits

    x = torch.rand(8, 2) * 0.5
    y = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])  # the first two are wrong from the beginning
    with pytest.warns(fastadv.AttackWarning, match="unconfirmed: 6 of 8"):
        result = fastadv.pgd(fastadv.Linf(0.01), steps=2).run(fickle, x, y)
    assert result.success.tolist() == [True, True] + [False] * 6


_ELSEWHERE = nn.Linear(4, 3, device="meta")


def test_a_module_elsewhere_that_a_function_also_names_is_no_obstacle():
    net = _net().eval()
    model = lambda x: net(x) if _ELSEWHERE is not None else x  # noqa: E731
    x, y = torch.rand(4, 4), torch.zeros(4, dtype=torch.long)
    expected = fastadv.pgd(fastadv.Linf(0.1)).run(net, x, y)
    assert torch.equal(fastadv.pgd(fastadv.Linf(0.1)).run(model, x, y).x_adv, expected.x_adv)
