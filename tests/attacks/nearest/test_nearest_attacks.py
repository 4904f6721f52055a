"""Searches for the nearest point: closed forms, what is returned without a radius, peers' ways."""

import math

import pytest
import torch
from toy_models import Counting, Recording, differing_fields, mixed_problem, rows_of, same_bits

import fastadv

KINDS = {"linf": fastadv.Linf, "l2": fastadv.L2, "l1": fastadv.L1, "l0": fastadv.L0}
# a few steps from one side of the boundary to the other: their own take 500 to get there
_IN_FEW_STEPS = {name: dict(dual_step_size=1.5) for name in ("pdgd", "pdpgd")}
_DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
PAIRS = [
    ("ddn", "l2"),
    ("alma", "l2"),
    ("pdgd", "l2"),
    ("pdpgd", "linf"),
    ("pdpgd", "l2"),
    ("pdpgd", "l1"),
    ("cw", "l2"),
    ("cw", "linf"),
    ("fmn", "linf"),
    ("fmn", "l2"),
    ("fmn", "l1"),
]
EACH = pytest.mark.parametrize(("name", "norm"), PAIRS)


def _attack(name, norm, *eps, **more):
    return getattr(fastadv, name)(KINDS[norm](*eps), **more)


def _linear(dims, scale=1.0):
    """(adversarial-library's linear model of four classes, x, labels, signed distances in L2)."""
    size = math.prod(dims)
    weight = torch.ones(size) / size
    generator = torch.Generator().manual_seed(0)
    x = (0.75 + 0.03 * torch.randn(8, *dims, generator=generator)).clamp(0, 1)

    def score(z):
        return z.flatten(1) @ weight - 0.5

    def model(z):
        logit = scale * score(z)[:, None]
        return torch.cat([-logit, logit, -torch.ones_like(logit), -2 * torch.ones_like(logit)], 1)

    return model, x, torch.ones(8, dtype=torch.long), score(x), weight


@pytest.mark.parametrize("dims", [(8,), (4, 6), (5, 7, 7)])
@EACH
def test_a_plane_is_reached_within_a_quarter(name, norm, dims):
    model, x, y, score, weight = _linear(dims)
    result = _attack(name, norm, steps=50, **_IN_FEW_STEPS.get(name, {})).run(model, x, y)
    ratio = result.distance / (score / weight.norm(p=_DUAL[norm]))
    assert result.success.all()
    assert ratio.min() >= 1 - 1e-6 and ratio.max() <= 1.25  # adversarial-library's own bar


@EACH
def test_without_a_radius_the_same_bits_alone_and_in_any_batch(name, norm):
    p = mixed_problem(12, (3, 5, 6), curvature=3.0)
    attack = _attack(name, norm, steps=8)
    plain = fastadv.Execution(batching="plain")
    together = attack.run(p.model, p.x, p.y, execution=plain)
    assert together.success.any()
    for execution in (fastadv.Execution(batch_size=5), fastadv.Execution(batch_size=1)):
        other = attack.run(p.model, p.x, p.y, execution=execution)
        assert differing_fields(other, together) == []
        assert torch.equal(other.best_at, together.best_at)
    alone = attack.run(p.model, p.x[4:5], p.y[4:5])
    assert differing_fields(alone, rows_of(together, torch.tensor([4]))) == []


@EACH
def test_best_at_counts_the_passes_that_a_sample_took(name, norm):
    p = mixed_problem(12, (3, 5, 6), curvature=3.0)
    asked = Recording(p.model, torch.clone)
    counted = Counting(asked)
    of_cw = dict(search_steps=1, first_constant=10.0)
    own = {"alma": {}, "cw": of_cw, "pdgd": {}, "pdpgd": {}}.get(name, dict(gamma=0.3))
    result = _attack(name, norm, steps=20, **own).run(counted, p.x[4:5], p.y[4:5])
    where = [same_bits(z.detach(), result.x_adv) for z in asked.seen].index(True)
    assert 1 < where <= 20
    assert result.best_at.tolist() == [(where + 1) + (where - 1)]  # forwards and backwards
    assert (counted.forwards, counted.backwards) == (1 + 20 + 1, 20)


@EACH
def test_what_is_wrong_is_returned_and_what_cannot_be_fooled_is_infinitely_far(name, norm):
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))

    def model(z):  # the class is 0 everywhere
        score = z.mean(1)
        return torch.stack([score + 2, score.sin(), score.cos() - 9], 1)

    y = torch.tensor([0, 1, 0, 0, 1, 0])
    result = _attack(name, norm, steps=5).run(model, x, y)
    wrong = y == 1
    assert torch.equal(result.success, wrong) and same_bits(result.x_adv, x)
    assert torch.equal(result.distance, torch.where(wrong, 0.0, torch.inf).double())
    assert torch.equal(result.step, torch.where(wrong, 0, -1))
    assert torch.equal(result.best_at, torch.where(wrong, 0, -1))


@EACH
def test_with_a_radius_a_sample_ends_with_its_first_point_within(name, norm):
    p = mixed_problem(20, (3, 5, 6), curvature=3.0, wrong_every=50)
    x, y = p.x[1:], p.y[1:]
    free = _attack(name, norm, steps=30).run(p.model, x, y)
    eps = 1.2 * float(free.distance.median())
    result = _attack(name, norm, eps, steps=30).run(p.model, x, y)
    assert result.success.any() and not result.success.all()
    assert result.backwards < free.backwards
    assert torch.equal(result.best_at, torch.where(result.success, 2 + 2 * result.step, -1))
    assert same_bits(result.x_adv[~result.success], x[~result.success])
    best = _attack(name, norm, eps, steps=30, keep="best").run(p.model, x, y)
    assert same_bits(best.x_adv, free.x_adv) and torch.equal(best.distance, free.distance)
    assert torch.equal(best.success, free.distance <= eps)


@EACH
def test_an_adversarial_start_is_brought_nearer(name, norm):
    model, x, y, _, _ = _linear((8,))
    start = torch.zeros_like(x)
    attack = _attack(name, norm, steps=40, **_IN_FEW_STEPS.get(name, {}))
    result = attack.run(model, x, y, x_init=start)
    assert result.success.all() and (result.step == 0).all()
    assert (result.distance < 0.6 * KINDS[norm]().distance(start, x)).all()


def test_ddn_makes_full_steps_of_a_gradient_that_softmax_makes_tiny():
    """adversarial-library takes noise where ||grad|| < 1e-12, of a length of sqrt(D)."""
    model, x, y, score, weight = _linear((5, 7, 7), scale=120.0)
    assert (score * 240).min() > 45  # of the cross-entropy's gradient exp(-45) is left
    result = _attack("ddn", "l2", steps=50).run(model, x, y)
    assert result.success.all()
    assert (result.distance <= 1.25 * score / weight.norm()).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_fmn_crosses_the_boundary_on_saturated_images(norm):
    """The peer's iterates come to it from below: the bounds cut every step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 64, generator=generator).round()
    weight = torch.randn(2, 64, generator=generator)

    def model(z):
        return z @ weight.t()

    y = model(x).argmax(1)
    ours = _attack("fmn", norm).run(model, x, y)
    theirs = _attack("fmn", norm, overshoot=0.0, at_bounds="ignored").run(model, x, y)
    assert ours.success.all() and theirs.success.sum() < 24


@pytest.mark.parametrize("width", [1.0, 255.0])
@EACH
def test_the_defaults_are_in_units_of_the_bounds(name, norm, width):
    p = mixed_problem(6, (3, 5, 6), curvature=3.0)
    attack = getattr(fastadv, name)(KINDS[norm](bounds=(0.0, width)), steps=20)
    result = attack.run(lambda z: p.model(z / width), width * p.x, p.y)
    plain = _attack(name, norm, steps=20).run(p.model, p.x, p.y)
    torch.testing.assert_close(result.distance / width, plain.distance, rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastadv.ddn(fastadv.Linf()), "ddn takes threat models in l2 only"),
        (lambda: fastadv.ddn(fastadv.L2(), gamma=1.0), "gamma"),
        (lambda: fastadv.ddn(fastadv.L2(), first_radius=0.0), "first_radius"),
        (lambda: fastadv.ddn(fastadv.L2(), at_bounds="clamped"), "at_bounds"),
        (lambda: fastadv.ddn(fastadv.L2(), keep="last"), "keep"),
        (lambda: fastadv.alma(fastadv.L1()), "alma takes threat models in l2 only"),
        (lambda: fastadv.alma(fastadv.L2(), check_steps=0), "check_steps"),
        (lambda: fastadv.alma(fastadv.L2(), reduction=0.0), "reduction"),
        (lambda: fastadv.alma(fastadv.L2(), increase=0.5), "increase"),
        (lambda: fastadv.alma(fastadv.L2(), tolerance=-1e-4), "tolerance"),
        (lambda: fastadv.fmn(fastadv.L2(), overshoot=-0.1), "overshoot"),
        (lambda: fastadv.fmn(fastadv.L2(), final_step_size=-1.0), "final_step_size"),
        (lambda: fastadv.fmn(fastadv.L2(), steps=0), "steps"),
        (lambda: fastadv.sigma_zero(fastadv.L1()), "sigma_zero takes threat models in l0 only"),
        (lambda: fastadv.sigma_zero(fastadv.L0(), threshold=1.5), "threshold"),
        (lambda: fastadv.sigma_zero(fastadv.L0(), threshold_factor=-0.1), "threshold_factor"),
        (lambda: fastadv.sigma_zero(fastadv.L0(), smoothing=0.0), "smoothing"),
        (lambda: fastadv.fmn(fastadv.L2(torch.ones(1, 8))), "radii and bounds of elements"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_mask_is_refused():
    model, x, y, _, _ = _linear((8,))
    with pytest.raises(ValueError, match="ddn in L2 takes no mask"):
        _attack("ddn", "l2").run(model, x, y, mask=torch.ones(1, 8, dtype=torch.bool))


@pytest.mark.parametrize(("name", "steps"), [("fmn", 100), ("sigma_zero", 300)])
def test_in_l0_all_other_entries_keep_their_bits_and_the_fewest_are_found(name, steps):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, 40, generator=generator)
    x[:, ::5] = -0.0
    weight = torch.randn(40, generator=generator)
    need = 0.6 * torch.rand(24, generator=generator) + 0.1

    def model(z):
        score = (z - x[: len(z)]) @ weight - need[: len(z)]
        return torch.stack([-score, score], 1)

    y = torch.zeros(24, dtype=torch.long)
    way = fastadv.Execution(batching="plain")
    result = _attack(name, "l0", steps=steps).run(model, x, y, execution=way)
    gains = torch.where(weight > 0, (1 - x) * weight, -x * weight).sort(1, descending=True).values
    fewest = (gains.cumsum(1) < need[:, None]).sum(1) + 1
    assert result.success.all()
    assert (result.distance >= fewest).all() and (result.distance == fewest).float().mean() > 0.7
    still = result.x_adv == x
    assert same_bits(result.x_adv[still], x[still])
    assert torch.equal((~still).sum(1).double(), result.distance)
    few = _attack(name, "l0", 3, steps=steps).run(model, x, y, execution=way)
    assert (few.distance[few.success] <= 3).all() and few.success.any()
    with pytest.raises(ValueError, match=f"{name} counts entries"):
        _attack(name, "l0", math.inf, "pixel")


def _attack_of_entries(**more):
    return fastadv.sigma_zero(fastadv.L0(), **more)


def test_sigma_zero_is_the_same_alone_and_in_any_batch_and_counts_its_passes():
    p = mixed_problem(12, (3, 5, 6), curvature=3.0)
    attack = _attack_of_entries(steps=40)
    together = attack.run(p.model, p.x, p.y, execution=fastadv.Execution(batching="plain"))
    assert together.success.sum() > 6
    for size in (5, 1):
        other = attack.run(p.model, p.x, p.y, execution=fastadv.Execution(batch_size=size))
        assert differing_fields(other, together) == []
        assert torch.equal(other.best_at, together.best_at)
    counted = Counting(p.model)
    alone = attack.run(counted, p.x[4:5], p.y[4:5])
    assert differing_fields(alone, rows_of(together, torch.tensor([4]))) == []
    assert (counted.forwards, counted.backwards) == (1 + 40 + 1, 40)
    assert 2 < int(alone.best_at) <= 81


def test_sigma_zero_reaches_a_target_and_leaves_what_it_cannot_fool():
    p = mixed_problem(12, (3, 5, 6), curvature=3.0, wrong_every=50)
    target = (p.y + 1) % p.model(p.x[:1]).shape[1]
    result = _attack_of_entries(steps=200).run(p.model, p.x, p.y, target=target)
    assert result.success.sum() > 6
    assert torch.equal(result.prediction[result.success], target[result.success])
    lost = ~result.success
    assert same_bits(result.x_adv[lost], p.x[lost]) and result.distance[lost].isinf().all()
