"""Work by counting: units of forward, backward and weight gradient, ops beside the model, syncs."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.optim.swa_utils import AveragedModel
from training_problems import (
    CLASSES,
    CRAFTED,
    METHODS,
    SHAPE,
    THREAT,
    batches,
    conv_net,
    sgd,
    train_batch,
    uniform,
)

from benchmarks import reference
from benchmarks.attacks.counts import count_step
from benchmarks.harness.tally import Tally
from benchmarks.training.work_units import WorkUnits, count_units
from fastadv import training


def _units(step, **net):
    """Of the second batch: checks are done."""
    model = conv_net(**net)
    optimizer = sgd(model)
    (x0, y0), (x, y) = batches(2, size=4)
    train_batch(step, model, optimizer, x0, y0)
    return count_units(lambda: train_batch(step, model, optimizer, x, y), model)


@pytest.mark.parametrize(
    ("step", "units"),
    [
        (training.FastAT(THREAT), WorkUnits(2, 2, 1)),
        (training.NFGSM(THREAT), WorkUnits(2, 2, 1)),
        (training.PGDAT(THREAT, steps=10), WorkUnits(11, 11, 1)),
        (training.TRADES(THREAT, steps=10), WorkUnits(13, 12, 2)),
        (training.MART(THREAT, steps=10), WorkUnits(12, 12, 2)),
        (training.FreeAT(THREAT, replays=1), WorkUnits(1, 1, 1)),
        (training.FreeAT(THREAT, replays=4), WorkUnits(4, 4, 4)),
        (training.YOPO(THREAT, first_layer="0", outer=1, inner=3), WorkUnits(1, 1, 1)),
        (training.YOPO(THREAT, first_layer="0", outer=5, inner=3), WorkUnits(5, 5, 5)),
        (training.FastAT(THREAT, modifiers=[training.CleanMixing()]), WorkUnits(3, 3, 2)),
        (training.FastAT(THREAT, modifiers=[training.AWP()]), WorkUnits(3, 3, 2)),
        (training.TRADES(THREAT, steps=1, modifiers=[training.AWP()]), WorkUnits(6, 5, 4)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("bn", [False, True], ids=["plain", "batchnorm"])
def test_an_optimizer_step_costs(step, units, bn):
    step.batches = 0
    assert _units(step, bn=bn) == units


@pytest.mark.parametrize(
    ("name", "total"),
    [("FastAT", 5), ("NFGSM", 5), ("PGDAT", 23), ("TRADES", 27), ("MART", 26)],
)
def test_the_totals_are_those_of_the_docstrings(name, total):
    make = getattr(training, name)
    assert _units(make(THREAT, **({} if total == 5 else {"steps": 10}))).total == total


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("fast", WorkUnits(2, 2, 2)),
        ("pgd", WorkUnits(11, 11, 11)),
        ("trades", WorkUnits(23, 13, 3)),
    ],
)
def test_the_same_counter_finds_what_the_authors_code_costs(name, units):
    model = conv_net()
    ((x, y),) = batches(1, size=4)
    arguments = {"eps": 0.1, "step_size": 0.025, "noise": uniform(x, 0.05, seed=0)}
    run = {
        "fast": functools.partial(reference.fast_step, clamp_start=False, **arguments),
        "pgd": functools.partial(reference.pgd_step, steps=10, **arguments),
        "trades": functools.partial(reference.trades_step, steps=10, beta=6.0, **arguments),
    }[name]
    assert count_units(lambda: run(model, sgd(model), x, y), model) == units
    assert units.total == {"fast": 6, "pgd": 33, "trades": 39}[name]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_changes_no_unit(precision):
    assert _units(training.PGDAT(THREAT, steps=3, precision=precision)) == WorkUnits(4, 4, 1)


def test_layers_of_one_shape_count_as_one():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    ((x, _),) = batches(1, size=2)
    y = torch.tensor([0, 1])
    loss = training.FastAT(THREAT).loss
    assert count_units(lambda: loss(net, x, y).backward(), net) == WorkUnits(2, 2, 1)


def test_a_model_without_a_convolution_to_count_is_refused():
    with pytest.raises(ValueError, match="convolution of another shape than its first"):
        count_units(lambda: None, nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)))
    with pytest.raises(ValueError, match=r"got \[\]"):
        count_units(lambda: None, nn.Linear(3, 3))


class _Runs:
    """A torch.compile backend that records, for each graph as it runs, its convolutions.

    forwards: one for each convolution that ran. masks: (input, weight, bias) of each backward.
    """

    def __init__(self):
        self.forwards = 0
        self.masks = []
        self.backend = aot_autograd(fw_compiler=self._compile, bw_compiler=self._compile)

    def _compile(self, graph, inputs):
        aten = torch.ops.aten
        targets = [node.target for node in graph.graph.nodes]
        forwards = targets.count(aten.convolution.default)
        masks = [
            tuple(node.args[-1])
            for node in graph.graph.nodes
            if node.target is aten.convolution_backward.default
        ]

        def run(*args):
            self.forwards += forwards
            self.masks += masks
            return graph(*args)

        return make_boxed_func(run)

    def clear(self):
        self.forwards, self.masks = 0, []


@pytest.fixture
def compiled():
    """(model wrapped by torch.compile, what its graphs run)."""
    torch._dynamo.reset()
    runs = _Runs()
    net = conv_net(bn=True)
    yield torch.compile(net, backend=runs.backend, fullgraph=True), runs
    torch._dynamo.reset()


_LAYERS = 3  # of conv_net


def test_the_recorder_sees_weight_gradients_where_a_compiled_model_computes_them(compiled):
    """The trap: only the input's gradient is asked for, and the compiled backward computes all."""
    model, runs = compiled
    ((x, y),) = batches(1)
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    assert runs.forwards == _LAYERS and len(runs.masks) == _LAYERS
    assert all(weight for _, weight, _ in runs.masks)


@pytest.mark.parametrize("name", CRAFTED)
def test_no_compiled_craft_pass_computes_a_weight_gradient(compiled, name):
    model, runs = compiled
    step = METHODS[name](THREAT)
    ((x, y),) = batches(1)
    for _ in range(2):  # the second time, graphs come from the cache
        runs.clear()
        step.craft(model, x, y)
        assert len(runs.masks) == _LAYERS * getattr(step, "steps", 1)
        assert runs.forwards == len(runs.masks) + _LAYERS * (name == "TRADES")
        for mask in runs.masks:
            assert mask == (True, False, False)


@pytest.mark.parametrize("name", [*CRAFTED, "FreeAT"])
def test_a_compiled_model_trains_as_the_eager_one_and_is_compiled_no_more_after_two_steps(
    compiled, name
):
    model, runs = compiled
    eager = copy.deepcopy(model._orig_mod)

    def trained(net, step, optimizer, data):
        for x, y in data:
            more = {"x_init": x + uniform(x, 0.1, seed=0)} if name in CRAFTED else {}
            train_batch(step, net, optimizer, x, y, **more)

    first, last = batches(3)[:2], batches(3)[2:]
    state = METHODS[name](THREAT), sgd(model)
    trained(model, *state, first)
    runs.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        trained(model, *state, last)
    assert runs.forwards > 0  # graphs ran: nothing fell back to eager
    trained(eager, METHODS[name](THREAT), sgd(eager), first + last)
    for ours, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "MART"])
def test_a_craft_step_is_two_ops_beside_the_model(name, norm, either_backend):
    import fastadv

    threat = {"linf": fastadv.Linf(0.1), "l2": fastadv.L2(0.5)}[norm]
    model = conv_net()
    ((x, y),) = batches(1, size=2)

    def run(k):
        METHODS[name](threat, steps=k).craft(model, x, y)

    cost = count_step(run, model=model, x=x)
    assert cost.ops == 2, cost.names
    assert cost.names["fastadv::loss_head_"] == 1
    assert cost.names[f"fastadv::{norm}_step_"] == 1
    assert cost.data_dependent_ops == 0


_BANK = {"bank": training.PerturbationBank(32, SHAPE)}


@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in METHODS]
    + [(name, {"eps_warmup": 4}) for name in METHODS]
    + [(name, {"precision": "bf16"}) for name in METHODS]
    + [("FastAT", {"modifiers": [m()]}) for m in (training.AWP, training.GradAlign)]
    + [("FastAT", {"modifiers": [training.CleanMixing()]}), ("PGDAT", _BANK)]
    + [("PGDAT", {"bn": bn}) for bn in ("eval", "train")],
    ids=repr,
)
def test_no_step_after_the_first_reads_a_result(name, settings):
    model = conv_net(bn=True, dropout=0.1)
    step, optimizer = METHODS[name](THREAT, **settings), sgd(model)
    (x0, y0), (x, y), (x2, y2) = batches(3, size=4)
    more = {"sample_ids": torch.arange(4)} if "bank" in settings else {}
    with Tally() as first:
        train_batch(step, model, optimizer, x0, y0, **more)
    assert first.data_dependent > 0  # the checks: the counter sees
    train_batch(step, model, optimizer, x, y, **more)
    with Tally() as tally:
        train_batch(step, model, optimizer, x2, y2, **more)
    assert tally.data_dependent == 0, tally.names


def test_the_moving_average_reads_no_result_beside_what_torch_reads():
    model = conv_net(bn=True)
    counts = []
    for average in (training.ema(model), AveragedModel(model, multi_avg_fn=lambda *_: None)):
        average.update_parameters(model)
        with Tally() as tally:
            average.update_parameters(model)
        counts.append(tally.data_dependent)
    # torch's class asks twice on the host whether this is the first update
    assert counts == [2, 2]


def test_classes_of_the_nets_are_what_the_labels_need():
    ((x, y),) = batches(1)
    assert conv_net()(x).shape == (16, CLASSES) and int(y.max()) < CLASSES
