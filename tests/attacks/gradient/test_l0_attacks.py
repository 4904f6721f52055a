"""PGD in L0: what it may change, the closed form of linear models, invariance, who refuses."""

import math

import pytest
import torch
from torch import nn
from toy_models import mixed_problem

import fastadv

UNITS = ("entry", "pixel")


def _bits(tensor):
    return tensor.contiguous().view(torch.int32)


def _changed(x_adv, x, unit):
    differs = _bits(x_adv) != _bits(x)
    return (differs.any(1) if unit == "pixel" else differs).flatten(1).sum(1)


def _attack(unit="entry", eps=3, **more):
    return fastadv.pgd(fastadv.L0(eps, unit=unit), **(dict(steps=9) | more))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("random_start", [False, True])
def test_all_but_eps_entries_are_those_of_x(random_start, keep, unit):
    problem = mixed_problem(24)
    eps = 2 if unit == "pixel" else 3
    attack = _attack(unit, eps, random_start=random_start, keep=keep, steps=5)
    result = attack.run(problem.model, problem.x, problem.y)
    count = _changed(result.x_adv, problem.x, unit)
    assert (count <= eps).all() and (count == eps).any()
    assert torch.equal(result.distance.long(), count)
    assert result.x_adv.min() >= 0 and result.x_adv.max() <= 1
    assert torch.equal(result.success, problem.model(result.x_adv).argmax(1) != problem.y)
    assert result.success.any() and not result.success.all()
    assert fastadv.contains(attack.threat, result.x_adv, problem.x).all()


@pytest.mark.parametrize("unit", UNITS)
def test_every_backend_changes_as_many(unit, either_backend):
    problem = mixed_problem(3)
    result = _attack(unit, 2, steps=2, keep="best").run(problem.model, problem.x, problem.y)
    expected = _attack(unit, 2, steps=2, keep="best")
    with fastadv.ops.use_backend("reference"):
        expected = expected.run(problem.model, problem.x, problem.y)
    assert (result.x_adv - expected.x_adv).abs().max() < 1e-6
    assert _changed(result.x_adv, problem.x, unit).tolist() == [2, 2, 2]


@pytest.mark.parametrize("unit", UNITS)
def test_steps_are_those_of_the_op_along_the_gradient(unit):
    problem = mixed_problem(10)
    attack = _attack(unit, eps=2, steps=4, step_size=25.0, random_start=False, keep="last")
    x_adv = problem.x
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        loss = nn.functional.cross_entropy(problem.model(leaf), problem.y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        step = dict(step_size=25.0, eps=2, pixels=unit == "pixel")
        x_adv = fastadv.ops.l0_step(x_adv, grad, problem.x, **step)
    assert (attack(problem.model, problem.x, problem.y) - x_adv).abs().max() < 1e-6


@pytest.mark.parametrize("unit", UNITS)
def test_linear_models_are_beaten_as_far_as_eps_allows(unit, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(9, 3, 4, 5, generator=generator, dtype=dtype)
    weight = torch.randn(60, generator=generator, dtype=dtype)

    def model(x):
        score = x.flatten(1) @ weight
        return torch.stack([score, -score], 1)

    y = torch.arange(9) % 2
    sign = 1.0 - 2 * y.to(dtype)[:, None]  # class 0 falls by a lower score
    best = torch.where(sign * weight > 0, 0.0, 1.0).view(9, 3, 20)
    gain = (-sign * weight).view(9, 3, 20) * (best - x.view(9, 3, 20))
    gain = gain.sum(1) if unit == "pixel" else gain.flatten(1)
    closed = (x.flatten(1) @ weight) - sign[:, 0] * gain.topk(4, dim=1).values.sum(1)
    attack = _attack(unit, 4, steps=3, step_size=1e9, random_start=False, keep="last")
    assert torch.allclose(attack(model, x, y).flatten(1) @ weight, closed, rtol=1e-12)


@pytest.mark.parametrize("unit", UNITS)
def test_the_bits_are_those_of_a_sample_alone(unit):
    problem = mixed_problem(20)
    attack, ids = _attack(unit, restarts=2), torch.arange(20)
    result = attack.run(problem.model, problem.x, problem.y)
    plain = fastadv.Execution(batching="plain", batch_size=7)
    parts = attack.run(problem.model, problem.x, problem.y, execution=plain)
    for row in (1, 6, 19):
        one = slice(row, row + 1)
        alone = attack.run(problem.model, problem.x[one], problem.y[one], sample_ids=ids[one])
        for other in (result, parts):
            assert torch.equal(_bits(alone.x_adv[0]), _bits(other.x_adv[row]))
            assert alone.step[0] == other.step[row]


def test_random_starts_change_eps_entries_and_differ():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for threat in (fastadv.L0(7), fastadv.L0(7, unit="pixel"), fastadv.L0(torch.full((6,), 7.0))):
        first, again, other = (
            fastadv.start_point(threat, x, seed=0, draw=draw) for draw in (0, 0, 1)
        )
        assert torch.equal(first, again) and not torch.equal(first, other)
        unit = threat.unit
        assert _changed(first, x, unit).tolist() == _changed(other, x, unit).tolist() == [7] * 6
        alone = fastadv.start_point(fastadv.L0(7), x[3:4], seed=0, sample_ids=torch.tensor([3]))
        assert unit == "pixel" or torch.equal(alone[0], first[3])


@pytest.mark.parametrize("unit", UNITS)
def test_fused_normalisation_gives_the_same_points(unit):
    problem = mixed_problem(12)

    class Shifted(nn.Module):
        def forward(self, x):
            return problem.model(x * 0.5 + 0.25)

    model = fastadv.Normalized(Shifted(), mean=(0.25,) * 3, std=(0.5,) * 3)
    attack = _attack(unit, 2, steps=4, random_start=False, keep="last")
    fused, plain = attack(model, problem.x), attack(problem.model, problem.x)
    assert (fused - plain).abs().max() < 1e-5


def test_evaluations_curves_and_bytes_count_too():
    problem = mixed_problem(16)
    x = (problem.x * 255).round() / 255
    data, attack = (x, problem.y), _attack(steps=4)
    report = fastadv.evaluate(problem.model, data, attack, progress=False)
    result = attack.run(problem.model, x, problem.y)
    assert report.robust.tolist() == (~result.success).tolist() and report.norm == "l0"
    curve = fastadv.robustness_curve(problem.model, data, attack, eps=[1, 3], progress=False)
    assert (curve.robust[:, 0] >= curve.robust[:, 1]).all()
    decoded = fastadv.to_uint8(result.x_adv, x, attack.threat).float() / 255
    assert (_changed(decoded, x, "entry") <= 3).all()
    assert (decoded - result.x_adv).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ValueError, match="no 8-bit image differs from x in at most eps"):
        fastadv.to_uint8(problem.x, problem.x, attack.threat)


def test_containing_allows_no_rounding():
    x = torch.full((3, 2, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[:, 0, 0, 0] = 1.0
    x_adv[1, 1, 0, 0] = x_adv[1, 1, 0, 0].nextafter(torch.tensor(1.0))
    x_adv[2, 1, 1, 1] = 1.0
    assert fastadv.contains(fastadv.L0(1), x_adv, x).tolist() == [True, False, False]
    pixel = fastadv.L0(1, unit="pixel")
    assert fastadv.contains(pixel, x_adv, x).tolist() == [True, True, False]
    assert pixel.distance(x_adv, x).tolist() == [1, 1, 2]
    many = torch.zeros(1, 2_000_003)
    assert not fastadv.contains(fastadv.L0(2_000_002), many + 1, many).item()
    assert fastadv.L0().distance(many + 1, many).item() == 2_000_003


def test_threat_models_are_pasted_back():
    for threat in (fastadv.L0(3), fastadv.L0(3, unit="pixel", bounds=(-1.0, 1.0)), fastadv.L0()):
        assert eval(repr(threat)) == threat
    assert fastadv.L0(3) != fastadv.L0(3, unit="pixel") and fastadv.L0() == fastadv.L0(math.inf)
    x = torch.full((2, 3), 0.5)
    assert torch.equal(fastadv.L0().project(x + 1, x), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastadv.L0(0.5), "whole number of entries of at least 1.*got 0.5"),
        (lambda: fastadv.L0(0), "whole number of entries of at least 1.*got 0$"),
        (lambda: fastadv.L0(8 / 255, unit="pixel"), "whole number of pixels of at least 1"),
        (lambda: fastadv.L0(torch.tensor([1.0, 2.5])), "whole number of entries"),
        (lambda: fastadv.L0(torch.ones(1, 3)), "L0 counts elements"),
        (lambda: fastadv.L0(3, bounds=(torch.zeros(1, 3), 1.0)), "L0 counts elements"),
        (lambda: fastadv.L0(3, unit="row"), "unit must be one of"),
        (lambda: fastadv.fgsm(fastadv.L0(3)), "fgsm is not defined in L0.*use fastadv.pgd"),
        (lambda: fastadv.bim(fastadv.L0(3)), "bim is not defined in L0"),
        (lambda: fastadv.apgd_ce(fastadv.L0(3)), "apgd_ce is not defined in L0"),
        (lambda: fastadv.square(fastadv.L0(3)), "square is not defined in L0"),
        (lambda: fastadv.fab(fastadv.L0()), "fab is not defined in L0"),
        (lambda: fastadv.pgd(fastadv.L0()), "pgd needs a radius"),
        (lambda: fastadv.autoattack(fastadv.L0(3)), "autoattack is not defined in L0"),
        (lambda: fastadv.training.PGDAT(fastadv.L0(3)), "PGDAT is not defined in L0"),
    ],
)
def test_what_is_no_count_or_not_defined_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_the_samples_is_refused():
    problem = mixed_problem(6)
    for attack, x, message in (
        (_attack(eps=49), problem.x, "eps=49 is more than the 48 entries that a sample has"),
        (_attack("pixel", eps=17), problem.x, "eps=17 is more than the 16 pixels"),
        (_attack("pixel", eps=1), problem.x.flatten(1), r"counts pixels of images.*\(6, 48\)"),
    ):
        with pytest.raises(ValueError, match=message):
            attack.run(problem.model, x, problem.y)
    unbounded = fastadv.pgd(fastadv.L0(3, bounds=None), steps=2)
    with pytest.raises(ValueError, match="a random start in L0 is uniform in bounds"):
        unbounded.run(problem.model, problem.x, problem.y)
    with pytest.raises(ValueError, match="pgd in L0 takes no mask="):
        _attack().run(problem.model, problem.x, problem.y, mask=problem.x > 0.5)
