"""C. Inputs a rounding out of bounds are clamped, and said to be; the whole box; one image."""

import pytest
import torch
from silent_problems import flat, images, warned
from toy_models import mixed_problem, threat_of
from training.training_problems import THREAT, batches, conv_net

import fastadv
from fastadv import training
from fastadv.compat import torchattacks
from fastadv.compat.autoattack import AutoAttack

# -- C: rounding


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], ids=str)
@pytest.mark.parametrize("call", [False, True])
def test_c_inputs_out_of_bounds_by_rounding_are_clamped_with_one_warning(bounds, call):
    low, high = bounds
    width = high - low
    x, y = images(48)
    x = (low + width * x).double()
    x[1, 0], x[1, 1], x[2, 3] = low - 0.99e-6 * width, high + 0.99e-6 * width, high + 1e-6 * width
    clamped = x.clamp(low, high)
    attack = fastadv.pgd(fastadv.Linf(0.1 * width, bounds=bounds), steps=3)
    expected = attack.run(flat, clamped, y)
    if call:
        moved, codes = warned(lambda: attack(flat, x, y))
    else:
        result, codes = warned(lambda: attack.run(flat, x, y))
        moved = result.x_adv
        for field in ("success", "distance", "loss", "step"):
            assert torch.equal(getattr(result, field), getattr(expected, field)), field
    assert codes == [("rounded_input", 2)]
    assert torch.equal(moved, expected.x_adv)


def test_c_rounding_is_clamped_at_bounds_of_elements_too():
    x, y = images(48)
    high = torch.linspace(0.8, 2.0, 48)[None]
    x[1] = high[0] * (1 + 0.9e-6)
    attack = fastadv.pgd(fastadv.Linf(0.05, bounds=(0.0, high)), steps=2)
    x[0, 3] = 0.0
    expected = attack.run(flat, torch.minimum(x, high), y)
    result, codes = warned(lambda: attack.run(flat, x, y))
    assert codes == [("rounded_input", 1)]
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.distance, expected.distance)
    x[1, 0] = 0.8 + 1e-5
    with pytest.raises(ValueError, match=r"of its elements; 1 of .*\[1, 0\]: 0.80001.* beyond"):
        attack.run(flat, x, y)


@pytest.mark.parametrize("where", [1, -1])
@pytest.mark.parametrize("excess", [1.2e-6, 3e-5, 0.01, 2.0])
def test_c_a_larger_excess_is_an_error_that_says_how_large_it_is(excess, where):
    x, y = images(48)
    x[2, 5] = 1 + excess if where > 0 else -excess
    beyond = max(float(x.max()) - 1, -float(x.min()))
    with pytest.raises(ValueError, match=r"x must lie in bounds \(0.0, 1.0\); got") as caught:
        fastadv.fgsm(fastadv.Linf(0.1)).run(flat, x, y)
    text = str(caught.value)
    assert f", {beyond:.3g} beyond. " in text
    assert "to 1," not in text and "from 0 " not in text


def test_c_rounding_is_silent_in_dropins(capsys):
    x, y = images(3 * 8 * 8)
    x = x.view(4, 3, 8, 8)
    x[0, 0, 0, 0] = 1 + 9.5e-7
    inside = x.clamp(0, 1)
    assert not torch.equal(x, inside)
    attack = torchattacks.BIM(flat, eps=0.1, alpha=0.05, steps=2)
    moved, codes = warned(lambda: attack(x, y))
    assert codes == [] and torch.equal(moved, attack(inside, y))
    authors = AutoAttack(flat, eps=0.1, version="custom", attacks_to_run=["apgd-ce"], device="cpu")
    authors.apgd.n_iter = 2
    for run in (authors.run_standard_evaluation, authors.apgd.perturb):
        moved, codes = warned(lambda run=run: run(x, y))
        assert codes == [] and torch.equal(moved, run(inside, y))
    assert "rounded_input" not in capsys.readouterr().out


def test_c_evaluate_and_curves_take_the_clamped_sample(tmp_path):
    x, y = images(48, count=6)
    x[4, 7] = 1 + 9e-7
    inside = x.clamp(0, 1)
    attacks = [fastadv.fgsm(fastadv.Linf(0.001)), fastadv.apgd_ce(fastadv.Linf(0.001), steps=2)]
    ensemble = fastadv.autoattack(attacks[0].threat, version="custom", attacks=attacks[1:])
    for attack in (attacks[0], ensemble):
        expected = fastadv.evaluate(flat, (inside, y), attack, progress=False)
        report, codes = warned(
            lambda attack=attack: fastadv.evaluate(flat, (x, y), attack, progress=False)
        )
        assert codes == [("rounded_input", 1)] and report.warnings == {"rounded_input": 1}
        assert torch.equal(report.distance, expected.distance)
        assert torch.equal(report.robust, expected.robust)
    radii = [0.0005, 0.001]
    curve, codes = warned(
        lambda: fastadv.robustness_curve(flat, (x, y), attacks[0], radii, progress=False)
    )
    assert codes == [("rounded_input", 1)] and curve.warnings == {"rounded_input": 1}


@pytest.mark.parametrize("method", ["PGDAT", "FreeAT", "YOPO"])
def test_c_training_clamps_what_rounding_took_out_of_bounds_in_every_batch(method):
    more = {"first_layer": "0"} if method == "YOPO" else {}
    (x, y), (again, labels) = batches(2, size=4)
    beyond = [x.clone(), again.clone()]
    for rows in beyond:
        rows[0, 0, 0, 0] = 1 + 9e-7
    steps = [getattr(training, method)(THREAT, **more) for _ in range(2)]

    def losses(step, *data):
        net, found = conv_net(), []
        for rows, classes in zip(data, (y, labels), strict=True):
            for loss in step(net, rows, classes):
                loss.backward()
                found.append(loss.item())
        return found

    expected = losses(steps[0], *(rows.clamp(0, 1) for rows in beyond))
    found, codes = warned(lambda: losses(steps[1], *beyond))
    assert codes == [("rounded_input", 1)] and found == expected
    resumed = getattr(training, method)(THREAT, **more)
    resumed.load_state_dict(steps[1].state_dict())
    assert resumed._watch.rounds and "rounds" not in steps[0].state_dict()


# -- C: the whole box, one image


@pytest.mark.parametrize("size", [48, 192, 3072])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 0.3)], ids=str)
def test_c_an_l2_ball_of_the_root_of_d_is_the_whole_box(size, bounds):
    low, high = bounds
    x, y = images(size)
    x = low + (high - low) * x
    root = (high - low) * size**0.5
    for eps in (root, float(torch.tensor(root)), torch.full((4,), root)):
        result = fastadv.pgd(fastadv.L2(eps, bounds=bounds), steps=2).run(flat, x, y)
        assert result.success.all()
    with pytest.raises(ValueError, match="is larger than the box, whose diameter is"):
        fastadv.fgsm(fastadv.L2(root * 1.0001, bounds=bounds))(flat, x, y)


def test_c_one_image_without_a_batch_axis_is_told_to_take_one():
    p = mixed_problem(2)
    attack = fastadv.pgd(threat_of("linf"), steps=2)
    for y in (p.y[0], p.y[:1]):
        with pytest.raises(ValueError, match=r"y must have shape \(3,\); got .*give x\[None\]"):
            attack.run(p.model, p.x[0], y)
    with pytest.raises(ValueError, match=r"give x\[None\] and y\[None\]"):
        training.FastAT(threat_of("linf")).loss(p.model, p.x[0], p.y[0])
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 2))
    with pytest.raises(RuntimeError) as caught:  # torch convolves an image, and fails behind it
        attack.run(net, p.x[0])
    assert any("give x[None]" in note for note in caught.value.__notes__)
