"""Normalisation layers while crafting: the statistics they use, and what they keep."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_problems import (
    METHODS,
    THREAT,
    batches,
    conv_net,
    sgd,
    trace_of,
    train_batch,
)

from fastadv import training


@pytest.mark.parametrize("bn", ["batch", "eval", "train"])
def test_batch_norm_while_crafting(bn):
    """The craft sees the statistics that its policy names; running ones move for "train" only."""
    net, ((x, y),) = conv_net(bn=True), batches(1)
    with torch.no_grad():
        net[1].running_mean.fill_(0.3)
        net[1].running_var.fill_(4.0)
    step = training.FastAT(THREAT, bn=bn)
    before = {name: b.clone() for name, b in net.named_buffers()}
    outputs = []
    handle = net[1].register_forward_hook(lambda module, args, out: outputs.append((args[0], out)))
    step.craft(net, x, y, x_init=x)
    handle.remove()
    ((hidden, out),) = outputs
    mean, variance = hidden.mean((0, 2, 3)), hidden.var((0, 2, 3), unbiased=False)
    if bn == "eval":
        mean, variance = torch.full((8,), 0.3), torch.full((8,), 4.0)
    expected = (hidden - mean[:, None, None]) / (variance[:, None, None] + net[1].eps).sqrt()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    moved = not torch.equal(net[1].running_mean, before["1.running_mean"])
    assert moved == (bn == "train")
    assert int(net[1].num_batches_tracked) == (bn == "train")
    if bn == "train":
        expected_mean = 0.9 * 0.3 + 0.1 * hidden.mean((0, 2, 3))
        torch.testing.assert_close(net[1].running_mean, expected_mean)


class _OwnNorm(nn.BatchNorm2d):
    """A user's subclass that updates its running statistics by itself, whatever its flags say."""

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.running_mean.lerp_(x.mean((0, 2, 3)), 0.5)
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.InstanceNorm2d(8, track_running_stats=True),
        lambda: _OwnNorm(8),
        lambda: nn.BatchNorm2d(8, momentum=None),
        lambda: nn.BatchNorm2d(8, track_running_stats=False),
        lambda: nn.SyncBatchNorm(8),
        lambda: nn.GroupNorm(2, 8),
    ],
    ids=["InstanceNorm", "subclass", "cumulative", "untracked", "SyncBatchNorm", "GroupNorm"],
)
@pytest.mark.parametrize("bn", ["batch", "eval"])
def test_no_normalisation_layer_keeps_atrace_of(norm, bn):
    net, ((x, y),) = conv_net(), batches(1)
    net[1] = norm()
    before = trace_of(net)
    METHODS["PGDAT"](THREAT, bn=bn).craft(net, x, y)
    assert trace_of(net) == before


@pytest.mark.parametrize("old_style", [False, True], ids=["parametrization", "hook"])
@pytest.mark.parametrize("bn", ["batch", "eval"])
def test_the_power_iteration_of_spectral_norm_is_put_back(old_style, bn):
    net, ((x, y),) = conv_net(), batches(1)
    wrap = nn.utils.spectral_norm if old_style else nn.utils.parametrizations.spectral_norm
    wrap(net[3])
    before = {name: b.clone() for name, b in net.named_buffers()}
    assert before  # u and v
    METHODS["PGDAT"](THREAT, bn=bn).craft(net, x, y)
    for name, b in net.named_buffers():
        assert torch.equal(b, before[name]), name
    with torch.no_grad():
        net(x)
    assert any(not torch.equal(b, before[name]) for name, b in net.named_buffers())  # it does move


def test_spectral_norm_trains_through_the_craft():
    net = conv_net()
    nn.utils.parametrizations.spectral_norm(net[3])
    step, optimizer = METHODS["PGDAT"](THREAT), sgd(net)
    losses = [train_batch(step, net, optimizer, x, y)[0] for x, y in batches(8)]
    assert all(p.grad is not None for p in net.parameters())
    assert torch.stack(losses).isfinite().all()
