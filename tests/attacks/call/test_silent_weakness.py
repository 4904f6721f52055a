"""Attacks that would be weak, or succeed by mistake, without a word: each says so, once."""

import dataclasses
import math
import warnings

import pytest
import torch
from members import MEMBERS, member, member_problem
from toy_models import NORMS, Counting, mixed_problem, same_bits, threat_of
from training.training_problems import THREAT, batches, conv_net

import fastadv
from fastadv import training
from fastadv.compat import torchattacks
from fastadv.compat.autoattack import AutoAttack
from fastadv.compat.robustbench import benchmark


def warned(call):
    """(what was returned, (code, count) of every AttackWarning); other warnings fail."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    messages = [w.message for w in caught]
    assert all(isinstance(message, fastadv.AttackWarning) for message in messages), messages
    return result, [(message.code, message.count) for message in messages]


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Three classes of images of any size, some of which are easily fooled."""
    rows = x.flatten(1)
    thirds = rows.tensor_split(3, dim=1)
    return torch.stack([third.sum(1) for third in thirds], 1)


def _images(size: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, size, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    return x, _flat(x).argmax(1)


# -- B: target == label


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_b_a_target_that_is_the_label_is_no_success_and_is_warned_of(keep):
    p = mixed_problem(12)
    target = (p.y + 1) % 5
    attack = fastadv.pgd(threat_of("linf", 4.0), steps=8, keep=keep)
    expected = attack.run(p.model, p.x, p.y, target=target)
    assert int(expected.success.sum()) > 3
    own = torch.arange(12) % 3 == 0
    mixed = torch.where(own, p.y, target)
    result, codes = warned(lambda: attack.run(p.model, p.x, p.y, target=mixed))
    assert codes == [("target_is_label", 4)]
    assert not result.success[own].any() and bool((result.step[own] == -1).all())
    assert torch.equal(result.success[~own], expected.success[~own])
    assert torch.equal(result.x_adv[~own], expected.x_adv[~own])
    if keep != "last":
        assert torch.equal(result.x_adv[own], p.x[own])


def test_b_without_labels_the_prediction_is_the_label_that_a_target_may_not_be():
    p = mixed_problem(12)
    with torch.no_grad():
        predicted = p.model(p.x).argmax(1)
    attack = fastadv.pgd(threat_of("linf"), steps=2)
    result, codes = warned(lambda: attack.run(p.model, p.x, target=predicted))
    assert codes == [("target_is_label", 12)]
    assert not result.success.any()
    for rule in ("least_likely", "second_best", "random"):
        assert warned(lambda rule=rule: attack.run(p.model, p.x, p.y, target=rule))[1] == []


def test_b_a_call_that_verifies_nothing_warns_of_targets_that_are_labels_too():
    p = mixed_problem(12)
    attack = fastadv.pgd(threat_of("linf"), steps=2, keep="last")
    _, codes = warned(lambda: attack(p.model, p.x, p.y, target=p.y))
    assert codes == [("target_is_label", 12)]
    assert warned(lambda: attack(p.model, p.x, target=p.y))[1] == []  # no label is known


# -- B: radii


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["pgd", *MEMBERS])
def test_b_a_radius_of_zero_returns_x_and_warns(name, norm):
    p = member_problem(6)
    still = dataclasses.replace(threat_of(norm), eps=0.0)
    attack = fastadv.pgd(still, steps=2) if name == "pgd" else None
    attack = attack or dataclasses.replace(member(name, norm), threat=still)
    result, codes = warned(lambda: attack.run(p.model, p.x, p.y))
    assert codes == [("zero_radius", 6)]
    assert same_bits(result.x_adv, p.x)
    assert torch.equal(result.success, result.clean_prediction != p.y)


def test_b_a_radius_of_zero_is_silent_in_dropins_and_curves(capsys):
    x, y = _images(3 * 8 * 8)
    x = x.view(4, 3, 8, 8)
    moved, codes = warned(lambda: torchattacks.FGSM(_flat, eps=0)(x, y))
    assert codes == [] and torch.equal(moved, x)
    authors = AutoAttack(_flat, eps=0.0, version="custom", attacks_to_run=["apgd-ce"], device="cpu")
    authors.apgd.n_iter = 2
    moved, codes = warned(lambda: authors.run_standard_evaluation(x, y))
    assert codes == [] and torch.equal(moved, x) and "zero_radius" not in capsys.readouterr().out
    moved, codes = warned(lambda: authors.apgd.perturb(x, y))
    assert codes == [] and torch.equal(moved, x)
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=2)
    curve, codes = warned(
        lambda: fastadv.robustness_curve(_flat, (x, y), attack, [0.0, 0.5], progress=False)
    )
    assert codes == [] and curve.warnings == {}
    assert curve.robust_accuracy == (1.0, 0.0)


@pytest.mark.parametrize(
    ("threat", "size", "is_asked"),
    [
        (fastadv.L2(8 / 255), 501, True),
        (fastadv.L2(0.0999), 501, True),
        (fastadv.L2(torch.full((4,), 0.05)), 501, True),
        (fastadv.L2(0.19, bounds=(-1.0, 1.0)), 501, True),
        (fastadv.L2(8 / 255), 500, False),
        (fastadv.L2(0.1), 501, False),
        (fastadv.L2(0.21, bounds=(-1.0, 1.0)), 501, False),
        (fastadv.L2(torch.tensor([0.05, 0.05, 0.05, 0.5])), 501, False),
        (fastadv.L2(0.05, bounds=None), 501, False),
        (fastadv.L2(0.05, bounds=(0.0, math.inf)), 501, False),
        (fastadv.Linf(8 / 255), 501, False),
        (fastadv.L1(8 / 255), 501, False),
    ],
    ids=str,
)
def test_b_a_small_l2_radius_is_questioned_once_a_call(threat, size, is_asked):
    x, y = _images(size)
    attack = fastadv.pgd(threat, steps=2)
    _, codes = warned(lambda: attack.run(_flat, x, y))
    assert codes == [("small_radius", 4)] * is_asked
    if is_asked:
        with pytest.warns(fastadv.AttackWarning, match="8/255 is usual for L-infinity"):
            attack(_flat, x, y)


def test_b_an_ensemble_and_evaluate_question_a_small_radius_once_and_a_curve_does_not():
    x, y = _images(501)
    threat = fastadv.L2(8 / 255)
    attacks = [fastadv.apgd_ce(threat, steps=2), fastadv.apgd_ce(threat, steps=2, restarts=2)]
    ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
    assert warned(lambda: ensemble.run(_flat, x, y))[1] == [("small_radius", 4)]
    for attack in (ensemble, attacks[0]):
        report, codes = warned(
            lambda attack=attack: fastadv.evaluate(
                _flat, (x, y), attack, batch_size=2, progress=False
            )
        )
        assert codes == [("small_radius", 4)] and report.warnings == {"small_radius": 4}
    radii = [8 / 255, 0.5]
    curve, codes = warned(
        lambda: fastadv.robustness_curve(_flat, (x, y), attacks[0], radii, progress=False)
    )
    assert codes == [] and curve.warnings == {}


def test_b_training_questions_a_small_l2_radius_at_the_first_batch():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(501, 3))
    x, y = _images(501)
    step = training.PGDAT(fastadv.L2(8 / 255), steps=1)
    assert warned(lambda: step.loss(net, x, y))[1] == [("small_radius", 4)]
    assert warned(lambda: step.loss(net, x, y))[1] == []


# -- B: RobustBench


def test_b_benchmark_warns_of_a_model_in_train_mode_and_leaves_it_so(capsys):
    net, (x, y) = conv_net(), batches(1, size=4)[0]
    net.train()

    def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AutoAttack, "run_standard_evaluation", lambda self, x, y, **_: x)
            return benchmark(net, dataset=(x, y), eps=0.1)

    with pytest.warns(UserWarning, match="train mode: it is benchmarked in eval mode") as caught:
        accuracies = run()
    assert len(caught) == 1 and net.training
    net.eval()
    assert run() == accuracies  # and nothing is said


# -- C: rounding


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)], ids=str)
@pytest.mark.parametrize("call", [False, True])
def test_c_inputs_out_of_bounds_by_rounding_are_clamped_with_one_warning(bounds, call):
    low, high = bounds
    width = high - low
    x, y = _images(48)
    x = (low + width * x).double()
    x[1, 0], x[1, 1], x[2, 3] = low - 0.99e-6 * width, high + 0.99e-6 * width, high + 1e-6 * width
    clamped = x.clamp(low, high)
    attack = fastadv.pgd(fastadv.Linf(0.1 * width, bounds=bounds), steps=3)
    expected = attack.run(_flat, clamped, y)
    if call:
        moved, codes = warned(lambda: attack(_flat, x, y))
    else:
        result, codes = warned(lambda: attack.run(_flat, x, y))
        moved = result.x_adv
        for field in ("success", "distance", "loss", "step"):
            assert torch.equal(getattr(result, field), getattr(expected, field)), field
    assert codes == [("rounded_input", 2)]
    assert torch.equal(moved, expected.x_adv)


def test_c_rounding_is_clamped_at_bounds_of_elements_too():
    x, y = _images(48)
    high = torch.linspace(0.8, 2.0, 48)[None]
    x[1] = high[0] * (1 + 0.9e-6)
    attack = fastadv.pgd(fastadv.Linf(0.05, bounds=(0.0, high)), steps=2)
    x[0, 3] = 0.0
    expected = attack.run(_flat, torch.minimum(x, high), y)
    result, codes = warned(lambda: attack.run(_flat, x, y))
    assert codes == [("rounded_input", 1)]
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.distance, expected.distance)
    x[1, 0] = 0.8 + 1e-5
    with pytest.raises(ValueError, match=r"of its elements; 1 of .*\[1, 0\]: 0.80001.* beyond"):
        attack.run(_flat, x, y)


@pytest.mark.parametrize("where", [1, -1])
@pytest.mark.parametrize("excess", [1.2e-6, 3e-5, 0.01, 2.0])
def test_c_a_larger_excess_is_an_error_that_says_how_large_it_is(excess, where):
    x, y = _images(48)
    x[2, 5] = 1 + excess if where > 0 else -excess
    beyond = max(float(x.max()) - 1, -float(x.min()))
    with pytest.raises(ValueError, match=r"x must lie in bounds \(0.0, 1.0\); got") as caught:
        fastadv.fgsm(fastadv.Linf(0.1)).run(_flat, x, y)
    text = str(caught.value)
    assert f", {beyond:.3g} beyond. " in text
    assert "to 1," not in text and "from 0 " not in text


def test_c_rounding_is_silent_in_dropins(capsys):
    x, y = _images(3 * 8 * 8)
    x = x.view(4, 3, 8, 8)
    x[0, 0, 0, 0] = 1 + 9.5e-7
    inside = x.clamp(0, 1)
    assert not torch.equal(x, inside)
    attack = torchattacks.BIM(_flat, eps=0.1, alpha=0.05, steps=2)
    moved, codes = warned(lambda: attack(x, y))
    assert codes == [] and torch.equal(moved, attack(inside, y))
    authors = AutoAttack(_flat, eps=0.1, version="custom", attacks_to_run=["apgd-ce"], device="cpu")
    authors.apgd.n_iter = 2
    for run in (authors.run_standard_evaluation, authors.apgd.perturb):
        moved, codes = warned(lambda run=run: run(x, y))
        assert codes == [] and torch.equal(moved, run(inside, y))
    assert "rounded_input" not in capsys.readouterr().out


def test_c_evaluate_and_curves_take_the_clamped_sample(tmp_path):
    x, y = _images(48, count=6)
    x[4, 7] = 1 + 9e-7
    inside = x.clamp(0, 1)
    attacks = [fastadv.fgsm(fastadv.Linf(0.001)), fastadv.apgd_ce(fastadv.Linf(0.001), steps=2)]
    ensemble = fastadv.autoattack(attacks[0].threat, version="custom", attacks=attacks[1:])
    for attack in (attacks[0], ensemble):
        expected = fastadv.evaluate(_flat, (inside, y), attack, progress=False)
        report, codes = warned(
            lambda attack=attack: fastadv.evaluate(_flat, (x, y), attack, progress=False)
        )
        assert codes == [("rounded_input", 1)] and report.warnings == {"rounded_input": 1}
        assert torch.equal(report.distance, expected.distance)
        assert torch.equal(report.robust, expected.robust)
    radii = [0.0005, 0.001]
    curve, codes = warned(
        lambda: fastadv.robustness_curve(_flat, (x, y), attacks[0], radii, progress=False)
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
    x, y = _images(size)
    x = low + (high - low) * x
    root = (high - low) * size**0.5
    for eps in (root, float(torch.tensor(root)), torch.full((4,), root)):
        result = fastadv.pgd(fastadv.L2(eps, bounds=bounds), steps=2).run(_flat, x, y)
        assert result.success.all()
    with pytest.raises(ValueError, match="is larger than the box, whose diameter is"):
        fastadv.fgsm(fastadv.L2(root * 1.0001, bounds=bounds))(_flat, x, y)


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


def test_b_c_a_plain_call_is_told_nothing_and_asks_the_model_no_more():
    p = mixed_problem(6)
    model = Counting(p.model)
    result, codes = warned(lambda: fastadv.pgd(threat_of("linf"), steps=2).run(model, p.x, p.y))
    assert codes == [] and result.forwards == model.forwards
