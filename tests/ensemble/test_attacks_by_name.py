"""`fastadv.autoattack(threat, "custom", attacks=["apgd-ce"])`: attacks by their names."""

import pytest

import fastadv

THREAT = fastadv.L2(0.5)


def test_a_name_is_that_attack_at_its_defaults_with_the_seed_of_the_ensemble():
    named = fastadv.autoattack(THREAT, "custom", attacks=["apgd-ce", "FAB-T", "square"], seed=3)
    made = [make(THREAT, seed=3) for make in (fastadv.apgd_ce, fastadv.fab_t, fastadv.square)]
    assert named == fastadv.autoattack(THREAT, "custom", attacks=made, seed=3)
    mixed = fastadv.autoattack(THREAT, "custom", attacks=[fastadv.pgd(THREAT), "apgd_t"])
    assert mixed.attacks == (fastadv.pgd(THREAT), fastadv.apgd_t(THREAT))


def test_a_name_that_no_attack_has_is_answered_by_those_there_are():
    with pytest.raises(ValueError, match=r"attacks\[1\] must be an attack or one of .*apgd_ce"):
        fastadv.autoattack(THREAT, "custom", attacks=["apgd-ce", "boundary"])
    with pytest.raises(TypeError, match=r"attacks must be a list of .* or attacks=\[\"apgd-ce\"\]"):
        fastadv.autoattack(THREAT, "custom", attacks="apgd-ce")  # type: ignore[arg-type]
