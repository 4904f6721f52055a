"""The sentinel: what it sees, and what it does about a collapse."""

import dataclasses
import math
import warnings

import pytest
import torch
from healthy_check import HEALTHY

import fastadv
from fastadv import training
from fastadv.data import load_digits
from fastadv.models import digits_net
from fastadv.training import Check, Collapse, Sentinel, TrainingWarning

THREAT = fastadv.Linf(0.1)


@pytest.fixture
def held_out():
    x, y = load_digits("train")
    return x[-100:], y[-100:]


class _Scripted(Sentinel):
    """Sees what the test says it sees."""

    script: list[dict]

    def examine(self, model, **more):
        more.pop("restarts", None)
        seen = {**dataclasses.asdict(HEALTHY), "batch": self.batches, "one_class": 0.1}
        given = {k: v for k, v in more.items() if k != "train_loss"}
        return Check(**{**seen, **given, **self.script.pop(0)})


MASKED = dict(clean=0.97, single_step=0.96, pgd=0.0)


def _scripted(held_out, script, **settings) -> _Scripted:
    sentinel = _Scripted(THREAT, *held_out, **{"every": 4, **settings})
    sentinel.script = script
    return sentinel


def _trained(sentinel, batches: int, *, step=None, net=None, optimizer=None):
    x, y = load_digits("train")
    net = digits_net() if net is None else net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3) if optimizer is None else optimizer
    step = training.FastAT(THREAT) if step is None else step
    for _ in range(batches):
        for loss in step(net, x[:32], y[:32]):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        step = sentinel.watch(step, net, optimizer)
    return step, net, optimizer


def _weights(net) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_rollback_puts_weights_and_optimizer_back_and_goes_on_with_pgd(held_out):
    sentinel = _scripted(held_out, [{}, MASKED, MASKED], on_collapse="rollback", rescue_warmup=7)
    step, net, optimizer = _trained(sentinel, 4)
    good = _weights(net)
    moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
    step, net, optimizer = _trained(sentinel, 4, step=step, net=net, optimizer=optimizer)
    assert [check.verdict for check in sentinel.history] == ["good", "suspect"]
    optimizer.param_groups[0]["lr"] = 0.5e-3  # the user's schedule
    with pytest.warns(TrainingWarning, match="collapse: .*0.0% under PGD-10 .best before 88.0%"):
        step, net, optimizer = _trained(sentinel, 1, step=step, net=net, optimizer=optimizer)
    assert _same(good, _weights(net))
    restored = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, restored, strict=True))
    assert optimizer.param_groups[0]["lr"] == 0.5e-3
    assert isinstance(step, training.PGDAT) and sentinel.rollbacks == 1
    assert (step.steps, step.eps_warmup, step.batches) == (5, 7, 0)


def test_a_suspect_is_looked_at_again_a_quarter_of_the_way_on(held_out):
    sentinel = _scripted(held_out, [MASKED, MASKED], every=8, on_collapse="warn")
    with pytest.warns(TrainingWarning, match="collapse"):
        _trained(sentinel, 10)
    assert [check.batch for check in sentinel.history] == [8, 10]


def test_a_training_loss_below_the_craft_loss_brings_the_check_forward(held_out):
    class Leaking(training.FastAT):
        def loss(self, *args, **more):
            loss = super().loss(*args, **more)
            self.train_loss = self.craft_loss - 0.1
            return loss

    sentinel = _scripted(held_out, [{}] * 4, every=8)
    _trained(sentinel, 8, step=Leaking(THREAT))
    assert [check.batch for check in sentinel.history] == [2, 4, 6, 8]


def test_stop_raises_with_the_last_good_weights_in_the_model(held_out):
    sentinel = _scripted(held_out, [{}, MASKED, MASKED], on_collapse="stop")
    step, net, optimizer = _trained(sentinel, 4)
    good = _weights(net)
    with pytest.raises(Collapse, match="last good weights are back") as caught:
        _trained(sentinel, 8, step=step, net=net, optimizer=optimizer)
    assert caught.value.code == "collapse"
    assert _same(good, _weights(net))


def test_warn_says_it_once_and_changes_nothing(held_out):
    sentinel = _scripted(held_out, [MASKED] * 5, on_collapse="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step, *_ = _trained(sentinel, 12)
    assert [w.category for w in caught] == [TrainingWarning]
    assert isinstance(step, training.FastAT)


def test_nan_is_seen_at_the_next_look_and_rolled_back(held_out):
    sentinel = _scripted(held_out, [dict(train_loss=math.nan)], every=8, on_collapse="rollback")
    step, net, optimizer = _trained(sentinel, 1)
    beginning = _weights(net)
    with torch.no_grad():
        net[0].weight.fill_(math.nan)
    with pytest.warns(TrainingWarning, match="nan: the training loss is not finite after batch 2"):
        _trained(sentinel, 1, step=step, net=net, optimizer=optimizer)
    assert _same(beginning, _weights(net))


def test_three_rollbacks_are_the_most(held_out):
    sentinel = _scripted(held_out, [dict(train_loss=math.nan)] * 4, every=1, on_collapse="rollback")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        step, net, optimizer = _trained(sentinel, 3)
    assert sentinel.rollbacks == 3
    with pytest.raises(Collapse, match="nan"):
        _trained(sentinel, 1, step=step, net=net, optimizer=optimizer)


def test_the_gate_at_the_end_sends_a_weak_network_to_the_rescue(held_out):
    sentinel = _scripted(held_out, [{}, dict(pgd=0.7), {}], on_collapse="rollback", floor=0.8)
    step, net, optimizer = _trained(sentinel, 4)
    with pytest.warns(TrainingWarning, match="weak: 70 % under PGD-10 is below the floor of 80 % "):
        rescue = sentinel.finish(step, net, optimizer)
    assert isinstance(rescue, training.PGDAT)
    assert sentinel.finish(rescue, net, optimizer) is rescue


def test_accuracies_are_those_of_the_attacks_they_name(held_out):
    x, y = held_out
    net = digits_net()
    _trained(Sentinel(THREAT, x, y, every=1000), 40, net=net)
    check = Sentinel(THREAT, x, y, every=1, batch_size=33).examine(net)
    single = fastadv.pgd(THREAT, steps=1, step_size=0.125, clamp_start=False)
    many = fastadv.pgd(THREAT, steps=10, step_size=0.025)
    for attack, accuracy in ((single, check.single_step), (many, check.pgd)):
        fallen = [
            attack.run(net, x[i], y[i], sample_ids=i).success for i in torch.arange(100).split(33)
        ]
        assert accuracy == pytest.approx(1 - torch.cat(fallen).double().mean().item())
    net.eval()
    predictions = net(x).argmax(1)
    assert check.clean == pytest.approx((predictions == y).double().mean().item())
    assert check.one_class == pytest.approx(predictions.bincount().max().item() / 100)
    assert 0 < check.pgd < check.single_step < check.clean


def test_watching_changes_no_bit_of_training(held_out):
    _, watched, _ = _trained(Sentinel(THREAT, *held_out, every=3, patience=9), 9)
    _, alone, _ = _trained(Sentinel(THREAT, *held_out, every=1000), 9)
    assert _same(_weights(watched), _weights(alone))


def test_a_restored_sentinel_goes_on_as_the_one_that_was_saved(held_out, tmp_path):
    first = _scripted(held_out, [{}, MASKED], on_collapse="rollback")
    step, net, optimizer = _trained(first, 8)
    torch.save(first.state_dict(), tmp_path / "sentinel.pt")
    good = first.state_dict()["good"]["model"]
    second = _scripted(held_out, [MASKED], on_collapse="rollback")
    second.load_state_dict(torch.load(tmp_path / "sentinel.pt", weights_only=True))
    assert second.history == first.history
    with pytest.warns(TrainingWarning, match="collapse"):
        _trained(second, 1, step=step, net=net, optimizer=optimizer)
    assert _same(good, _weights(net)) and second.history[-1].batch == 9


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(every=0), "every must be an integer of at least 1; got 0"),
        (dict(on_collapse="panic"), "on_collapse must be one of .*'panic'"),
        (dict(floor=88.0), r"floor must lie in \[0, 1\); got 88.0"),
        (dict(patience=0), "patience must be an integer of at least 1"),
    ],
)
def test_bad_settings_are_named(held_out, settings, message):
    with pytest.raises(ValueError, match=message):
        Sentinel(THREAT, *held_out, **{"every": 10, **settings})


def test_held_out_samples_are_checked_like_a_batch(held_out):
    with pytest.raises(ValueError, match="x must lie in bounds"):
        Sentinel(THREAT, held_out[0] * 255, held_out[1], every=10)


def test_weights_that_are_not_finite_are_never_the_last_good_ones(held_out):
    sentinel = Sentinel(THREAT, *held_out, every=4, on_collapse="rollback")
    net = digits_net()
    optimizer = torch.optim.Adam(net.parameters())
    with torch.no_grad():
        net[0].weight.fill_(math.inf)
    with pytest.raises(Collapse, match="not finite, .*sentinel.keep.model, optimizer. before"):
        sentinel.watch(training.FastAT(THREAT), net, optimizer)


def test_held_out_samples_of_one_class_are_refused(held_out):
    x, y = held_out
    with pytest.raises(ValueError, match="y must hold samples of several classes"):
        Sentinel(THREAT, x[y == 3], y[y == 3], every=10)


def test_the_gate_at_the_end_attacks_from_five_starts(held_out):
    seen = []

    class Spied(Sentinel):
        def examine(self, model, **more):
            seen.append(more)
            return super().examine(model, **more)

    net = digits_net()
    sentinel = Spied(THREAT, *held_out, every=10, floor=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        sentinel.finish(training.FastAT(THREAT), net, torch.optim.Adam(net.parameters()))
    assert seen == [{"restarts": 5}]


def test_each_rescue_warms_up_for_longer_and_keeps_the_modifiers(held_out):
    sentinel = Sentinel(THREAT, *held_out, every=10, rescue_warmup=7)
    step = training.FastAT(THREAT, bn="eval", modifiers=[training.AWP(0.005)])
    warmups = []
    for sentinel.rollbacks in (1, 2, 3):
        rescue = sentinel.rescue_step(step)
        warmups.append(rescue.eps_warmup)
    assert warmups == [7, 14, 21]
    assert rescue.bn == "eval" and rescue.modifiers == [training.AWP(0.005)]
