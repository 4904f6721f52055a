"""Settings, losses, targets and executions that make no sense are refused where they are given."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_bad_input import KEEPS, _attack, _run
from torch import nn
from toy_models import Quadratic, mixed_problem

import fastadv


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(loss="cw"), r"loss must be one of \('ce', 'margin', .*\) or a callable; got 'cw'"),
        (dict(loss=None), "loss must be one of"),
        (dict(loss=3), "loss must be one of"),
        (dict(keep="all"), "keep must be one of.*got 'all'"),
        (dict(random_start="normal"), "random_start must be a bool or one of .*got 'normal'"),
        (dict(random_start="sphere"), "random_start must be a bool or one of .*got 'sphere'"),
        (dict(random_start=None), "random_start must be a bool or one of .*got None"),
        (dict(restarts=3, random_start=False), "restarts=3 needs a random start"),
        (dict(restarts=2, keep="last"), "keep='last' takes restarts=1"),
        (dict(kappa=1.0), "kappa=1 belongs to loss='margin'"),
        (dict(kappa=-1.0, loss="margin"), "kappa must be >= 0"),
        (dict(kappa=math.nan, loss="margin"), "kappa must be"),
        (dict(label_smoothing=0.1, loss="dlr"), "label_smoothing=0.1 belongs to loss='ce'"),
        (dict(label_smoothing=1.5), "label_smoothing in"),
        (dict(steps=0), "steps must be an integer of at least 1; got 0"),
        (dict(steps=2.5), "steps must be an integer"),
        (dict(restarts=0), "restarts must be an integer"),
        (dict(eot=0), "eot must be an integer"),
        (dict(steps=True), "steps must be an integer"),
        (dict(seed=1.5), "seed must be"),
        (dict(sparsity=0.0), "sparsity must be in"),
        (dict(sparsity=math.nan), "sparsity must be in"),
        (dict(sparsity=0.5), "sparsity.*L1"),
        (dict(guard=1e-3), "guard.*L2"),
        (dict(guard=-1.0), "guard"),
    ],
    ids=str,
)
def test_settings_are_checked_where_they_are_given(more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        _attack(**more)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="alpha"):
        fastadv.pgd(fastadv.Linf(0.1), alpha=0.1)
    with pytest.raises(TypeError, match="by position"):
        fastadv.pgd(fastadv.Linf(0.1), 10)


def test_a_radius_alone_is_no_threat_model():
    with pytest.raises(TypeError, match="threat must be"):
        fastadv.pgd(0.1)


def test_restarts_from_one_given_start_are_refused():
    problem = mixed_problem(6)
    with pytest.raises(ValueError, match="restarts.*x_init"):
        _run(x_init=problem.x, attack=_attack(restarts=3))


@pytest.mark.parametrize("target", ["most_likely", "", "untargeted"])
def test_an_unknown_target_rule_is_refused(target):
    with pytest.raises(ValueError, match=r"target must be a \(B,\) tensor or one of"):
        _run(target=target)


@pytest.mark.parametrize(("classes", "target"), [(2, None), (3, "random")])
def test_dlr_of_too_few_classes_names_the_margin_loss(classes, target):
    model = Quadratic(48, classes)
    with pytest.raises(ValueError, match="needs at least .*classes.*loss='margin'"):
        _run(
            model=model,
            y=torch.zeros(6, dtype=torch.long),
            attack=_attack(loss="dlr"),
            target=target,
        )


def test_losses_that_need_or_forbid_a_target_say_so():
    with pytest.raises(ValueError, match="give target=, or use loss='margin'"):
        _run(attack=_attack(loss="difference"))
    with pytest.raises(ValueError, match="loss='kl' moves away .* takes no target="):
        _run(attack=_attack(loss="kl"), target="random")


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (lambda logits, y: F.cross_entropy(logits, y), r"got \(\)"),
        (lambda logits, y: logits, r"got \(6, 5\)"),
        (lambda logits, y: F.cross_entropy(logits, y, reduction="none")[:, None], r"got \(6, 1\)"),
        (lambda logits, y: 1.0, "got float"),
    ],
    ids=["mean", "matrix", "column", "float"],
)
def test_a_loss_must_give_one_value_a_sample(loss, got, keep):
    with pytest.raises(ValueError, match=rf"loss must map.*\(6,\); {got}.*reduction='none'"):
        _run(attack=_attack(loss=loss, keep=keep), y=torch.zeros(6, dtype=torch.long))


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, y: F.cross_entropy(logits.detach(), y, reduction="none"),
        lambda logits, y: (logits.argmax(1) != y).float(),
    ],
    ids=["detached", "0-1"],
)
def test_a_loss_without_gradient_is_refused(loss):
    problem = mixed_problem(6)
    with torch.no_grad():
        y = problem.model(problem.x).argmax(1)
    with pytest.raises(ValueError, match="loss.*gradient"):
        _run(attack=_attack(loss=loss), y=y)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (dict(batching="dynamic"), "batching must be one of .*got 'dynamic'"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(batch_size=-3), "batch_size must be at least 1"),
        (dict(batch_size=2.5), "batch_size must be"),
    ],
    ids=str,
)
def test_execution_is_checked(more, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fastadv.Execution(**more)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((0.5,), (-1.0,)), (0.5, 0.5), ((0.5,), (math.nan,))],
    ids=str,
)
def test_mean_and_std_must_be_one_float_a_channel(mean, std):
    with pytest.raises(ValueError, match="mean and std must be one float a channel, std > 0"):
        fastadv.Normalized(nn.Identity(), mean=mean, std=std)


def test_mean_and_std_may_be_tensors_and_are_copied(recwarn):
    mean = torch.full((3,), 0.5)
    model = fastadv.Normalized(nn.Identity(), mean=mean, std=torch.ones(3))
    mean.zero_()
    assert model.mean.tolist() == [0.5] * 3 and not recwarn.list


def test_normalized_of_no_model_or_no_numbers_is_refused_in_words():
    with pytest.raises(TypeError, match="model must be callable; got list"):
        fastadv.Normalized([0.5], [0.5], nn.Identity())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="std must be one float a channel; got Identity"):
        fastadv.Normalized(nn.Identity(), [0.5], nn.Identity())  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", KEEPS)
def test_normalisation_of_other_channels_is_refused(keep):
    problem = mixed_problem(6)
    model = fastadv.Normalized(problem.model, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"x must have 2 channels.*got \(6, 3, 4, 4\)"):
        _run(model=model, attack=_attack(keep=keep))


def test_rfgsm_of_another_norm_names_pgd():
    with pytest.raises(ValueError, match="rfgsm is defined for Linf only.*use pgd"):
        fastadv.rfgsm(fastadv.L2(0.5))


def test_bpda_attacks_what_has_no_gradient():
    problem = mixed_problem(24)

    def quantise(z):
        return (z * 16).round() / 16

    blocked = nn.Sequential(fastadv.BPDA(quantise), problem.model)
    with torch.no_grad():
        y = blocked(problem.x).argmax(1)
    attack = fastadv.bim(fastadv.Linf(0.1), steps=5)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 24 of 24"):
        assert not attack.run(lambda z: problem.model(quantise(z)), problem.x, y).success.any()
    assert attack.run(blocked, problem.x, y).success.any()
