"""Section A, outputs: one rule for what a model returns, wherever a model is called."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn
from toy_models import differing_fields, same_bits

import fastadv
from fastadv import outputs, training
from fastadv.compat import autoattack, robustbench, torchattacks
from fastadv.compat.autoattack import checks

THREAT = fastadv.Linf(0.2)


class Held(NamedTuple):
    logits: torch.Tensor
    hidden: torch.Tensor


class ModelOutput(OrderedDict):
    """As transformers has it: a dict whose keys are attributes too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


FORMS = {
    "namedtuple": lambda z: Held(z, 2 * z),
    "ModelOutput": lambda z: ModelOutput(loss=None, logits=z),
    "dict": lambda z: {"logits": z, "hidden": 2 * z},
}


class Forming(nn.Module):
    """A small network whose logits come in one of FORMS; None: bare."""

    def __init__(self, form=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
        with torch.no_grad():
            self.net[3].bias -= torch.tensor([0.0, 0.25, 0.0, 0.0])
        self.form = form

    def forward(self, x):
        z = self.net(x)
        return z if self.form is None else FORMS[self.form](z)


@pytest.fixture
def data():
    x = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, Forming()(x).argmax(1)


def test_a_tensor_is_taken_as_it_is():
    z = torch.rand(2, 3)
    assert outputs.logits_in(z, z) is z
    assert all(outputs.logits_in(form(z), z) is z for form in FORMS.values())


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ((torch.ones(2, 3), 1), r"got tuple of Tensor, int\. .* alone: lambda x: model\(x\)\[0\]"),
        ([None, torch.ones(2, 3)], r"got list of NoneType, Tensor\. .*: lambda x: model\(x\)\[1\]"),
        (
            {"loss": 1, "out": torch.ones(2, 3)},
            r"got dict with keys \['loss', 'out'\]\. .*: lambda x: model\(x\)\['out'\]",
        ),
        ({}, r"got dict with keys \[\]\. Wrap it to return its logits alone\. A tensor"),
        ((), r"got tuple of nothing\."),
        ({"logits": [1.0]}, "got dict with logits that are no tensor but list"),
        (None, r"got NoneType\. Wrap it to return its logits alone\. A tensor, an object"),
    ],
)
def test_all_else_is_refused_with_what_came_and_the_remedy(output, text):
    with pytest.raises(ValueError, match=r"must return \(B, C\) logits, here \(2, C\); " + text):
        outputs.logits_in(output, torch.zeros(2, 5))


def ensemble():
    pair = fastadv.apgd_ce(THREAT, steps=2), fastadv.square(THREAT, queries=4)
    return fastadv.autoattack(THREAT, version="custom", attacks=pair)


def attacks():
    yield fastadv.pgd(THREAT, steps=3)
    yield fastadv.pgd(THREAT, steps=3, keep="last", loss="kl")
    yield fastadv.apgd_dlr(THREAT, steps=3)
    yield fastadv.fab(THREAT, steps=2)
    yield fastadv.square(THREAT, queries=4)
    yield ensemble()


@pytest.mark.parametrize("attack", list(attacks()), ids=lambda attack: repr(attack)[:40])
def test_attacks(data, attack):
    expected = attack.run(Forming(), *data)
    for form in FORMS:
        assert differing_fields(attack.run(Forming(form), *data), expected) == []
    model = Forming("dict")
    assert differing_fields(attack.run(lambda x: model(x), *data), expected) == []


@pytest.mark.parametrize("form", FORMS)
def test_what_is_searched_instead_and_timed(data, form):
    """Half precision and another layout of a copy; a normalisation that is fused into the steps."""
    attack = fastadv.pgd(THREAT, steps=3)
    for execution in (
        fastadv.Execution(precision="bf16", channels_last=True),
        fastadv.Execution(timed=True),
    ):
        ways = [
            fastadv.Normalized(Forming(f), mean=(0.5,) * 3, std=(0.25,) * 3) for f in (None, form)
        ]
        bare, formed = (attack.run(model, *data, execution=execution) for model in ways)
        same = {*differing_fields(formed, bare)} - {"cost"}
        assert same == set()


@pytest.mark.parametrize("form", FORMS)
def test_evaluate_and_curve(data, form):
    attack = ensemble()
    found = [fastadv.evaluate(Forming(f), data, attack) for f in (None, form)]
    assert found[0].robust_accuracy == found[1].robust_accuracy < 1
    assert found[0].clean_accuracy == found[1].clean_accuracy == 1
    pgd = fastadv.pgd(THREAT, steps=3)
    radii = [
        fastadv.robustness_curve(Forming(f), data, pgd, eps=[0.02, 0.2]).robust_accuracy
        for f in (None, form)
    ]
    assert radii[0] == radii[1]


METHODS = {
    "FastAT": lambda: training.FastAT(THREAT, modifiers=[training.AWP(), training.GradAlign()]),
    "PGDAT": lambda: training.PGDAT(THREAT, steps=2, modifiers=[training.CleanMixing()]),
    "TRADES": lambda: training.TRADES(THREAT, steps=2),
    "MART": lambda: training.MART(THREAT, steps=2),
    "FreeAT": lambda: training.FreeAT(THREAT, replays=2),
    "YOPO": lambda: training.YOPO(THREAT, first_layer="net.1", outer=2, inner=1),
}


@pytest.mark.parametrize("name", METHODS)
def test_training(data, name):
    def gradients(form):
        model, step = Forming(form), METHODS[name]()
        for _ in range(2):  # the second batch is not checked any more
            for loss in step(model, *data):
                loss.backward()
        return [p.grad for p in model.parameters()]

    bare = gradients(None)
    for form in FORMS:
        assert all(map(same_bits, gradients(form), bare))


@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "FreeAT"])
def test_training_refuses_a_tuple(data, name):
    with pytest.raises(ValueError, match=r"got tuple of Tensor.* lambda x: model\(x\)\[0\]"):
        next(iter(METHODS[name]()(lambda x: (Forming()(x),), *data)))


@pytest.mark.parametrize("form", FORMS)
def test_drop_ins(data, form):
    x, y = data
    bare, formed = Forming(), Forming(form)

    def all_of(model):
        pgd = torchattacks.PGD(model, eps=0.2, steps=3)
        yield pgd(x, y)
        yield pgd.get_logits(x)
        yield pgd.get_output_with_eval_nograd(x)
        pgd.set_mode_targeted_least_likely(quiet=True)
        yield pgd(x, y)
        own = autoattack.AutoAttack(
            model, eps=0.2, seed=0, version="custom", attacks_to_run=["apgd-ce"], verbose=False
        )
        own.apgd.n_iter = 3
        yield own.run_standard_evaluation(x, y, bs=12)
        yield torch.tensor(own.clean_accuracy(x, y))
        yield torch.tensor(robustbench.clean_accuracy(model, x, y))
        yield torch.tensor(checks.check_range_output(model, x))
        checks.check_randomized(model, x, y)

    for found, expected in zip(all_of(formed), all_of(bare), strict=True):
        assert same_bits(found.detach(), expected.detach())
