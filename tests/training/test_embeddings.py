"""D: training on embeddings: what x was computed from is trained along."""

import copy

import pytest
import torch
import torch.nn.functional as F
from clamping_problems import INSIDE
from graphed_pair import Pair
from objective_problems import DOUBLE, EPS, Sequences, plain_objective, plain_pgd, seeded
from torch import nn
from training_problems import METHODS, uniform

import fastadv
from fastadv import training
from fastadv.training import AWP, CleanMixing

THREAT = fastadv.Linf(EPS, bounds=None)
UNBOUNDED = (-torch.inf, torch.inf)
ATTACHED = ("FastAT", "NFGSM", "PGDAT", "TRADES", "MART")


class Tagger(nn.Module):
    """Tokens to logits: `table` gives the embeddings that `body` reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)
        self.body = Sequences()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def _tokens(count: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(11, (count, 12, 5), generator=generator)
    return list(zip(tokens, torch.randint(3, (count, 12), generator=generator), strict=True))


def _grads(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters()}


@pytest.mark.parametrize("loss", ["ce", plain_objective()], ids=["named", "objective"])
def test_d_the_gradient_of_the_table_is_that_of_a_plain_loop(loss):
    net = seeded(Tagger)
    plain = copy.deepcopy(net)
    step = training.PGDAT(THREAT, steps=3, step_size=0.05, loss=loss)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (net, plain)]
    for i, (tokens, y) in enumerate(_tokens(4)):
        x = net.table(tokens)
        noise = uniform(x.detach(), EPS, seed=i)
        optimizers[0].zero_grad()
        step.loss(net.body, x, y, x_init=x.detach() + noise).backward()
        optimizers[0].step()

        x = plain.table(tokens)
        clean, ascent = x.detach(), {"steps": 3, "step_size": 0.05, "bounds": UNBOUNDED}
        x_adv = plain_pgd(plain.body, clean, y, F.cross_entropy, noise, **ascent)
        optimizers[1].zero_grad()
        F.cross_entropy(plain.body(x + (x_adv - x).detach()), y).backward()
        optimizers[1].step()
        for (name, ours), theirs in zip(_grads(net).items(), _grads(plain).values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, msg=name)
        assert net.table.weight.grad.abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore::fastadv.diagnostics.AttackWarning")  # of what was rounded
@pytest.mark.parametrize("name", ["FastAT", "TRADES"])
def test_d_an_x_beyond_its_bounds_by_rounding_is_seen_inside_with_or_without_a_gradient(name):
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    x = net.table(tokens)
    low, high = x.detach().min().item(), x.detach().max().item() - 1e-7
    threat = fastadv.Linf(EPS, bounds=(low, high))
    losses, seen = [], []
    net.body.register_forward_pre_hook(lambda module, args: seen.append(args[0].max().item()))
    for given in (x, x.detach()):
        losses.append(METHODS[name](threat, **INSIDE.get(name, {})).loss(net.body, given, y))
    assert torch.equal(*losses) and max(seen) <= high + (0.01 if name == "TRADES" else 0)


@pytest.mark.parametrize("name", ATTACHED)
def test_d_the_loss_and_the_weights_gradients_are_the_bits_of_a_detached_x(name):
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    seen = []
    for detached in (False, True):
        net.zero_grad()
        x = net.table(tokens)
        loss = METHODS[name](THREAT).loss(net.body, x.detach() if detached else x, y)
        loss.backward()
        seen.append((loss.detach(), _grads(net.body)))
        assert (net.table.weight.grad is None) == detached
    assert torch.equal(seen[0][0], seen[1][0])
    for weight, grad in seen[0][1].items():
        assert torch.equal(grad, seen[1][1][weight]), weight


def test_d_the_clean_part_of_a_loss_reaches_the_table_too():
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    step = training.FastAT(THREAT, modifiers=[CleanMixing(1.0)])  # nothing but CE(f(x), y)
    step.loss(net.body, net.table(tokens), y).backward()
    ours = net.table.weight.grad.clone()
    net.zero_grad()
    F.cross_entropy(net.body(net.table(tokens)), y).backward()
    torch.testing.assert_close(ours, net.table.weight.grad, rtol=0, atol=1e-15)


def test_d_perturbed_weights_leave_the_graph_of_the_embeddings_alone():
    """The table is a parameter of the model that AWP differentiates before the real pass."""
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    step = training.FastAT(THREAT, modifiers=[AWP(0.01)])
    step.loss(net, net.table(tokens), y).backward()
    below = training.FastAT(THREAT, modifiers=[AWP(0.01)])
    whole = net.table.weight.grad.clone()
    net.zero_grad()
    below.loss(net.body, net.table(tokens), y).backward()
    assert torch.equal(whole, net.table.weight.grad) and whole.abs().max() > 1e-3


def test_d_a_craft_alone_reaches_x_and_where_x_needs_nothing_neither_does_it():
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    step, x = training.FastAT(THREAT), net.table(tokens)
    batch = step.craft(net.body, x, y)
    for rows in (batch.x, batch.x_adv):
        (grad,) = torch.autograd.grad(rows.sum(), x, retain_graph=True)
        assert torch.equal(grad, torch.ones_like(x))
    assert torch.equal(batch.x, x)
    plain = step.craft(net.body, x.detach(), y)
    assert torch.equal(plain.x_adv, batch.x_adv) and not plain.x_adv.requires_grad


def test_d_a_free_step_of_one_replay_trains_the_table_and_more_are_refused():
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    for loss in training.FreeAT(THREAT, replays=1)(net.body, net.table(tokens), y):
        loss.backward()
    ours = net.table.weight.grad.clone()
    net.zero_grad()
    F.cross_entropy(net.body(net.table(tokens)), y).backward()  # delta starts at zero
    torch.testing.assert_close(ours, net.table.weight.grad, rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match=r"\(an embedding\?\), which would get none: FreeAT makes"):
        next(training.FreeAT(THREAT, replays=2)(net.body, net.table(tokens), y))


def test_d_a_leaf_x_collects_the_gradients_of_all_replays():
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    x = net.table(tokens).detach().requires_grad_()
    for loss in training.FreeAT(THREAT, replays=2)(net.body, x, y):
        (loss / 2).backward()
    assert x.grad.dtype == DOUBLE and x.grad.abs().max() > 1e-4


def test_d_steps_that_would_leave_the_table_untrained_are_refused(tape):
    net, ((tokens, y),) = seeded(Tagger), _tokens()
    x = net.table(tokens)
    with pytest.raises(ValueError, match=r"would get none: YOPO gives gradients of the model"):
        training.YOPO(THREAT, first_layer="lstm").loss(net.body, x, y)
    pair = Pair(lambda: training.FastAT(THREAT), net=net.body)
    with pytest.raises(ValueError, match=r"a recorded step begins at x. .* or detach it"):
        pair.run(pair.net, x, y)
    leaf = x.detach().requires_grad_()
    pair.run(pair.net, leaf, y)
    assert leaf.grad is None
