"""D: what a model takes beside x, `extra=`, goes with the samples."""

import copy

import pytest
import torch
import torch.nn.functional as F
from clamping_problems import INSIDE
from graphed_pair import Pair
from objective_problems import DOUBLE, THREAT, seeded
from torch import nn
from training_problems import METHODS, batches, largest_difference, sgd, train_batch

from fastadv import training
from fastadv.training import AWP, CleanMixing, GradAlign

TAKING = [name for name in METHODS if name != "YOPO"]


class Gated(nn.Module):
    """(B, 1, 8, 8) images, (B, 6) gates and (B,) shifts to (B, 5) logits; the input is clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.last = nn.Linear(6 * 16, 5)

    def forward(self, x, gates, shifts):
        seen = self.first(F.hardtanh(x, 0.0, 1.0)) * gates[:, :, None, None].to(x.dtype)
        return self.last(seen.tanh().flatten(1) + shifts[:, None])


class Bound(nn.Module):
    """The same of x alone, for one batch."""

    def __init__(self, net, extra):
        super().__init__()
        self.net, self.extra = net, extra

    def forward(self, x):
        return self.net(x, *self.extra)


def _gated(count: int, *, size: int = 16):
    """[(x, y, extra)], x with pixels at the bounds in every other sample only."""
    generator = torch.Generator().manual_seed(5)
    for x, y in batches(count, dtype=DOUBLE, size=size):
        x[::2] = 0.2 + 0.6 * x[::2]
        gates = torch.rand(size, 6, generator=generator) > 0.3
        yield x, y, (gates, torch.randn(size, dtype=DOUBLE, generator=generator))


@pytest.mark.filterwarnings("ignore::fastadv.diagnostics.AttackWarning")  # of the clamp
@pytest.mark.parametrize("modifiers", [(), (CleanMixing(0.4), GradAlign(), AWP(0.02))], ids=len)
@pytest.mark.parametrize("name", TAKING)
def test_d_extra_inputs_train_as_a_model_that_holds_them(name, modifiers):
    net = seeded(Gated)
    twin = copy.deepcopy(net)
    inside = INSIDE.get(name, {})
    step, held = (METHODS[name](THREAT, modifiers=modifiers, **inside) for _ in range(2))
    optimizers = sgd(net), sgd(twin)
    for x, y, extra in _gated(2):
        ours = train_batch(step, net, optimizers[0], x, y, extra=extra)
        theirs = train_batch(held, Bound(twin, extra), optimizers[1], x, y)
        assert torch.equal(torch.stack(ours), torch.stack(theirs))
    assert largest_difference(net, twin) == 0
    # a look at every other sample, with its extra inputs, or where they are held at all, finds it
    assert step._watch.inset == held._watch.inset > 0


@pytest.mark.filterwarnings("ignore::fastadv.diagnostics.AttackWarning")
@pytest.mark.parametrize("name", ["PGDAT", "FreeAT"])
def test_d_recorded_steps_read_the_extra_inputs_of_each_batch(tape, name):
    pair = Pair(lambda: METHODS[name](THREAT), net=seeded(Gated))
    for x, y, extra in _gated(6):
        pair.train([(x, y)], extra=extra)
    assert (tape.captured, pair.run.replays) == (1, 3)


@pytest.mark.filterwarnings("ignore::fastadv.diagnostics.AttackWarning")
def test_d_gradients_reach_what_an_extra_input_was_computed_from():
    ((x, y, (gates, shifts)),) = _gated(1)
    net, size = seeded(Gated), torch.tensor(0.5, dtype=DOUBLE, requires_grad=True)
    step = training.FastAT(THREAT)
    x_adv = step.craft(net, x, y, extra=(gates, size * shifts)).x_adv
    assert not x_adv.requires_grad and size.grad is None
    step.loss(net, x, y, extra=(gates, size * shifts)).backward()
    loss = F.cross_entropy(net(x_adv, gates, size * shifts), y)
    assert torch.equal(size.grad, torch.autograd.grad(loss, size)[0])
    free = training.FreeAT(THREAT, replays=2)
    with pytest.raises(ValueError, match="x, or an extra input, .* would get none: FreeAT makes"):
        next(free(net, x, y, extra=(gates, size * shifts)))


@pytest.mark.parametrize("name", TAKING)
def test_d_extra_inputs_that_do_not_fit_are_named(name):
    ((x, y, (gates, shifts)),) = _gated(1)
    net, step = seeded(Gated), METHODS[name](THREAT)
    with pytest.raises(TypeError, match=r"extra must be a tuple of tensors, .* extra=\(tensor,\)"):
        next(iter(step(net, x, y, extra=gates)))
    with pytest.raises(ValueError, match=r"extra\[1\] must have a row a sample, \(16, ...\)"):
        next(iter(step(net, x, y, extra=(gates, shifts[:3]))))
