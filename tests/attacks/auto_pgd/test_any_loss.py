"""`apgd` takes any loss: a name, as its other names have, a callable, an objective."""

import pytest
import torch
import torch.nn.functional as F
from members import member, member_problem
from toy_models import NORMS, same_bits

import fastadv


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_its_other_names_are_it_with_their_loss(loss, norm):
    problem = member_problem()
    named = member(f"apgd_{loss}", norm)
    again = fastadv.apgd(named.threat, loss=loss, steps=named.steps, restarts=named.restarts)
    one, other = (a.run(problem.model, problem.x, problem.y) for a in (named, again))
    assert same_bits(one.x_adv, other.x_adv)
    assert torch.equal(one.success, other.success)
    assert one.success.any() and not one.success.all()


@pytest.mark.parametrize("norm", NORMS)
def test_an_objective_that_is_the_cross_entropy_finds_the_same(norm):
    """Only roundings of the loss differ: a gradient from autograd, not from the head."""
    problem = member_problem()
    named = member("apgd_ce", norm)

    def loss(output, y):
        return F.cross_entropy(output, y, reduction="none")

    objective = fastadv.Objective(loss, success=lambda output, y: output.argmax(1) != y)
    again = fastadv.apgd(named.threat, loss=objective, steps=named.steps, restarts=2)
    one, other = (a.run(problem.model, problem.x, problem.y) for a in (named, again))
    assert torch.equal(one.success, other.success)
    assert torch.equal(one.step, other.step)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-4, atol=1e-4)
    assert torch.equal(other.prediction == 1, other.success)


def test_targets_in_turn_need_a_named_loss():
    threat = fastadv.Linf(0.1)
    with pytest.raises(ValueError, match="apgd_t aims at classes, by a loss that is named"):
        fastadv.apgd_t(threat, loss=fastadv.objectives.binary())


def test_an_ensemble_refuses_an_objective():
    threat = fastadv.Linf(0.1)
    attack = fastadv.apgd(threat, loss=fastadv.objectives.binary())
    with pytest.raises(ValueError, match="compares margins of classes, which fastadv.objectives"):
        fastadv.autoattack(threat, version="custom", attacks=[attack])
