"""Attacks that would be weak, or succeed by mistake, without a word: each says so, once."""

import dataclasses
import math

import pytest
import torch
from members import MEMBERS, member, member_problem
from silent_problems import flat, images, warned
from toy_models import NORMS, Counting, mixed_problem, same_bits, threat_of
from training.training_problems import batches, conv_net

import fastadv
from fastadv import training
from fastadv.compat import torchattacks
from fastadv.compat.autoattack import AutoAttack
from fastadv.compat.robustbench import benchmark

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
    x, y = images(3 * 8 * 8)
    x = x.view(4, 3, 8, 8)
    moved, codes = warned(lambda: torchattacks.FGSM(flat, eps=0)(x, y))
    assert codes == [] and torch.equal(moved, x)
    authors = AutoAttack(flat, eps=0.0, version="custom", attacks_to_run=["apgd-ce"], device="cpu")
    authors.apgd.n_iter = 2
    moved, codes = warned(lambda: authors.run_standard_evaluation(x, y))
    assert codes == [] and torch.equal(moved, x) and "zero_radius" not in capsys.readouterr().out
    moved, codes = warned(lambda: authors.apgd.perturb(x, y))
    assert codes == [] and torch.equal(moved, x)
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=2)
    curve, codes = warned(
        lambda: fastadv.robustness_curve(flat, (x, y), attack, [0.0, 0.5], progress=False)
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
    x, y = images(size)
    attack = fastadv.pgd(threat, steps=2)
    _, codes = warned(lambda: attack.run(flat, x, y))
    assert codes == [("small_radius", 4)] * is_asked
    if is_asked:
        with pytest.warns(fastadv.AttackWarning, match="8/255 is usual for L-infinity"):
            attack(flat, x, y)


def test_b_an_ensemble_and_evaluate_question_a_small_radius_once_and_a_curve_does_not():
    x, y = images(501)
    threat = fastadv.L2(8 / 255)
    attacks = [fastadv.apgd_ce(threat, steps=2), fastadv.apgd_ce(threat, steps=2, restarts=2)]
    ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
    assert warned(lambda: ensemble.run(flat, x, y))[1] == [("small_radius", 4)]
    for attack in (ensemble, attacks[0]):
        report, codes = warned(
            lambda attack=attack: fastadv.evaluate(
                flat, (x, y), attack, batch_size=2, progress=False
            )
        )
        assert codes == [("small_radius", 4)] and report.warnings == {"small_radius": 4}
    radii = [8 / 255, 0.5]
    curve, codes = warned(
        lambda: fastadv.robustness_curve(flat, (x, y), attacks[0], radii, progress=False)
    )
    assert codes == [] and curve.warnings == {}


def test_b_training_questions_a_small_l2_radius_at_the_first_batch():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(501, 3))
    x, y = images(501)
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


def test_b_c_a_plain_call_is_told_nothing_and_asks_the_model_no_more():
    p = mixed_problem(6)
    model = Counting(p.model)
    result, codes = warned(lambda: fastadv.pgd(threat_of("linf"), steps=2).run(model, p.x, p.y))
    assert codes == [] and result.forwards == model.forwards
