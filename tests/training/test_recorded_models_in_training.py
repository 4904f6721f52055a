"""Section A: scripted, traced and exported modules are trained as what they were made of."""

import warnings

import pytest
import torch
from recorded_models import data, network, recorded
from toy_models import same_bits

import fastadv
from fastadv import training

# a recorded module is in the mode that it was recorded in, and its twin in the same
pytestmark = pytest.mark.filterwarnings("ignore:eval mode")
THREAT = fastadv.Linf(0.1)
METHODS = {
    "FastAT": lambda **more: training.FastAT(THREAT, **more),
    "PGDAT": lambda **more: training.PGDAT(THREAT, steps=2, **more),
    "TRADES": lambda **more: training.TRADES(THREAT, steps=2, **more),
    "FreeAT": lambda **more: training.FreeAT(THREAT, replays=2, **more),
}


@pytest.fixture(autouse=True)
def torch_jit_may_be_deprecated():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def trained(model, step):
    """(gradients and buffers after three batches of SGD, random state apart)."""
    torch.manual_seed(7)
    for _ in range(3):
        for loss in step(model, *data()):
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
                    p.grad = None
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, "script") for name in METHODS), ("PGDAT", "trace"), ("PGDAT", "export")],
)
def test_they_train_as_the_module_they_were_made_of(name, how):
    """In eval mode, where all three are that module to the bit; no flag is in the way."""
    expected = trained(network(), METHODS[name]())
    found = trained(recorded(how, network()), METHODS[name]())
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("bn", training.craft.BN_POLICIES)
def test_a_scripted_module_in_train_mode_keeps_its_statistics_while_crafting(bn):
    def after(model, **more):
        step = training.PGDAT(THREAT, steps=2, bn=bn, **more)
        step.loss(model, *data()).backward()
        return model

    found, expected = after(recorded("script", network("train"))), after(network("train"))
    counts = [int(b) for b in found.buffers() if b.dtype == torch.int64]
    assert counts == [3 if bn == "train" else 1]
    if bn != "train":  # what dropout draws in crafting must not show in the statistics of layer one
        assert all(map(torch.allclose, found.buffers(), expected.buffers()))
    assert all(m.training for m in found.modules())


@pytest.mark.parametrize("how", ["trace", "export"])
def test_what_was_recorded_in_train_mode_moves_its_statistics_in_training_only(how):
    model = recorded(how, network("train"))
    before = [b.clone() for b in model.buffers()]
    step = training.PGDAT(THREAT, steps=2)
    step.craft(model, *data())
    assert all(map(same_bits, model.buffers(), before))
    step.loss(model, *data()).backward()
    assert not all(map(same_bits, model.buffers(), before))


def test_under_autocast_too():
    for how in ("script", "trace", "export"):
        loss = training.PGDAT(THREAT, steps=1, precision="bf16").loss(
            recorded(how, network()), *data()
        )
        assert loss.isfinite() and loss.requires_grad


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match="no weights to train: torch.jit.freeze has made const"):
        training.PGDAT(THREAT, steps=1).loss(recorded("freeze", network()), *data())
    scripted = recorded("script", network())
    with pytest.raises(TypeError, match="AWP calls the model with other weights, which torch.jit"):
        training.PGDAT(THREAT, steps=1, modifiers=[training.AWP()]).loss(scripted, *data())
    with pytest.raises(ValueError, match="as it was before torch.compile or torch.jit"):
        training.YOPO(THREAT, first_layer="1").loss(scripted, *data())
