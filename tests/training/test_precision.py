"""Lower precision: losses in float32, craft gradients that half precision does not round away."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_problems import CRAFTED, METHODS, THREAT, batches, conv_net, sgd, train_batch

from fastadv import training
from fastadv.training import craft


class _Logits(nn.Module):
    """A model whose logits are of `dtype`, whatever autocast is."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, x):
        return self.net(x).to(self.dtype)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_float32_whatever_the_precision_of_the_passes(name, precision):
    net, ((x, y),) = conv_net(), batches(1)
    dtypes = set()
    net[7].register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    step = METHODS[name](THREAT, precision=precision)
    for loss in step(net, x, y):
        assert loss.dtype == torch.float32
        loss.backward()
    assert dtypes == {craft.PRECISIONS[precision]}
    assert step.train_loss.dtype == torch.float32
    if name in CRAFTED:
        assert step.craft_loss.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_a_model_that_returns_half_logits_is_trained_on_a_float32_loss(name, dtype):
    """The loss is that of the rounded logits, exactly: not a loss rounded to their precision."""
    net, ((x, y),) = conv_net(), batches(1)
    step = METHODS[name](THREAT, **({"first_layer": "net.0"} if name == "YOPO" else {}))
    loss = next(iter(step(_Logits(net, dtype), x, y)))
    assert loss.dtype == torch.float32 and loss != loss.to(dtype).float()
    if name == "FreeAT":
        assert torch.equal(loss, F.cross_entropy(net(x).to(dtype).float(), y))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_autocast_of_the_step_and_around_it_are_the_same(name, precision):
    (x, y), (x2, y2) = batches(2)
    ours, around = conv_net(), conv_net()
    step, other = METHODS[name](THREAT, precision=precision), METHODS[name](THREAT)
    optimizer, other_optimizer = sgd(ours), sgd(around)
    for inputs, labels in ((x, y), (x2, y2)):
        train_batch(step, ours, optimizer, inputs, labels)
        iterator = iter(other(around, inputs, labels))
        while True:
            with torch.autocast("cpu", dtype=craft.PRECISIONS[precision]):
                loss = next(iterator, None)
            if loss is None:
                break
            other_optimizer.zero_grad()
            loss.backward()
            other_optimizer.step()
    for p, q in zip(ours.parameters(), around.parameters(), strict=True):
        assert torch.equal(p, q)


def test_fp32_keeps_a_surrounding_autocast_out():
    net, ((x, y),) = conv_net(), batches(1)
    step = METHODS["PGDAT"](THREAT, precision="fp32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = step.loss(net, x, y)
    assert torch.equal(inside, METHODS["PGDAT"](THREAT).loss(net, x, y))


@pytest.mark.parametrize("name", METHODS)
def test_bf16_training_stays_near_fp32_training(name):
    net = conv_net()
    half = copy.deepcopy(net)
    step, half_step = METHODS[name](THREAT), METHODS[name](THREAT, precision="bf16")
    optimizer, half_optimizer = sgd(net), sgd(half)
    for x, y in batches(5):
        loss = train_batch(step, net, optimizer, x, y)[-1]
        half_loss = train_batch(half_step, half, half_optimizer, x, y)[-1]
        # 8 bits of mantissa: each logit is off by 0.4 %
        torch.testing.assert_close(half_loss, loss, rtol=0.03, atol=0.0)
        assert half_loss != loss


def _zero_fraction(grad):
    return float((grad == 0).float().mean())


def _clear(x, y):
    """The same images with a row of ones for the class: nearly all will be right."""
    x = 0.5 * x
    x[torch.arange(len(x)), 0, y + 1] = 1.0
    return x


def test_the_summed_and_scaled_craft_loss_keeps_what_an_fp16_mean_rounds_to_zero():
    exact = conv_net()
    optimizer = torch.optim.Adam(exact.parameters(), lr=4e-3)
    for x, y in batches(60, size=64):
        optimizer.zero_grad()
        F.cross_entropy(exact(_clear(x, y)), y).backward()
        optimizer.step()
    ((x, y),) = batches(1, size=256, seed=9)
    x = _clear(x, y)
    half = copy.deepcopy(exact).half()

    def model(x):
        return half(x.half())

    assert (model(x).argmax(1) == y).float().mean() > 0.95
    assert model(x).float().softmax(1).amax(1).median() > 0.99  # confident

    leaf = x.clone().requires_grad_()
    (exact_grad,) = torch.autograd.grad(F.cross_entropy(exact(leaf), y, reduction="sum"), leaf)
    leaf = x.clone().requires_grad_()
    (mean_grad,) = torch.autograd.grad(F.cross_entropy(model(leaf).float(), y), leaf)
    asked = []

    class Spied(type(THREAT)):
        def step_(self, x_adv, grad, x, **more):
            asked.append(grad.clone())
            return super().step_(x_adv, grad, x, **more)

    training.FastAT(Spied(0.1)).craft(model, x, y, x_init=x)
    (ours,) = asked
    lost = {"fp32": exact_grad, "mean": mean_grad, "ours": ours}
    lost = {name: _zero_fraction(grad) for name, grad in lost.items()}
    print(f"fraction of exact zeros: {lost}")  # fp32 0, mean 0.76, ours 0
    assert lost["fp32"] == 0 and lost["mean"] > 0.5 and lost["ours"] < 0.01
    signs = ours.sign() == exact_grad.sign()
    assert signs.float().mean() > 0.95
