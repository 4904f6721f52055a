"""RNNs on a GPU are attacked in eval mode although cuDNN's have no backward there; no trace."""

import sys
from pathlib import Path

import pytest
import torch
from cudnn_rnn import rnns_on_cudnn
from torch import nn
from toy_models import differing_fields, threat_of

import fastadv
from fastadv import isolation, training
from fastadv.attacks.call import preparation

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graphs"))

from tape import Tape  # noqa: E402

KINDS = (nn.LSTM, nn.GRU, nn.RNN)


class Recurrent(nn.Module):
    """Reads an image line by line."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        torch.manual_seed(0)
        self.rnn = kind(8, 12, num_layers=2, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.rnn(x.flatten(1, 2).transpose(0, 1))[0][-1])


@pytest.fixture
def cudnn(monkeypatch):
    before = torch._C._get_cudnn_enabled()
    assert before
    with rnns_on_cudnn(monkeypatch) as mode:
        yield mode
    assert torch._C._get_cudnn_enabled() == before


@pytest.fixture
def data():
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(8) % 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule(cudnn, data, kind):
    model = Recurrent(kind)
    x = data[0].requires_grad_()
    model.train()(x).sum().backward()
    with pytest.raises(RuntimeError, match="only be called in training mode"):
        model.eval()(x).sum().backward()
    packed = nn.utils.rnn.pack_padded_sequence(x.flatten(1, 2), torch.full((8,), 8), True)
    with pytest.raises(RuntimeError, match="only be called in training mode"):
        model.rnn(packed)[0].data.sum().backward()
    with torch.backends.cudnn.flags(enabled=False):
        model(x).sum().backward()
    assert (cudnn.on, cudnn.off) == (3, 1)


def attacks():
    for norm in ("linf", "l2", "l1"):
        yield fastadv.pgd(threat_of(norm), steps=4)
        yield fastadv.apgd_ce(threat_of(norm), steps=4)
        yield fastadv.fab(threat_of(norm), steps=2)
    yield fastadv.square(threat_of("linf"), queries=8)
    yield fastadv.autoattack(threat_of("linf"), version="fast")


@pytest.mark.parametrize("attack", list(attacks()), ids=lambda attack: repr(attack)[:40])
def test_every_attack(monkeypatch, data, attack):
    model = Recurrent().train()
    expected = attack.run(model, *data)
    with rnns_on_cudnn(monkeypatch) as mode:
        found = attack.run(model, *data)
    assert differing_fields(expected, found) == []
    assert mode.on == 0 and mode.off > 0
    assert torch._C._get_cudnn_enabled() and model.rnn.training


@pytest.mark.parametrize(
    "how", [{"precision": "bf16"}, {"channels_last": True}], ids=lambda how: next(iter(how))
)
def test_copies(cudnn, data, how):
    attack = fastadv.pgd(threat_of("linf"), steps=4)
    for _ in range(2):
        attack.run(Recurrent(), *data, execution=fastadv.Execution(**how))
    assert cudnn.on == 0


def test_recorded_steps(cudnn, data, monkeypatch):
    tape = Tape()
    monkeypatch.setattr(preparation, "backend_for", lambda device, how: tape if how else None)
    model = Recurrent(nn.GRU)  # oneDNN's LSTM returns less to a tape that is replayed
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    eager = attack.run(model, *data, execution=fastadv.Execution(cuda_graph=False))
    for _ in range(2):
        assert differing_fields(eager, attack.run(model, *data)) == []
    assert cudnn.on == 0 and tape.captured > 0
    preparation.release()


def test_functions_and_methods(cudnn, data):
    model = Recurrent()
    attack = fastadv.pgd(threat_of("linf"), steps=2)
    for called in (lambda x: model(x), model.forward):
        attack(called, *data)
    assert cudnn.on == 0


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_flags_are_put_back_also_on_errors(cudnn, data, error, enabled):
    class Failing(Recurrent):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 3:
                raise error
            return super().forward(x)

    def flags():
        names = "enabled", "benchmark", "deterministic", "allow_tf32", "benchmark_limit"
        return [getattr(torch.backends.cudnn, name) for name in names]

    with torch.backends.cudnn.flags(enabled=enabled, benchmark=True, allow_tf32=False):
        before = flags()
        with pytest.raises(error):
            fastadv.pgd(threat_of("linf"), steps=4)(Failing(), *data)
        assert flags() == before


def test_models_without_rnns_keep_cudnn(cudnn, data, monkeypatch):
    monkeypatch.setattr(torch._C, "_set_cudnn_enabled", lambda on: pytest.fail("was set"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    fastadv.pgd(threat_of("linf"), steps=2)(model, *data)


def test_rnns_of_a_cpu_keep_cudnn(data, monkeypatch):
    assert isolation._CUDNN_DEVICE == "cuda"
    monkeypatch.setattr(torch._C, "_set_cudnn_enabled", lambda on: pytest.fail("was set"))
    fastadv.pgd(threat_of("linf"), steps=2)(Recurrent(), *data)


@pytest.mark.parametrize("bn", ["batch", "eval", "train"])
def test_training(cudnn, data, bn):
    """Only crafting in eval mode needs another implementation; the step itself keeps cuDNN's."""
    model = Recurrent().train()
    step = training.PGDAT(threat_of("linf"), steps=2, bn=bn)
    step.loss(model, *data).backward()
    assert cudnn.on > 0 and (cudnn.off > 0) == (bn == "eval")
    assert all(p.grad is not None for p in model.parameters())


def test_evaluation(cudnn, data):
    report = fastadv.evaluate(Recurrent(), data, fastadv.pgd(threat_of("linf"), steps=2))
    assert report.n == 8 and cudnn.on == 0
