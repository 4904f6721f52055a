"""Recorded training steps against the eager loop on a GPU."""

import warnings

import pytest
import torch
from graphed_pair import Pair, sgd
from torch import nn
from training_problems import METHODS, THREAT, batches

from fastadv import training
from fastadv.diagnostics import ExecutionWarning
from fastadv.training import AWP


@pytest.fixture(autouse=True)
def needs_cuda():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def _mlp() -> nn.Module:
    """Matrix products and batch statistics: sums in one order, so that bits can be compared."""
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 5))
    return nn.Sequential(*layers).cuda().train()


def _sgd(net: nn.Module) -> torch.optim.SGD:
    return sgd(net, lr=0.125)  # the recorded step reads it as a float32


def _data(count: int, **more: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.cuda(), y.cuda()) for x, y in batches(count, **more)]


_SETTINGS = {
    "FastAT": {},
    "NFGSM": {},
    "PGDAT": {"modifiers": [AWP()]},
    "TRADES": {"precision": "bf16"},
    "MART": {},
    "FreeAT": {},
    "YOPO": {"first_layer": "1"},
}


@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_equal_the_eager_loop_bit_for_bit(name):
    pair = Pair(
        lambda: METHODS[name](THREAT, **_SETTINGS[name]),
        net=_mlp(),
        optimizer=_sgd,
        cuda_graph=True,
    )
    pair.train(_data(6))
    pair.train([*_data(3, seed=2), *_data(4, size=5)])
    assert pair.run.replays == 6 - 3 + 3 + 2


def test_adam_and_clipped_gradients_and_a_schedule():
    def optimizer(net):
        return torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True, capturable=True)

    pair = Pair(lambda: training.FastAT(THREAT), net=_mlp(), optimizer=optimizer, cuda_graph=True)
    for i, batch in enumerate(_data(8)):
        for o in (pair.eager_optimizer, pair.optimizer):
            o.param_groups[0]["lr"] = 2.0 ** -(5 + i)  # exact in float32
        pair.train([batch])
    assert pair.run.replays == 5


def test_nothing_waits_for_the_device_while_replaying():
    pair = Pair(
        lambda: training.PGDAT(THREAT, steps=2), net=_mlp(), optimizer=_sgd, cuda_graph=True
    )
    data = _data(6)
    pair.train(data[:5])  # checked, warmed twice, and the two replays that are compared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        loss = pair.run(pair.net, *data[5])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pair.run.replays == 3 and float(loss) > 0


class _Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = _mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * (2.0 if x.sum().item() > 0 else 1.0)


def test_a_model_that_waits_is_trained_eagerly():
    pair = Pair(lambda: training.FastAT(THREAT), net=_Asks(), optimizer=_sgd)
    with pytest.warns(ExecutionWarning, match="waits for the device"):
        pair.train(_data(6))
    assert pair.run.replays == 0
