"""`fastadv.autoattack` as an object and on any input: versions, repr, seeds, classes, isolation."""

import dataclasses
import pickle
import time
import warnings

import pytest
import torch
from members import custom_ensemble, member_problem, small
from toy_models import NORMS, Counting, FailingAt, differing_fields, mixed_problem, threat_of

import fastadv

_VERSIONS = ("standard", "plus", "rand")


@pytest.mark.parametrize("norm", NORMS)
def test_the_repr_can_be_pasted_back(norm):
    threat = threat_of(norm)
    every = [fastadv.autoattack(threat, version) for version in _VERSIONS]
    every += [
        fastadv.autoattack(threat, keep="authors", seed=None),
        fastadv.autoattack(threat, seed=5),
        custom_ensemble(norm),
        custom_ensemble(norm, threat=type(threat)(torch.tensor([0.1, 0.25]), bounds=None)),
    ]
    for ensemble in every:
        copy = eval(repr(ensemble), {"fastadv": fastadv, "torch": torch})
        assert copy == ensemble and repr(copy) == repr(ensemble) and hash(copy) == hash(ensemble)
        assert pickle.loads(pickle.dumps(ensemble)) == ensemble
    assert len(set(every)) == len(every)
    assert every[0] == fastadv.autoattack(threat) and every[0] != every[1]
    assert repr(every[0]) == f"fastadv.autoattack({threat!r})"


def test_the_versions_are_those_of_the_authors():
    def names(version, threat):
        return [a.constructor for a in fastadv.autoattack(threat, version).attacks]

    linf, l1 = fastadv.Linf(8 / 255), fastadv.L1(12.0)
    assert names("standard", linf) == ["apgd_ce", "apgd_t", "fab_t", "square"]
    assert names("standard", l1) == names("standard", linf)
    assert names("plus", linf) == ["apgd_ce", "apgd_dlr", "fab", "square", "apgd_t", "fab_t"]
    assert names("rand", linf) == ["apgd_ce", "apgd_dlr"]
    ce, t, fab_t, square = fastadv.autoattack(linf).attacks
    assert (ce.restarts, ce.steps, t.n_target_classes, fab_t.n_target_classes) == (1, 100, 9, 9)
    assert square.queries == 5000
    ce, t, _, _ = fastadv.autoattack(l1).attacks
    assert (ce.restarts, ce.large_radii, t.n_target_classes, t.large_radii) == (5, True, 5, True)
    assert all(a.eot == 20 for a in fastadv.autoattack(linf, "rand").attacks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(version="strong"), "version"),
        (dict(keep="best"), "keep"),
        (dict(seed=1.5), "seed"),
        (dict(version="custom"), "at least one"),
        (dict(attacks=[fastadv.fab(fastadv.Linf(0.1))]), "custom"),
        (dict(version="custom", attacks=[fastadv.fab(fastadv.Linf(0.2))]), "threat"),
        (dict(version="custom", attacks=[fastadv.fab(fastadv.Linf(0.1), keep="best")]), "keep"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fastadv.autoattack(fastadv.Linf(0.1), **arguments)


@pytest.mark.parametrize("version", _VERSIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_version_breaks_and_verifies(norm, version):
    p = member_problem(20)
    ensemble = small(fastadv.autoattack(threat_of(norm, 0.8), version))
    result = ensemble.run(p.model, p.x, p.y)
    assert result.success.any() and (result.step > 0).any()
    assert torch.equal(result.success, p.model(result.x_adv).argmax(1) != p.y)
    assert fastadv.contains(ensemble.threat, result.x_adv, p.x).all()
    assert torch.equal(ensemble(p.model, p.x, p.y), result.x_adv)


def test_without_labels_the_predictions_are_attacked():
    p, ensemble = member_problem(12), custom_ensemble("linf")
    y = p.model(p.x).argmax(1)
    assert differing_fields(ensemble.run(p.model, p.x), ensemble.run(p.model, p.x, y)) == []


def test_square_refuses_vectors_before_anything_is_run():
    p = mixed_problem(6, (75,))
    model = Counting(p.model)
    for ensemble in (fastadv.autoattack(fastadv.Linf(0.1)), custom_ensemble("linf")):
        with pytest.raises(ValueError, match="Square"):
            ensemble.run(model, p.x, p.y)
    assert model.calls == 0
    threat = threat_of("linf")
    attacks = [a for a in custom_ensemble("linf").attacks if a.constructor != "square"]
    without = fastadv.autoattack(threat, "custom", attacks=attacks)
    result = without.run(model, p.x, p.y)
    assert result.success.any()


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 7, 12), (1, 19, 19)], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_images_of_every_size(norm, shape):
    p = mixed_problem(6, shape)
    result = custom_ensemble(norm, scale=1.5).run(p.model, p.x, p.y)
    assert torch.equal(result.success, p.model(result.x_adv).argmax(1) != p.y)
    assert result.success.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_every_dtype(norm, dtype):
    p, ensemble = member_problem(16, dtype=dtype), custom_ensemble(norm)
    result = ensemble.run(p.model, p.x, p.y)
    assert result.x_adv.dtype == dtype and (result.step > 0).any()
    assert torch.equal(result.success, p.model(result.x_adv).argmax(1) != p.y)


@pytest.mark.parametrize("norm", NORMS)
def test_modes_and_layouts_change_no_verdict(norm):
    p, ensemble = member_problem(16), custom_ensemble(norm, scale=0.7)
    expected = ensemble.run(p.model, p.x, p.y)
    for mode in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")):
        with mode():
            result = ensemble.run(p.model, p.x.clone(), p.y.int())
        assert differing_fields(result, expected) == []
    x = p.x.contiguous(memory_format=torch.channels_last)
    result = ensemble.run(p.model, x, p.y)
    assert torch.equal(result.success, expected.success)
    assert result.x_adv.stride() == x.stride()


@pytest.mark.parametrize(("classes", "switched"), [(2, 2), (3, 1), (4, 0), (1000, 0)])
def test_with_few_classes_the_margin_loss_is_used_and_warned_of(classes, switched):
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(classes, 90, generator=generator) / 10
    x = torch.rand(6, 3, 5, 6, generator=generator)
    threat = fastadv.Linf(1e-3)
    ensemble = fastadv.autoattack(
        threat,
        "custom",
        attacks=[
            fastadv.apgd_dlr(threat, steps=2),
            fastadv.apgd_t(threat, steps=2),
            fastadv.fab_t(threat, steps=2),
            fastadv.square(threat, queries=2),
        ],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ensemble.run(lambda z: z.flatten(1) @ weight.t(), x)
    assert [w.message.code for w in caught] == ["few_classes"] * min(switched, 1)
    assert all(w.message.count > 0 for w in caught)
    assert ["margin" in stage.attack for stage in result.stages[:2]] == [
        classes < 3,
        classes < 4,
    ]
    assert [stage.name for stage in result.stages] == ["APGD-DLR", "APGD-T", "FAB-T", "SQUARE"]
    for stage in result.stages:  # what was run, not what was asked for
        assert repr(eval(stage.attack, {"fastadv": fastadv})) == stage.attack


def test_the_margin_loss_in_place_of_dlr_is_that_of_the_untargeted_attack():
    p = member_problem(20, classes=2)
    threat = threat_of("linf", 0.6)
    dlr = fastadv.apgd_dlr(threat, steps=5, restarts=2)
    with pytest.warns(fastadv.AttackWarning, match="few_classes"):
        result = fastadv.autoattack(threat, "custom", attacks=[dlr]).run(p.model, p.x, p.y)
    alone = dataclasses.replace(dlr, loss="margin").run(p.model, p.x, p.y)
    assert (result.step > 0).any() and not result.success.all()
    assert torch.equal(result.step, alone.step)
    assert torch.equal(result.x_adv[alone.success], alone.x_adv[alone.success])


def test_no_sample_and_one_sample():
    p, ensemble = member_problem(6), custom_ensemble("linf")
    none = ensemble.run(p.model, p.x[:0], p.y[:0])
    assert none.x_adv.shape == (0, 3, 5, 6) and none.success.shape == (0,)
    assert (none.forwards, none.backwards) == (0, 0)
    one = ensemble.run(p.model, p.x[1:2], p.y[1:2])
    assert one.success.shape == (1,) and one.broken_by.shape == (1,)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), None], ids=str)
def test_other_bounds(bounds):
    lo, hi = bounds or (-3.0, 3.0)
    p = member_problem(12)
    x = lo + (hi - lo) * p.x
    threat = fastadv.Linf(0.05 * (hi - lo), bounds=bounds)
    result = custom_ensemble("linf", threat=threat).run(
        lambda z: p.model((z - lo) / (hi - lo)), x, p.y
    )
    assert (result.step > 0).any() and fastadv.contains(threat, result.x_adv, x).all()


def test_no_seed_is_another_in_each_run_and_one_within(monkeypatch):
    p = member_problem(12)
    clock = iter(range(10**9, 10**9 + 100))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    threat = threat_of("linf", 0.8)
    ensemble = small(fastadv.autoattack(threat, seed=None))
    given = [
        dataclasses.replace(
            ensemble,
            seed=10**9 + i,
            attacks=tuple(dataclasses.replace(a, seed=10**9 + i) for a in ensemble.attacks),
        )
        for i in range(2)
    ]
    runs = [ensemble.run(p.model, p.x, p.y) for _ in range(2)]
    assert differing_fields(runs[0], runs[1]) != []
    for run, attack in zip(runs, given, strict=True):
        assert differing_fields(run, attack.run(p.model, p.x, p.y)) == []


@pytest.mark.parametrize("call", [0, 2, 7, 40])
def test_everything_is_as_it_was_after_an_error(call):
    p = member_problem(12)
    weights = [w.tolist() for w in p.model.parameters()]
    p.model.train()
    state, flags = torch.get_rng_state(), [w.requires_grad for w in p.model.parameters()]
    model = FailingAt(p.model, call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        custom_ensemble("linf", scale=0.6).run(model, p.x, p.y)
    assert p.model.training and torch.equal(torch.get_rng_state(), state)
    assert [w.requires_grad for w in p.model.parameters()] == flags
    assert all(w.grad is None for w in p.model.parameters())
    assert [w.tolist() for w in p.model.parameters()] == weights
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def test_evaluate_collects_the_warnings():
    p = member_problem(20, classes=3)
    threat = threat_of("linf", 0.6)
    attacks = [fastadv.apgd_t(threat, steps=3), fastadv.fab_t(threat, steps=2)]
    ensemble = fastadv.autoattack(threat, "custom", attacks=attacks)
    with pytest.warns(fastadv.AttackWarning, match="few_classes"):
        report = fastadv.evaluate(p.model, (p.x, p.y), ensemble, batch_size=4)
    assert report.warnings.keys() == {"few_classes"}
    assert 0 < report.robust_accuracy < 1


@pytest.mark.parametrize("bad", [-1, 5])
def test_labels_out_of_range_are_an_error_not_a_success(bad):
    p = member_problem(6)
    y = p.y.clone()
    y[2] = bad
    with pytest.raises(ValueError, match=r"y must lie in \[0, 5\)"):
        custom_ensemble("linf").run(p.model, p.x, y)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(1, 40, 5), (2, 5, 31)])
def test_square_starts_on_images_of_any_proportion(shape, norm):
    p = member_problem(6, shape)
    threat = threat_of(norm, 2.0)
    ensemble = fastadv.autoattack(threat, "custom", attacks=[fastadv.square(threat, queries=30)])
    result = ensemble.run(p.model, p.x, p.y)
    moved = (result.x_adv != p.x).flatten(1).any(1)
    assert bool((moved == (result.step >= 0) & (result.broken_by >= 0)).all())


def test_images_too_small_for_square_are_refused_before_anything_is_run():
    p = member_problem(6, (3, 4, 4))

    def never(x):
        raise AssertionError("the model was called")

    with pytest.raises(ValueError, match="at least 5 x 5"):
        fastadv.autoattack(threat_of("l2")).run(never, p.x, p.y)
