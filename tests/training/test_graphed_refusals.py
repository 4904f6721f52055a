"""What cannot be recorded is trained eagerly, with the same result, and said once."""

import warnings

import pytest
import torch
from graphed_pair import Pair, sgd
from torch import nn
from training_problems import METHODS, THREAT, batches, conv_net

from fastadv import training
from fastadv.diagnostics import ExecutionWarning
from fastadv.training import graphed


class _Asks(nn.Module):
    """Waits for the device in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = conv_net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * (2.0 if x.sum().item() > 0 else 1.0)


@pytest.mark.parametrize("name", ["FastAT", "FreeAT"])
def test_a_model_that_waits_is_trained_eagerly_and_that_is_said_once(tape, name):
    pair = Pair(lambda: METHODS[name](THREAT), net=_Asks())
    with pytest.warns(ExecutionWarning, match=r"uses \.item\(\).*training steps go on") as said:
        pair.train(batches(8))
    assert len(said) == 1 and ".item()" in pair.run.refusal and pair.run.replays == 0
    assert "kept without .detach()" in pair.run.refusal
    assert "AccumulateGrad node's stream does not match" in pair.run.refusal
    if name == "FreeAT":
        assert torch.equal(pair.step.delta, pair.eager_step.delta)


class _Wrapped(nn.parallel.DataParallel):
    pass


def _refusals():
    yield "data-parallel", _Wrapped(conv_net()), sgd, "reduced over processes or devices"
    yield "optimizer", conv_net(), lambda net: torch.optim.RMSprop(net.parameters()), "of RMSprop"


@pytest.mark.parametrize(
    ("net", "optimizer", "words"), [r[1:] for r in _refusals()], ids=[r[0] for r in _refusals()]
)
def test_what_cannot_be_recorded_is_trained_eagerly_and_that_is_said_once(
    tape, net, optimizer, words
):
    pair = Pair(lambda: training.FastAT(THREAT), net=net, optimizer=optimizer)
    with pytest.warns(ExecutionWarning, match=words) as said:
        pair.train(batches(4))
    assert len(said) == 1 and tape.warmed == 0
    run = graphed(training.FastAT(THREAT), optimizer(net), cuda_graph=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=words):
            run(net, *batches(1)[0])


def test_settings_that_change_at_every_batch_are_named(tape):
    pair = Pair(lambda: training.FastAT(THREAT))
    with pytest.warns(ExecutionWarning, match="momentum, as OneCycleLR moves it"):
        for i, batch in enumerate(batches(36, size=2)):
            for o in (pair.eager_optimizer, pair.optimizer):
                o.param_groups[0]["momentum"] = 0.5 + i / 100
            pair.train([batch])
    assert tape.captured == 0


def test_a_plain_function_is_trained_eagerly(tape):
    net = conv_net()
    run = graphed(training.FastAT(THREAT), sgd(net))
    before = net[0].weight.detach().clone()
    with pytest.warns(ExecutionWarning, match="the model is a function"):
        run(lambda x: net(x), *batches(1)[0])
    assert not torch.equal(net[0].weight, before) and net[0].weight.grad is None


def test_on_a_cpu_the_loop_is_the_eager_one_in_silence():
    pair = Pair(lambda: METHODS["PGDAT"](THREAT), optimizer=lambda net: sgd(net, fused=None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.train(batches(4))
    assert pair.run.replays == 0 and pair.run.refusal is None


def test_released_recordings_are_made_anew(tape):
    pair = Pair(lambda: training.FastAT(THREAT))
    pair.train(batches(5))
    pair.run.release()
    assert tape.released == 1
    pair.train(batches(4))
    assert tape.captured == 2


def test_half_precision_without_a_scaler_is_refused():
    net = conv_net()
    with pytest.raises(ValueError, match="precision='fp16' needs a loss scaler.*use 'bf16'"):
        graphed(training.FastAT(THREAT, precision="fp16"), sgd(net))
    run = graphed(training.FastAT(THREAT), sgd(net))
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(ValueError, match="use bfloat16"),
    ):
        run(net, *batches(1)[0])


def test_arguments_that_do_not_fit_are_named():
    net = conv_net()
    with pytest.raises(TypeError, match="step must be one of fastadv.training"):
        graphed(net, sgd(net))
    with pytest.raises(
        TypeError, match="optimizer must be a torch.optim.Optimizer; got Sequential"
    ):
        graphed(training.FastAT(THREAT), net)
    with pytest.raises(ValueError, match="clip_norm must be positive or None; got 0"):
        graphed(training.FastAT(THREAT), sgd(net), clip_norm=0)
    run = graphed(training.FastAT(THREAT), sgd(net), cuda_graph=True)
    for _ in range(2):
        with pytest.raises(ValueError, match="cuda_graph=True needs tensors on a CUDA device"):
            run(net, *batches(1)[0])


def test_errors_of_the_first_batch_are_those_of_the_step(tape):
    net = conv_net()
    run = graphed(training.FastAT(THREAT), sgd(net))
    x, y = batches(1)[0]
    with pytest.raises(ValueError, match="y must"):
        run(net, x, y + 100)
    with pytest.raises((TypeError, ValueError), match="y must"):
        run(net, x, torch.nn.functional.one_hot(y).float())
    run(net, x, y)


def test_a_required_recording_that_fails_raises_at_every_batch(tape):
    net = _Asks()
    run = graphed(training.FastAT(THREAT), sgd(net), cuda_graph=True)
    data = batches(5)
    for x, y in data[:3]:
        run(net, x, y)
    for x, y in data[3:]:
        with pytest.raises(RuntimeError, match=r"not captured, because the step uses \.item\(\)"):
            run(net, x, y)
    assert run.step.batches == 3
