"""Recorded training steps equal the user's own eager loop, on the stand-in for CUDA graphs."""

import copy

import pytest
import torch
from graphed_pair import Pair, sgd
from torch import nn
from training_problems import CRAFTED, METHODS, SHAPE, THREAT, batches, conv_net

from fastadv import training
from fastadv.training import AWP, CleanMixing, GradAlign, PerturbationBank, graphed


@pytest.mark.parametrize("name", METHODS)
def test_replayed_steps_equal_the_eager_loop_bit_for_bit(tape, name):
    pair = Pair(lambda: METHODS[name](THREAT, seed=3))
    pair.train(batches(7))
    # one batch that is checked, two that warm up, one capture
    assert (tape.warmed, tape.captured, pair.run.replays) == (2, 1, 4)


_MODIFIED = {
    "AWP": {"modifiers": [AWP()]},
    "mixing": {"modifiers": [CleanMixing(0.5), AWP()]},
    "gradients aligned": {"modifiers": [GradAlign()]},
    "smoothing": {"label_smoothing": 0.1},
    "bf16": {"precision": "bf16"},
    "other statistics": {"bn": "train"},
}


@pytest.mark.parametrize("settings", _MODIFIED.values(), ids=_MODIFIED)
@pytest.mark.parametrize("name", ["FastAT", "TRADES"])
def test_modifiers_and_settings_are_recorded_too(tape, name, settings):
    pair = Pair(lambda: METHODS[name](THREAT, **settings))
    pair.train(batches(6))
    assert pair.run.replays == 3


def test_a_step_that_aligns_gradients_over_replays_draws_anew_for_each(tape):
    pair = Pair(lambda: training.FreeAT(THREAT, replays=3, modifiers=[GradAlign()]))
    pair.train(batches(6))
    assert pair.run.replays == 3 and pair.step.batches == 18


def test_noise_is_that_of_the_batch_and_no_loss_is_overwritten(tape):
    net = conv_net()
    optimizer = sgd(net, lr=0.0, momentum=0.0, weight_decay=0.0)
    run = graphed(training.NFGSM(THREAT), optimizer)
    (x, y) = batches(1)[0]
    losses = torch.stack([run(net, x, y) for _ in range(8)])
    assert len(losses.unique()) == 8  # one batch, weights that stay: the noise alone differs


def test_learning_rates_of_a_schedule_are_seen(tape):
    pair = Pair(lambda: training.FastAT(THREAT))
    pair.train(batches(5))  # recorded before there is a schedule
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch))
        for o in (pair.eager_optimizer, pair.optimizer)
    ]
    for batch in batches(6, seed=2):
        pair.train([batch])
        for schedule in schedules:
            schedule.step()
    assert pair.run.replays == 8 and tape.captured == 1
    rates = [o.param_groups[0]["lr"] for o in (pair.eager_optimizer, pair.optimizer)]
    assert rates == [0.1 * (1 / 7)] * 2


def test_learning_rates_in_tensors_are_seen(tape):
    def optimizer(net):
        return sgd(net, lr=torch.tensor(0.1))

    pair = Pair(lambda: training.FastAT(THREAT), optimizer=optimizer)
    for i, batch in enumerate(batches(6)):
        for o in (pair.eager_optimizer, pair.optimizer):
            o.param_groups[0]["lr"].fill_(0.1 / (i + 1))
        pair.train([batch])
    assert pair.run.replays == 3


def test_other_settings_of_the_optimizer_are_recorded_anew(tape):
    pair = Pair(lambda: training.FastAT(THREAT))
    pair.train(batches(5))
    for o in (pair.eager_optimizer, pair.optimizer):
        o.param_groups[0]["momentum"] = 0.5
    pair.train(batches(5, seed=3))
    assert tape.captured == 2


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_and_adamw_are_recorded(tape, kind):
    def optimizer(net):
        return kind(net.parameters(), lr=0.01, weight_decay=1e-3, fused=True)

    pair = Pair(lambda: training.FastAT(THREAT), optimizer=optimizer)
    pair.train(batches(7))
    assert pair.run.replays == 4
    state = pair.optimizer.state_dict()
    assert all(float(s["step"]) == 7 for s in state["state"].values())
    assert (state["param_groups"][0]["lr"], state["param_groups"][0]["capturable"]) == (0.01, False)


def test_gradients_are_clipped_as_the_eager_loop_does(tape):
    net = conv_net()
    twin, optimizers = copy.deepcopy(net), []
    for model in (net, twin):
        optimizers.append(sgd(model))
    step, run = (
        training.FastAT(THREAT),
        graphed(training.FastAT(THREAT), optimizers[0], clip_norm=0.1),
    )
    for x, y in batches(6):
        loss = run(net, x, y)
        optimizers[1].zero_grad()
        eager = step.loss(twin, x, y)
        eager.backward()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        optimizers[1].step()
        assert norm > 0.1 and torch.equal(loss, eager.detach())
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
    assert run.replays == 3


def test_an_odd_last_batch_is_recorded_on_its_own(tape):
    pair = Pair(lambda: METHODS["TRADES"](THREAT))
    for epoch in range(5):
        pair.train([*batches(3, seed=epoch), *batches(1, size=5, seed=epoch)])
    assert tape.captured == 2 and pair.run.replays == 20 - 1 - 4
    last = batches(1)[0]
    pair.train([(last[0].to(memory_format=torch.channels_last), last[1])])


def test_the_perturbation_of_free_training_may_grow_with_a_longer_batch(tape):
    pair = Pair(lambda: METHODS["FreeAT"](THREAT))
    pair.train([*batches(5, size=6), *batches(5, size=9), *batches(3, size=6)])
    assert torch.equal(pair.step.delta, pair.eager_step.delta)


def test_sample_ids_and_a_bank_are_read_anew(tape):
    pair = Pair(lambda: METHODS["PGDAT"](THREAT, bank=PerturbationBank(40, SHAPE)))
    for i, batch in enumerate(batches(7)):
        ids = torch.arange(16).flip(0) + 3 * i
        pair.train([batch], sample_ids=ids)
    assert torch.equal(pair.step.bank.levels, pair.eager_step.bank.levels)
    assert pair.run.replays == 4


def test_batches_of_the_warm_up_are_eager_and_the_others_recorded(tape):
    pair = Pair(lambda: METHODS["PGDAT"](THREAT, eps_warmup=4))
    pair.train(batches(9))
    # of batches 0, 1, 2 the radius grows; from 3 on it stays
    assert (tape.warmed, pair.run.replays, pair.run.refusal) == (2, 4, None)


def test_weights_written_in_place_are_seen_and_tensors_put_in_their_place_too(tape):
    pair = Pair(lambda: training.FastAT(THREAT))
    pair.train(batches(5))
    saved = {name: value * 0.5 for name, value in pair.net.state_dict().items()}
    for net in (pair.net, pair.eager):
        net.load_state_dict(saved)
    pair.train(batches(2, seed=3))
    assert tape.captured == 1
    for net, o in ((pair.net, pair.optimizer), (pair.eager, pair.eager_optimizer)):
        o.load_state_dict(copy.deepcopy(o.state_dict()))
        for p in net.parameters():
            p.data = p.data.clone()
    pair.train(batches(5, seed=4))
    assert tape.captured == 2


def test_evaluation_between_epochs_changes_nothing(tape):
    pair = Pair(lambda: training.FastAT(THREAT))
    for epoch in range(3):
        pair.train(batches(4, seed=epoch))
        for net in (pair.net, pair.eager):
            net.eval()(batches(1)[0][0])
            net.train()
    assert tape.captured == 1


@pytest.mark.parametrize("name", [*CRAFTED[:2], "FreeAT"])
def test_a_resumed_run_gives_the_same_bits(tape, name):
    data = batches(10)
    pair = Pair(lambda: METHODS[name](THREAT))
    pair.train(data[:5])
    resumed = Pair(lambda: METHODS[name](THREAT))
    for net in (resumed.net, resumed.eager):
        net.load_state_dict(pair.net.state_dict())
    for step in (resumed.step, resumed.eager_step):
        step.load_state_dict(copy.deepcopy(pair.step.state_dict()))
    for o in (resumed.optimizer, resumed.eager_optimizer):
        o.load_state_dict(copy.deepcopy(pair.optimizer.state_dict()))
    pair.train(data[5:])
    resumed.train(data[5:])
    assert torch.equal(resumed.net[0].weight, pair.net[0].weight)


class Tempered(nn.Module):
    """Its temperature lies in a dictionary."""

    def __init__(self):
        super().__init__()
        self.net, self.settings = conv_net(bn=True), {"temperature": 1.0}

    def forward(self, x):
        return self.net(x) * self.settings["temperature"]


def test_what_attributes_of_the_model_hold_may_change(tape):
    pair = Pair(lambda: training.FastAT(THREAT), net=Tempered())
    data = batches(10)
    pair.train(data[:6])
    for net in (pair.net, pair.eager):
        net.settings["temperature"] = 5.0
    pair.train(data[6:])
