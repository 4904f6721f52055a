"""Section A: scripted, traced, frozen and exported modules are attacked as what they record."""

import warnings

import pytest
import torch
from recorded_models import data, network, recorded
from toy_models import differing_fields, same_bits

import fastadv

THREAT = fastadv.Linf(0.1)
RECORDED = "recorded_in_training"


@pytest.fixture(autouse=True)
def torch_jit_may_be_deprecated():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def buffers_of(model):
    return [b.clone() for b in model.buffers()]


@pytest.mark.parametrize("how", ["script", "trace", "freeze", "export"])
def test_of_eval_mode_they_are_attacked_as_the_module(how):
    net, (x, y) = network(), data()
    model = recorded(how, network())
    before = buffers_of(model)
    # batch norm is folded into what is before it
    rounded = {"loss", "x_adv", "distance"} if how == "freeze" else set()
    for attack in (
        fastadv.pgd(THREAT, steps=3),
        fastadv.pgd(THREAT, steps=3, keep="last"),
        fastadv.apgd_dlr(THREAT, steps=3),
        fastadv.square(THREAT, queries=4),
    ):
        expected, found = attack.run(net, x, y), attack.run(model, x, y)
        assert {*differing_fields(found, expected)} <= rounded
    assert 0 < int(expected.success.sum()) < 12
    assert all(map(same_bits, model.buffers(), before))


@pytest.mark.parametrize("how", ["script", "freeze", "export"])
def test_they_are_evaluated_also_in_half_precision_and_from_a_checkpoint(how, tmp_path):
    net, (x, y) = network(), data()
    model = recorded(how, network())
    attack = fastadv.pgd(THREAT, steps=3)
    expected = fastadv.evaluate(net, (x, y), attack)
    for _ in range(2):
        found = fastadv.evaluate(model, (x, y), attack, checkpoint=tmp_path / "run.pt")
        assert found.robust_accuracy == expected.robust_accuracy < 1
    half = fastadv.Execution(precision="bf16")
    assert attack.run(model, x, y, execution=half).success.any()


def test_a_scripted_module_obeys_its_flag_and_keeps_it():
    x, y = data()
    model = recorded("script", network("train"))
    model.train()
    flags = [m.training for m in model.modules()]
    before = buffers_of(model)
    attack = fastadv.pgd(THREAT, steps=3)
    found = attack.run(model, x, y)
    assert differing_fields(found, attack.run(network(), x, y)) == []
    assert all(map(same_bits, model.buffers(), before))
    assert [m.training for m in model.modules()] == flags and all(flags)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("how", ["trace", "export"])
def test_what_was_recorded_in_train_mode_stays_in_it_which_is_said_and_moves_nothing(how):
    x, y = data()
    model = recorded(how, network("train"))
    before = buffers_of(model)
    with pytest.warns(fastadv.AttackWarning, match=f"{RECORDED}: 12 of 12 .* export model.eval"):
        fastadv.pgd(THREAT, steps=3, keep="last").run(model, x, y)
    assert all(map(same_bits, model.buffers(), before))
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fastadv.pgd(THREAT, steps=3, keep="last").run(lambda x: model(x).reshape(0, 3), x, y)
    assert all(map(same_bits, model.buffers(), before))  # after an error too


def test_only_what_was_recorded_in_train_mode_is_warned_of():
    models = [recorded(how, network()) for how in ("script", "trace", "freeze", "export")]
    models += [recorded("script", network("train")), network("train")]
    for model in models:
        with warnings.catch_warnings():
            warnings.simplefilter("error", fastadv.AttackWarning)
            fastadv.pgd(THREAT, steps=1, keep="last").run(model, *data())
    in_training = recorded("trace", network("train"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastadv.AttackWarning)  # "unconfirmed" too, by chance
        report = fastadv.evaluate(in_training, data(), fastadv.pgd(THREAT, steps=2))
    assert report.warnings.get(RECORDED) == 12
    pair = fastadv.fgsm(THREAT), fastadv.square(THREAT, queries=2)
    ensemble = fastadv.autoattack(THREAT, version="custom", attacks=pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fastadv.AttackWarning)
        report = fastadv.evaluate(
            in_training, data(), ensemble, execution=fastadv.Execution(batch_size=5)
        )
    assert report.warnings.get(RECORDED) == 12


def test_a_module_exported_for_one_size_is_one_tied_to_whole_batches():
    x, y = data()
    model = torch.export.export(network(), (x,)).module()
    attack = fastadv.pgd(THREAT, steps=3, keep="last")
    assert differing_fields(attack.run(model, x, y), attack.run(network(), x, y)) == []
    with pytest.raises((RuntimeError, AssertionError), match="(?s)exported for this size.*extra="):
        fastadv.pgd(THREAT, steps=3).run(model, x, (y + (torch.arange(12) == 3)) % 4)


def test_a_scripted_module_is_no_shadow_copy():
    execution = fastadv.Execution(channels_last=True)
    for how in ("script", "trace"):
        with pytest.raises(ValueError, match="it was scripted or traced, so that torch copies"):
            fastadv.pgd(THREAT, steps=1).run(recorded(how, network()), *data(), execution=execution)
