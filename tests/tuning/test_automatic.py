"""execution="auto": measured once for a model and a shape, recorded, and then given to the call."""

import gc
import weakref

import pytest
import torch
from costly import Costly, by_rows, fake_time, samples
from toy_models import differing_fields

import fastadv
from fastadv.attacks import automatic
from fastadv.oracle import pass_size

THREAT = fastadv.Linf(0.1)


@pytest.fixture
def clock(monkeypatch):
    torch.manual_seed(0)
    yield fake_time(monkeypatch)
    fastadv.release()


@pytest.fixture
def measured(monkeypatch):
    """The calls that were measured."""
    calls, own = [], automatic.measured

    def count(*args, **more):
        calls.append(more)
        return own(*args, **more)

    monkeypatch.setattr(automatic, "measured", count)
    return calls


def _model(clock, best=8):
    return Costly(clock, by_rows(best)).eval()


def test_the_result_says_what_was_found_and_is_that_of_it(clock):
    model, attack = _model(clock), fastadv.pgd(THREAT, steps=4)
    found = attack.run(model, samples(), execution="auto")
    assert found.execution == fastadv.Execution(batch_size=8)
    assert differing_fields(attack.run(model, samples(), execution=found.execution), found) == []
    # the search is exact: no batch size changes a bit
    assert torch.equal(attack(model, samples()), found.x_adv)


def test_what_is_given_is_recorded_too(clock):
    given = fastadv.Execution(batch_size=5)
    result = fastadv.fgsm(THREAT).run(_model(clock), samples(), execution=given)
    assert result.execution == given
    assert fastadv.fgsm(THREAT).run(_model(clock), samples()).execution == fastadv.Execution()


def test_a_model_is_measured_once_for_a_shape(clock, measured):
    model, attack = _model(clock), fastadv.pgd(THREAT, steps=2, keep="last")
    for n in (20, 20, 3):
        attack(model, samples(n), execution="auto")
    assert len(measured) == 1
    attack(model, samples(24), execution="auto")  # larger batches might be faster
    assert len(measured) == 2
    attack(_model(clock), samples(), execution="auto")
    assert len(measured) == 3
    fastadv.release()
    attack(model, samples(), execution="auto")
    assert len(measured) == 4


def test_what_is_kept_does_not_keep_the_model(clock):
    model = _model(clock)
    fastadv.fgsm(THREAT).run(model, samples(), execution="auto")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_only_looks_is_measured_as_that(clock, measured):
    fastadv.square(THREAT, queries=2).run(_model(clock), samples(), execution="auto")
    fastadv.fgsm(THREAT).run(_model(clock), samples(), execution="auto")
    attacks = [
        fastadv.pgd(THREAT, steps=2, keep="first_success"),
        fastadv.square(THREAT, queries=2),
    ]
    ensemble = fastadv.autoattack(THREAT, "custom", attacks=attacks)
    result = ensemble.run(_model(clock), samples(), execution="auto")
    assert result.execution == fastadv.Execution(batch_size=8)
    uses = [call["uses"] for call in measured]
    assert uses == [("forward",), ("gradient",), ("forward", "gradient")]


def test_the_authors_iterates_are_those_of_the_model_itself(clock):
    def cost(x, model):
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        return len(x) * (0.5e-4 if is_last else 1e-4)

    model = Costly(clock, cost).eval()
    assert fastadv.fgsm(THREAT).run(model, samples(), execution="auto").execution.channels_last
    attack = fastadv.apgd_ce(THREAT, steps=3, keep="authors")
    assert attack.run(model, samples(), execution="auto").execution.is_exact


def test_a_stream_takes_it_too(clock, measured):
    model, stream = _model(clock), fastadv.pgd(THREAT, steps=2).streaming()
    parts = [stream.run(model, samples()[k : k + 10], execution="auto") for k in (0, 10)]
    assert len(measured) == 1 and stream.seen == 20
    whole = fastadv.pgd(THREAT, steps=2)(model, samples())
    assert torch.equal(torch.cat([part.x_adv for part in parts]), whole)


def test_no_samples_need_no_measurement(clock, measured):
    result = fastadv.fgsm(THREAT).run(_model(clock), samples()[:0], execution="auto")
    assert len(result.x_adv) == 0 and measured == []


@pytest.mark.parametrize("execution", ["fast", 3, True])
def test_anything_else_is_refused(clock, execution):
    with pytest.raises(TypeError, match="execution must be"):
        fastadv.fgsm(THREAT).run(_model(clock), samples(), execution=execution)


def test_a_wrong_input_is_named_before_anything_is_measured(clock, measured):
    with pytest.raises(ValueError, match="x must lie in bounds"):
        fastadv.fgsm(THREAT).run(_model(clock), samples() + 5, execution="auto")
    with pytest.raises(TypeError, match="model must be callable"):
        fastadv.fgsm(THREAT).run(3, samples(), execution="auto")
    assert measured == []


def _splits_into(monkeypatch, rows):
    monkeypatch.setattr(pass_size, "may_split", lambda model, x: True)
    monkeypatch.setattr(pass_size, "looked_at", lambda model, x, extra: (model(x, *extra), rows))


def test_the_default_is_that_of_a_call_that_does_not_say(clock, monkeypatch):
    _splits_into(monkeypatch, 8)  # 20 samples in three parts
    assert fastadv.tune(_model(clock, 7), samples()) == fastadv.Execution()
    found = fastadv.fgsm(THREAT).run(_model(clock, 7), samples(), execution="auto")
    assert found.execution.batch_size is None
    # all at once is not the default, and is written out where it is the fastest
    assert fastadv.tune(_model(clock, 20), samples()).batch_size in (16, 32)


def test_an_ensemble_holds_as_many_slots_as_are_fast_by_default(clock, measured, monkeypatch):
    _splits_into(monkeypatch, 6)
    ensemble = fastadv.autoattack(THREAT, "custom", attacks=[fastadv.apgd_ce(THREAT, steps=2)])
    result = ensemble.run(_model(clock, 6), samples(), execution="auto")
    assert measured[0]["rows"](6) == 6 and measured[0]["rows"](500) == 20
    assert result.execution.batch_size == 6
