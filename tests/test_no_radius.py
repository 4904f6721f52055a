"""Threat models without a radius: what they say, and who refuses them by name."""

import math

import pytest
import torch
from toy_models import mixed_problem

import fastadv
from fastadv.data import to_unit_interval
from fastadv.recipes.published import recipe

MAKES = (fastadv.Linf, fastadv.L2, fastadv.L1)
ELEMENTS = (torch.tensor([[0.0, 0.25, 0.5]]), torch.tensor([[1.0, 0.75, 0.5]]))


@pytest.mark.parametrize("make", MAKES)
def test_infinity_is_no_radius_and_is_written_as_none(make):
    bounded = make(bounds=(-1.0, 2.0))
    assert make() == make(math.inf) == make(eps=torch.inf) and make() != make(0.5)
    assert repr(make(math.inf)) == f"fastadv.{make.__name__}()"
    assert eval(repr(make())) == make() and eval(repr(bounded)) == bounded
    assert hash(make()) == hash(make(math.inf))


@pytest.mark.parametrize("make", MAKES)
def test_every_point_in_bounds_is_contained(make):
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    x_adv = 1 - x
    x_adv[1, 2], x_adv[2, 0] = 1.001, math.nan
    assert fastadv.contains(make(), x_adv, x).tolist() == [True, False, False, True]
    wide = make(bounds=None)
    assert fastadv.contains(wide, x_adv * 100, x).tolist() == [True, True, False, True]
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[make.norm]
    wanted = torch.linalg.vector_norm(x_adv[::3].double() - x[::3].double(), order, dim=1)
    assert torch.allclose(make().distance(x_adv[::3], x[::3]), wanted, rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", MAKES)
def test_projecting_goes_into_bounds_and_no_further(make, dtype):
    x = torch.full((5, 3), 0.5, dtype=dtype)
    far = torch.linspace(-2, 3, 15).reshape(5, 3).to(dtype)
    before = far.clone()
    assert torch.equal(make().project(far, x), far.clamp(0, 1))
    assert torch.equal(make(bounds=None).project(far, x), far)
    lo, hi = (side.to(dtype) for side in ELEMENTS)
    assert torch.equal(make(bounds=(lo, hi)).project(far, x), far.maximum(lo).minimum(hi))
    assert torch.equal(far, before)


def test_bytes_are_the_nearest_ones():
    x = to_unit_interval(torch.arange(0, 240, dtype=torch.uint8).view(2, -1))
    x_adv = (x + 0.7 / 255).clamp(max=1)
    wanted = (x_adv.double() * 255).round().to(torch.uint8)
    for make in MAKES:
        assert torch.equal(fastadv.to_uint8(x_adv, x, make()), wanted)


_X, _Y = torch.full((4, 3), 0.5), torch.arange(4) % 2
_REFUSED = {
    "fgsm": fastadv.fgsm,
    "rfgsm": fastadv.rfgsm,
    "bim": fastadv.bim,
    "pgd": fastadv.pgd,
    "mifgsm": fastadv.mifgsm,
    "apgd_ce": fastadv.apgd_ce,
    "apgd_dlr": fastadv.apgd_dlr,
    "apgd_t": fastadv.apgd_t,
    "square": fastadv.square,
    "autoattack": fastadv.autoattack,
    "FastAT": fastadv.training.FastAT,
    "PGDAT": fastadv.training.PGDAT,
    "TRADES": fastadv.training.TRADES,
    "FreeAT": fastadv.training.FreeAT,
    "a Sentinel": lambda threat: fastadv.training.Sentinel(threat, _X, _Y, every=9),
    "a random start": lambda threat: fastadv.start_point(threat, _X, seed=0),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_needs_a_radius_says_so_by_its_name(name):
    with pytest.raises(ValueError, match=rf"^{name} needs a radius, which fastadv.Linf\(\) has"):
        _REFUSED[name](fastadv.Linf())


def test_recipes_need_a_radius():
    with pytest.raises(ValueError, match="a Recipe needs a radius"):
        recipe("mnist", "fast", eps=math.inf)


def test_curves_need_radii_and_take_an_attack_without_one():
    problem = mixed_problem(6)
    data, attack = (problem.x, problem.y), fastadv.fab(fastadv.L2(), steps=3)
    with pytest.raises(ValueError, match="an infinite one is given alone"):
        fastadv.robustness_curve(problem.model, data, attack, eps=[0.1, math.inf], progress=False)
    curve = fastadv.robustness_curve(problem.model, data, attack, eps=[0.1], progress=False)
    own = fastadv.fab(fastadv.L2(0.1), steps=3).run(problem.model, problem.x, problem.y)
    assert curve.robust[:, 0].tolist() == (~own.success).tolist()


def test_random_starts_of_fab_need_a_radius():
    with pytest.raises(ValueError, match=r"restarts=2 begin within eps / 2, but fastadv.L1\(\)"):
        fastadv.fab(fastadv.L1(), restarts=2)
