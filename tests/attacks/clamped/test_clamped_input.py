"""Models that clamp their input: the same robust accuracy as without the clamp, on any torch."""

import copy

import pytest
import torch
from clamped_runs import ATTACKS, STEPS, N, assert_alike, digits, found_bare, run
from clamping_models import FORMS, Behind, clamping, trained
from toy_models import differing_fields, same_bits

import fastadv
from benchmarks.clamping.rules import clamp_rule
from fastadv.diagnostics import AttackWarning

# one of each family, for what does not differ from member to member
_FAMILIES = ("fgsm", "pgd", "apgd_ce", "fab_t", "autoattack")


@pytest.mark.parametrize(
    ("form", "rule", "name"),
    [("clamp", "new", name) for name in ATTACKS]
    + [("hardtanh", "old", name) for name in ATTACKS]
    + [("clamp", "old", name) for name in _FAMILIES]
    + [("inside Normalized", "new", name) for name in _FAMILIES],
)
def test_every_attack_finds_what_it_finds_without_the_clamp(form, rule, name):
    x, y = digits()
    bare = found_bare(name)
    assert 20 < int(bare.success.sum()) < N - 20
    model, lossy = clamping(form, trained())
    with clamp_rule(rule):
        result, codes = run(ATTACKS[name], model, x, y)
    assert_alike(result, codes, bare, rule in lossy)


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_clamp_is_seen_through(form, clamp_rule_in_force, looks):
    x, y = digits()
    model, lossy = clamping(form, trained())
    lost = clamp_rule_in_force in lossy
    for name in ("fgsm", "pgd, l2"):
        looks.clear()
        result, codes = run(ATTACKS[name], model, x, y)
        assert_alike(result, codes, found_bare(name), lost)
        assert len(looks) == lost


@pytest.mark.parametrize("form", ["clamp", "hardtanh"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm", "pgd, l2", "apgd_ce", "fab_t"])
def test_without_the_mend_the_clamp_costs_the_attack_its_strength(name, form):
    """Else the tests above could not fail."""
    model, _ = clamping(form, trained())
    with clamp_rule("new"):
        how = fastadv.Execution(inset=0.0)
        blind, codes = run(ATTACKS[name], model, *digits(), execution=how)
    assert codes == [] and blind.inset == 0.0
    assert int(blind.success.sum()) < int(found_bare(name).success.sum()) - 3


def test_what_is_returned_is_the_iterate_itself_not_the_point_moved_inside():
    net = trained().double()
    try:
        x, y = digits()
        x = x.double()
        model, _ = clamping("hardtanh", net)
        for attack in (ATTACKS["fgsm"], ATTACKS["pgd, last"], ATTACKS["mifgsm"]):
            bare, _ = run(attack, net, x, y)
            result, codes = run(attack, model, x, y)
            assert codes == ["clamped_input"]
            assert same_bits(result.x_adv, bare.x_adv)  # in L-infinity only signs count
            assert bool((result.x_adv == 0).any()) and bool((result.x_adv == 1).any())
            torch.testing.assert_close(result.loss, bare.loss, rtol=1e-12, atol=1e-12)
            assert torch.equal(result.step, bare.step)
    finally:
        net.float()


@pytest.mark.parametrize(
    "how",
    [
        dict(precision="bf16"),
        dict(precision="bf16", channels_last=True, final_pass=True),
        dict(channels_last=True),
    ],
    ids=str,
)
def test_a_fast_search_is_mended_too(how):
    x, y = digits(64)
    model, _ = clamping("hardtanh", trained())
    how = fastadv.Execution(batch_size=32, **how)
    for name in ("pgd", "apgd_ce", "fab_t"):
        bare, _ = run(ATTACKS[name], trained(), x, y, execution=how)
        result, codes = run(ATTACKS[name], model, x, y, execution=how)
        assert codes == ["clamped_input"] and result.inset > 0
        # half precision answers otherwise where the last bits do
        assert int((result.success != bare.success).sum()) <= (3 if how.precision == "bf16" else 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_mended_too(dtype):
    """Moved by a rounding of theirs, which is more than 1e-6 of the range."""
    x, y = digits()
    net = copy.deepcopy(trained()).to(dtype)
    model, _ = clamping("hardtanh", net)
    for name in ("fgsm", "pgd", "apgd_ce"):
        bare, _ = run(ATTACKS[name], net, x.to(dtype), y)
        result, codes = run(ATTACKS[name], model, x.to(dtype), y)
        assert codes == ["clamped_input"]
        assert int((result.success != bare.success).sum()) <= 2


def test_recorded_steps_are_mended_too(tapes):
    x, y = digits(30)
    model, _ = clamping("hardtanh", trained())
    for name in ("pgd", "apgd_ce", "pgd, last", "fab_t"):
        how = fastadv.Execution(cuda_graph=False)
        eager, _ = run(ATTACKS[name], model, x, y, execution=how)
        for _ in range(2):
            replayed, codes = run(ATTACKS[name], model, x, y)
            assert codes == ["clamped_input"]
            assert differing_fields(eager, replayed) == []
    assert tapes[0].replayed > tapes[0].captured > 0


def test_targets_and_radii_of_samples_are_mended_too():
    x, y = digits()
    model, _ = clamping("hardtanh", trained())
    eps = torch.linspace(0.05, 0.3, N)
    for make in (fastadv.pgd, fastadv.apgd_ce):
        attack = make(fastadv.Linf(eps), **STEPS)
        bare, _ = run(attack, trained(), x, y, target="second_best")
        result, codes = run(attack, model, x, y, target="second_best")
        assert_alike(result, codes, bare, True)


def test_calls_without_a_result_warn_as_well():
    x, y = digits(40)
    model, _ = clamping("hardtanh", trained())
    with pytest.warns(AttackWarning, match="clamped_input: 40 of 40 samples") as caught:
        x_adv = ATTACKS["pgd, last"](model, x, y)
    assert len(caught) == 1
    assert int((trained()(x_adv).argmax(1) != y).sum()) > 10


def test_other_bounds_and_none():
    x, y = digits()
    scaled = Behind(lambda x: x / 255, trained())
    model = Behind(lambda x: torch.nn.functional.hardtanh(x, 0, 255), scaled)
    attack = fastadv.pgd(fastadv.Linf(0.12 * 255, bounds=(0, 255)), **STEPS)
    bare, _ = run(attack, scaled, 255 * x, y)
    result, codes = run(attack, model, 255 * x, y)
    assert_alike(result, codes, bare, True)
    assert 0 < result.inset <= 1e-6 * 255
    free = fastadv.pgd(fastadv.Linf(0.12, bounds=None), **STEPS)
    assert run(free, clamping("hardtanh", trained())[0], x, y)[0].inset == 0.0


def test_bounds_far_from_zero_are_moved_by_one_rounding_there():
    x, y = digits()
    far = Behind(lambda z: z - 100, trained())
    model = Behind(lambda z: torch.nn.functional.hardtanh(z, 100, 101), far)
    attack = fastadv.pgd(fastadv.Linf(0.12, bounds=(100, 101)), **STEPS)
    bare, _ = run(attack, far, 100 + x, y)
    result, codes = run(attack, model, 100 + x, y)
    assert_alike(result, codes, bare, True)


def test_an_inset_that_makes_no_sense_is_refused_and_one_that_is_given_is_used():
    x, y = digits(20)
    for value in (True, -1.0, float("inf"), "auto"):
        with pytest.raises(ValueError, match="inset must be None or a number of at least 0; got"):
            fastadv.Execution(inset=value)
    with pytest.raises(ValueError, match="inset must be less than half of the range of bounds"):
        ATTACKS["pgd"].run(trained(), x, y, execution=fastadv.Execution(inset=0.5))
    given = fastadv.Execution(inset=1e-6)
    model, _ = clamping("hardtanh", trained())
    result, codes = run(ATTACKS["pgd"], model, x, y, execution=given)
    assert codes == [] and result.inset == 1e-6  # nothing was found: it was asked for
    assert torch.equal(result.success, run(ATTACKS["pgd"], trained(), x, y)[0].success)
    free = fastadv.pgd(fastadv.Linf(0.12, bounds=None), **STEPS)
    assert run(free, trained(), x, y, execution=given)[0].inset == 0.0
