"""minimum_norm: closed forms, its budget, what its members add, and what it leaves as it was."""

import math

import pytest
import torch
from toy_models import Counting, differing_fields, mixed_problem, rows_of, same_bits

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net
from fastadv.ops.fab.projection import hyperplane_projection

KINDS = {"linf": fastadv.Linf, "l2": fastadv.L2, "l1": fastadv.L1, "l0": fastadv.L0}
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
EACH = pytest.mark.parametrize("norm", KINDS)
CONTINUOUS = pytest.mark.parametrize("norm", ORDER)


def _attack(norm, *eps, **more):
    return fastadv.minimum_norm(KINDS[norm](*eps), **(dict(budget=150) | more))


def _plane(size=40, dtype=torch.float64):
    """(linear model of two classes, and one far away, x, labels, weight, threshold)."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator, dtype=dtype)
    x = torch.rand(6, size, generator=generator, dtype=dtype)
    threshold = float((x @ weight).max()) + 0.3

    def model(z):
        score = z @ weight - threshold
        return torch.stack([-score, score, torch.full_like(score, -50.0)], 1)

    return model, x, torch.zeros(6, dtype=torch.long), weight, threshold


@CONTINUOUS
def test_the_nearest_point_of_a_half_space_in_the_box_is_found(norm):
    model, x, y, weight, threshold = _plane()
    result = _attack(norm, budget=200).run(model, x, y)
    w, b = weight.expand_as(x).contiguous(), torch.full((6,), threshold, dtype=x.dtype)
    exact = hyperplane_projection(x, w, b, norm=norm).norm(p=ORDER[norm], dim=1)
    torch.testing.assert_close(result.distance, exact, rtol=1e-5, atol=0)
    assert (result.distance > exact).all() and result.success.all()


@CONTINUOUS
def test_the_nearest_point_of_a_half_space_without_bounds_is_found(norm):
    model, x, y, weight, threshold = _plane()
    result = fastadv.minimum_norm(KINDS[norm](bounds=None), budget=200).run(model, x, y)
    dual = {"linf": 1.0, "l2": 2.0, "l1": math.inf}[norm]
    exact = (threshold - x @ weight) / weight.norm(p=dual)
    torch.testing.assert_close(result.distance, exact, rtol=1e-5, atol=0)


def test_the_fewest_entries_are_found_and_all_others_keep_their_bits():
    model, x, y, weight, threshold = _plane()
    result = _attack("l0", budget=300).run(model, x, y)
    room = torch.where(weight > 0, (1 - x) * weight, -x * weight)
    reached = room.sort(1, descending=True).values.cumsum(1)
    fewest = (reached < (threshold - x @ weight)[:, None]).sum(1) + 1
    assert torch.equal(result.distance, fewest.double())
    still = result.x_adv == x
    assert same_bits(result.x_adv[still], x[still])
    assert torch.equal((~still).sum(1), fewest)


def test_the_nearest_point_of_a_sphere_is_found():
    generator = torch.Generator().manual_seed(1)
    x = 0.5 + 0.02 * torch.randn(6, 30, generator=generator, dtype=torch.float64)

    def model(z):  # right inside of the sphere of radius 1 around the middle
        length = 20 * (z - 0.5).square().sum(1)
        return torch.stack([20 - length, length - 20], 1)

    y = torch.zeros(6, dtype=torch.long)
    result = fastadv.minimum_norm(fastadv.L2(bounds=(-5.0, 5.0)), budget=400).run(model, x, y)
    exact = 1 - (x - 0.5).norm(dim=1)
    torch.testing.assert_close(result.distance, exact, rtol=1e-3, atol=0)


@EACH
def test_no_sample_takes_more_passes_than_the_budget(norm):
    p = mixed_problem(10, (3, 5, 6), curvature=3.0, wrong_every=50)
    attack = _attack(norm)
    for row in range(1, 4):
        counted = Counting(p.model)
        alone = attack.run(counted, p.x[row : row + 1], p.y[row : row + 1])
        passes = counted.forwards + counted.backwards
        assert 30 < passes <= 150
        assert (alone.forwards, alone.backwards) == (counted.forwards, counted.backwards)
        assert 0 < int(alone.best_at) <= passes
    together = attack.run(p.model, p.x[1:], p.y[1:])
    assert together.forwards + together.backwards <= 150 * 9
    assert (together.best_at <= 150).all()


@EACH
def test_the_same_bits_alone_and_in_any_batch(norm):
    p = mixed_problem(8, (3, 5, 6), curvature=3.0)
    attack = _attack(norm)
    together = attack.run(p.model, p.x, p.y)
    assert together.success.sum() > 4
    other = attack.run(p.model, p.x, p.y, execution=fastadv.Execution(batch_size=3))
    alone = attack.run(p.model, p.x[5:6], p.y[5:6], sample_ids=torch.tensor([5]))
    for result, rows in ((other, torch.arange(8)), (alone, torch.tensor([5]))):
        assert differing_fields(result, rows_of(together, rows)) == []
        assert torch.equal(result.best_at, together.best_at[rows])


@EACH
def test_it_finds_nearer_points_than_one_search_of_as_many_passes(norm):
    model = digits_net(weights="fast-at")
    x, y = (part[:24] for part in load_digits("test"))
    joint = _attack(norm, budget=300).run(model, x, y)
    single = fastadv.fmn(KINDS[norm](), steps=149).run(model, x, y)
    assert joint.success.all()
    assert joint.distance.sum() < single.distance.clamp(max=joint.distance.max()).sum()


@EACH
def test_what_is_wrong_is_returned_and_what_cannot_be_fooled_is_infinitely_far(norm):
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0))

    def model(z):  # the class is 0 everywhere
        score = z.mean(1)
        return torch.stack([score + 2, score.sin(), score.cos() - 9], 1)

    y = torch.tensor([0, 1, 0, 0, 1, 0])
    result = _attack(norm, budget=60).run(model, x, y)
    wrong = y == 1
    assert torch.equal(result.success, wrong) and same_bits(result.x_adv, x)
    assert torch.equal(result.distance, torch.where(wrong, 0.0, torch.inf).double())
    assert torch.equal(result.step, torch.where(wrong, 0, -1))
    assert torch.equal(result.best_at, torch.where(wrong, 0, -1))


@EACH
def test_with_a_radius_a_sample_ends_within_it_and_with_fewer_passes(norm):
    p = mixed_problem(12, (3, 5, 6), curvature=3.0, wrong_every=50)
    x, y = p.x[1:], p.y[1:]
    free = _attack(norm).run(p.model, x, y)
    eps = float(free.distance.median().ceil() if norm == "l0" else 1.2 * free.distance.median())
    result = _attack(norm, eps).run(p.model, x, y)
    assert result.success.any() and not result.success.all()
    assert result.backwards < free.backwards
    assert (result.distance[result.success] <= eps * (1 + 1e-6)).all()
    assert same_bits(result.x_adv[~result.success], x[~result.success])
    assert torch.equal(result.best_at < 0, ~result.success)
    best = _attack(norm, eps, keep="best").run(p.model, x, y)
    assert torch.equal(best.distance, free.distance) and same_bits(best.x_adv, free.x_adv)


def test_square_goes_on_where_gradients_are_masked():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8 * 8, 3, generator=generator)
    x = torch.rand(6, 1, 8, 8, generator=generator)

    def masked(z):  # activations of a few values: no gradient anywhere
        return ((z * 8).round() / 8).flatten(1) @ weight

    y = masked(x).argmax(1)
    with pytest.warns(fastadv.AttackWarning, match="zero"):
        first = fastadv.fmn(fastadv.Linf(), steps=30).run(masked, x, y)
        result = fastadv.minimum_norm(fastadv.Linf(), budget=1500).run(masked, x, y)
    assert not first.success.any()
    assert result.success.sum() >= 5 and result.distance[result.success].median() < 0.48
    assert torch.equal(masked(result.x_adv).argmax(1), result.prediction)


def test_evaluate_reports_its_distances():
    p = mixed_problem(8, (3, 5, 6), curvature=3.0)
    report = fastadv.evaluate(p.model, (p.x, p.y), _attack("l2"), progress=False)
    result = _attack("l2").run(p.model, p.x, p.y)
    assert isinstance(report, fastadv.DistanceReport)
    assert torch.equal(report.distance, result.distance)


def test_repr_pastes_back():
    attack = fastadv.minimum_norm(fastadv.L1(), budget=600, seed=3)
    assert repr(attack) == "fastadv.minimum_norm(fastadv.L1(), budget=600, seed=3)"
    assert eval(repr(attack)) == attack


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastadv.minimum_norm(fastadv.L2(), budget=59), "a budget of at least 60 passes"),
        (lambda: fastadv.minimum_norm(fastadv.L2(), budget=1e3), "budget must be an integer"),
        (lambda: fastadv.minimum_norm(fastadv.L0(unit="pixel")), "counts entries"),
        (lambda: fastadv.minimum_norm(fastadv.L2(), keep="last"), "keep"),
        (
            lambda: fastadv.minimum_norm(fastadv.L2(torch.ones(1, 8))),
            "radii and bounds of elements",
        ),
        (
            lambda: fastadv.autoattack(
                fastadv.L2(0.5), "custom", attacks=[fastadv.minimum_norm(fastadv.L2(0.5))]
            ),
            "is an ensemble of its own",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["target", "x_init", "mask"])
def test_arguments_that_it_does_not_take_are_refused(name):
    model, x, y, _, _ = _plane()
    given = {"target": y, "x_init": x, "mask": torch.ones(1, 40, dtype=torch.bool)}[name]
    with pytest.raises(ValueError, match=f"{name}"):
        _attack("l2").run(model, x, y, **{name: given})


@EACH
def test_the_model_and_the_random_state_are_left_as_they_were(norm):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(30, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
    ).train()
    x = torch.rand(6, 1, 5, 6)
    x.requires_grad_()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, kept = torch.get_rng_state(), x.detach().clone()
    result = _attack(norm, budget=100).run(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert x.requires_grad and x.grad is None and torch.equal(x, kept)
    assert not result.x_adv.requires_grad and result.success.any()
    with torch.no_grad():
        assert torch.equal(net.eval()(result.x_adv).argmax(1), result.prediction)


def test_bfloat16_channels_last_and_empty_batches_are_taken():
    p = mixed_problem(6, (3, 5, 6), curvature=3.0)
    attack = _attack("l2", budget=100)
    x = p.x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(attack.run(p.model, x, p.y).x_adv, attack.run(p.model, p.x, p.y).x_adv)
    half = attack.run(lambda z: p.model(z.float()), p.x.bfloat16(), p.y)
    assert half.x_adv.dtype == torch.bfloat16 and half.success.any()
    assert len(attack.run(p.model, p.x[:0], p.y[:0]).distance) == 0
