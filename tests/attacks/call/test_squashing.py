"""Outputs behind a sigmoid or tanh are warned of by all that attacks; no logits of ours are."""

import warnings

import pytest
import torch
from torch import nn

import fastadv
from fastadv import training
from fastadv.attacks.call import squashing
from fastadv.attacks.call.squashing import signs, warn_of_outputs
from fastadv.compat import torchattacks
from fastadv.compat.autoattack import AutoAttack
from fastadv.data import load_digits
from fastadv.models import build, digits_net

LAYERS = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softmax": nn.Softmax(dim=1)}
CODES = {"sigmoid": "squashed", "tanh": "squashed", "softmax": "probabilities"}
THREAT = fastadv.Linf(0.1)


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits("test")
    return x[:64], y[:64]


def squashed(kind: str) -> nn.Sequential:
    return nn.Sequential(digits_net(weights="standard"), LAYERS[kind]).eval()


def _warned(call):
    """(code, count) of every AttackWarning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    found = [w.message for w in caught]
    assert all(isinstance(message, fastadv.AttackWarning) for message in found), found
    return [(message.code, message.count) for message in found]


def test_b_of_64_digits_under_a_sigmoid_unsquashed_breaks_those_that_the_logits_lose(digits):
    attack = fastadv.pgd(THREAT, steps=40)
    model = squashed("sigmoid")

    def broken(model) -> int:
        result = attack.run(model, *digits)
        return int((result.success & (result.clean_prediction == digits[1])).sum())

    lost = broken(model[0])
    with pytest.warns(fastadv.AttackWarning, match='squashed: 64 of 64.*Unsquashed.model, "sigm'):
        silently = broken(model)
    assert silently < lost / 3
    wrapped = fastadv.Unsquashed(model, "sigmoid")
    assert broken(wrapped) >= lost - 1 >= 26
    assert broken(fastadv.Unsquashed(lambda x: model(x) * 1, "sigmoid")) >= lost - 1


@pytest.mark.parametrize(
    "execution",
    [fastadv.Execution(precision="bf16"), fastadv.Execution(channels_last=True)],
    ids=["bf16", "channels_last"],
)
@pytest.mark.parametrize("kind", LAYERS)
def test_b_a_search_in_place_of_an_unsquashed_model_is_that_of_its_logits(kind, execution, digits):
    attack, model = fastadv.pgd(THREAT, steps=3), squashed(kind)
    expected = attack.run(model[0], *digits, execution=execution)
    result = attack.run(fastadv.Unsquashed(model, kind), *digits, execution=execution)
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.success, expected.success) and int(result.success.sum()) > 8


@pytest.mark.parametrize("call", [False, True])
@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("kind", LAYERS)
def test_b_attacks_warn_of_squashed_outputs_once(kind, keep, call, digits):
    attack = fastadv.pgd(THREAT, steps=2, keep=keep)
    how = attack if call else attack.run
    seen = _warned(lambda: how(squashed(kind), *digits))
    assert [one for one in seen if one[0] != "unconfirmed"] == [(CODES[kind], 64)]
    assert _warned(lambda: how(squashed(kind)[0], *digits)) == []
    assert _warned(lambda: how(fastadv.Unsquashed(squashed(kind), kind), *digits)) == []


def test_b_the_warning_is_asked_for_on_the_device_where_nothing_is_verified(digits):
    """No clean sample is looked at: exactly the steps' passes."""
    seen = []

    def model(x):
        seen.append(len(x))
        return squashed("tanh")(x)

    attack = fastadv.pgd(THREAT, steps=3, keep="last")
    assert _warned(lambda: attack(model, *digits)) == [("squashed", 64)]
    assert seen == [64] * 3


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(
    "make",
    [training.FastAT, training.PGDAT, training.TRADES, training.FreeAT],
    ids=lambda make: make.__name__,
)
def test_b_training_warns_of_squashed_outputs_at_the_first_batch(make, kind, digits):
    step, model = make(THREAT), squashed(kind).train()

    def batch():
        for loss in step(model, *digits):
            loss.backward()

    assert _warned(batch) == [(CODES[kind], 64)]
    assert _warned(batch) == []


def test_b_yopo_warns_of_squashed_outputs(digits):
    step = training.YOPO(THREAT, first_layer="0.0", outer=1, inner=1)
    model = squashed("sigmoid").train()
    assert _warned(lambda: step.loss(model, *digits)) == [("squashed", 64)]


@pytest.mark.parametrize("kind", LAYERS)
def test_b_dropins_and_evaluate_warn_of_squashed_outputs(kind, digits, tmp_path):
    x, y = digits[0][:16], digits[1][:16]
    attack = torchattacks.PGD(squashed(kind), eps=0.1, alpha=0.05, steps=2)
    assert _warned(lambda: attack(x, y)) == [(CODES[kind], 16)]
    log = tmp_path / "log.txt"
    authors = AutoAttack(
        squashed(kind), eps=0.1, version="custom", attacks_to_run=["apgd-ce"], log_path=str(log)
    )
    authors.apgd.n_iter = 2
    assert _warned(lambda: authors.run_standard_evaluation(x, y)) == []
    said = {"squashed": "squashed: 16 of 16", "probabilities": "is a probability distribution"}
    assert said[CODES[kind]] in log.read_text()
    with pytest.warns(fastadv.AttackWarning, match=CODES[kind]):
        report = fastadv.evaluate(squashed(kind), (x, y), fastadv.fgsm(THREAT), progress=False)
    assert report.warnings == {CODES[kind]: 16}


@pytest.mark.parametrize("name", ["digits", "mnist", "mnist-conv", "fast-cifar", "preact-resnet18"])
def test_b_no_network_of_ours_with_random_weights_is_warned_of(name):
    shape = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "mnist-conv": (1, 28, 28)}
    small = name in ("digits", "mnist")
    generator = torch.Generator().manual_seed(0)
    for seed in range(12 if small else 1):
        for classes in (2, 3, 10) if name != "preact-resnet18" else (2,):
            net = build(name, seed=seed, classes=classes).eval()
            x = torch.rand(4, *shape.get(name, (3, 32, 32)), generator=generator)
            with torch.no_grad():
                logits = net(x)
            assert signs(logits).tolist() == [0, 0, 0], (seed, classes)
            assert signs(logits[:1]).tolist() == [0, 0, 0], (seed, classes)


@pytest.mark.parametrize("weights", ["standard", "fast-at"])
def test_b_no_trained_network_of_ours_is_warned_of(weights):
    x, _ = load_digits("test")
    with torch.no_grad():
        logits = digits_net(weights=weights).eval()(x)
    for rows in (logits, logits[:16], *logits[:64].split(1)):
        assert signs(rows).tolist() == [0, 0, 0]


_BORDERS = {
    "one in ten at an end": ([0.0] * 2 + [0.5] * 18, True),
    "fewer": ([0.0] + [0.5] * 19, False),
    "less than 0.01 from it": ([0.0098, 0.9902] + [0.5] * 18, True),
    "farther": ([0.0102, 0.9898] + [0.5] * 18, False),
    "beyond [0, 1]": ([0.0, 1.0, 1.0001] + [0.5] * 17, False),
    "tanh, one in ten": ([-1.0] * 2 + [0.5] * 18, True),
    "tanh, fewer": ([-1.0] + [-0.5] * 19, False),
    "beyond [-1, 1]": ([-1.0001, 1.0] + [-0.5] * 18, False),
    "all the same": ([1.0] * 20, False),
    "negative distances": ([-1.0] * 5 + [-0.1] * 15, False),
    "small and positive": ([0.001] * 10 + [0.1] * 10, False),
    "infinite": ([0.0] * 19 + [torch.inf], False),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("name", _BORDERS)
def test_b_where_outputs_begin_to_count_as_squashed(name, dtype):
    values, expected = _BORDERS[name]
    if dtype == torch.float16 and "beyond" in name:
        values = [1.01 * v if abs(v) > 1 else v for v in values]
    outputs = torch.tensor(values, dtype=dtype).view(4, 5)
    assert signs(outputs).tolist() == [0, 0, expected]


def test_b_nothing_but_one_read_decides(monkeypatch):
    reads = []

    def counted(name, own):
        return lambda tensor, *args: (reads.append(name), own(tensor, *args))[1]

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    logits[2, 1] = torch.nan
    # a CPU need not be waited for, and is looked at first
    monkeypatch.setattr(squashing, "_are_plain", lambda outputs: False)
    assert warn_of_outputs(logits) == 1
    assert reads == ["tolist"]
