"""Crafting in half precision casts each weight once a batch, to the same bits."""

import copy

import pytest
import torch
from graphs.tape import Tape
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from training_problems import CLASSES, METHODS, THREAT, batches, conv_net, sgd

from benchmarks.training.work_units import count_units
from fastadv import training
from fastadv.training import casts, graphed
from fastadv.training import graphed_step as recording


class _Casts(TorchDispatchMode):
    """How often a float32 weight is made one of half precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].dtype == torch.float32:
            self.made += args[0].untyped_storage().data_ptr() in self.weights
        return func(*args, **(kwargs or {}))


def _net() -> nn.Sequential:
    """Four layers, eight tensors that autocast casts; two of the norm, which it does not."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, CLASSES)),
    )


def _made(step, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Of the second batch: checks are done."""
    step.loss(model, *batches(1, seed=5)[0]).backward()
    model.zero_grad()
    counted = _Casts(model)
    with counted:
        step.loss(model, x, y).backward()
    return counted.made


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pgd_10_casts_eight_weights_sixteen_times_a_batch_where_it_were_88(precision, monkeypatch):
    made, grads = [], []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(casts, "_weights", lambda model: [])
        net = _net()
        made.append(
            _made(training.PGDAT(THREAT, steps=10, precision=precision), net, *batches(1)[0])
        )
        grads.append([p.grad for p in net.parameters()])
    assert made == [8 * 2, 8 * 11]
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("around", [False, True], ids=["of the step", "around it"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_same_bits_and_casts_no_more(name, precision, around, monkeypatch):
    outcomes, made = [], []
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(casts, "_weights", lambda model: [])
        net = _net()
        optimizer = sgd(net)
        step = METHODS[name](THREAT, precision=None if around else precision)
        counted, losses = _Casts(net), []
        for x, y in batches(2):
            # one context around all: what it keeps is older than the weights after a step
            with torch.autocast("cpu", dtype=dtype, enabled=around), counted:
                for loss in step(net, x, y):
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.detach())
                    torch.clear_autocast_cache()
            assert all(p.requires_grad for p in net.parameters())
        outcomes.append([*losses, *net.state_dict().values()])
        made.append(counted.made)
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b)
    assert made[0] <= made[1] and (made[0] < made[1]) == (
        name not in ("FastAT", "NFGSM", "FreeAT", "YOPO")
    )


def test_a_cast_that_was_made_without_gradients_cuts_no_later_pass_off():
    """TRADES' clean probabilities come first, under no_grad."""
    net, ((x, y),) = _net(), batches(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        training.TRADES(THREAT, steps=2).craft(net, x, y)
        loss = nn.functional.cross_entropy(net(x).float(), y)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_weights_that_were_changed_inside_a_surrounding_autocast_are_cast_anew():
    net, ((x, y),) = _net(), batches(1)
    fresh = training.PGDAT(THREAT, precision="bf16")
    step = training.PGDAT(THREAT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1.5)
        crafted = step.craft(net, x, y).x_adv
    assert torch.equal(crafted, fresh.craft(net, x, y).x_adv)


def test_no_weight_gradient_is_computed_while_crafting():
    step, net = training.PGDAT(THREAT, steps=3, precision="bf16"), _net()
    for x, y in batches(2):
        units = count_units(lambda x=x, y=y: step.craft(net, x, y), net)
    assert (units.forward, units.backward, units.weight) == (3, 3, 0)


def _compiled_forms():
    def module(net):
        return torch.compile(net, backend="eager")

    def in_place(net):
        net.compile(backend="eager")
        return net

    def function(net):
        return torch.compile(lambda x: net(x), backend="eager")

    def forward(net):
        net.forward = torch.compile(net.forward, backend="eager")
        return net

    return [module, in_place, function, forward]


@pytest.mark.parametrize("form", _compiled_forms(), ids=lambda form: form.__name__)
def test_weights_of_a_compiled_model_stay_frozen(form):
    assert casts._weights(_net()) != [] and casts._weights(form(_net())) == []


class _Odd(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight * 2, self.bias)


def test_only_layers_whose_backward_is_known_are_not_frozen():
    net = nn.Sequential(_Odd(2, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Embedding(3, 2))
    assert casts._weights(net) == list(net[2].parameters())


def test_where_autocast_keeps_nothing_everything_is_frozen():
    net, cpu = _net(), torch.device("cpu")
    with casts.kept(net, cpu) as without:
        assert without == []
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
        casts.kept(net, cpu) as uncached,
    ):
        assert uncached == []


def test_a_model_that_computes_its_activations_again_is_crafted_to_the_same_bits(monkeypatch):
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    (x, y), crafted = batches(1)[0], []
    for model in (Again(), _net()):
        step = training.PGDAT(THREAT, steps=3, precision="bf16", bn="eval")
        crafted.append(step.craft(model, x, y).x_adv)
    assert torch.equal(*crafted)


def test_a_recorded_step_holds_as_few_casts(monkeypatch):
    held = []

    class Looking(Tape):
        def recorded(self, recorder):
            made = [
                args
                for func, args, *_ in recorder._calls
                if func.overloadpacket is torch.ops.aten._to_copy
                and isinstance(args[0], nn.Parameter)
            ]
            held.append(len(made))

    monkeypatch.setattr(recording, "backend_for", lambda device, cuda_graph: Looking())
    net = _net()
    run = graphed(training.PGDAT(THREAT, steps=10, precision="bf16"), sgd(net))
    for x, y in batches(5):
        run(net, x, y)
    assert held == [16] and run.replays == 2 and run.refusal is None


def test_flags_are_put_back_after_an_error():
    net, ((x, y),) = conv_net(), batches(1)

    def fails(module, args, output):
        raise KeyError("mine")

    net[3].register_forward_hook(fails)
    before = copy.deepcopy([p.requires_grad for p in net.parameters()])
    with pytest.raises(KeyError, match="mine"):
        training.PGDAT(THREAT, precision="bf16").loss(net, x, y)
    assert [p.requires_grad for p in net.parameters()] == before
