"""Contract C3 for AutoAttack's members: a success is what the returned tensor shows."""

import warnings

import pytest
import torch
from members import (
    GRADIENT_MEMBERS,
    MEMBERS,
    OF_THE_NEAREST,
    member,
    member_problem,
    of_one_target,
    takes,
)
from torch import nn
from toy_models import NORMS, Counting, same_bits

import fastadv

_KEEPS = [(m, keep) for m in MEMBERS for keep in ("authors", "best") if takes(m, keep=keep)]
_WAYS = [*((name, "first_success") for name in MEMBERS), *_KEEPS]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "keep"), _WAYS)
def test_every_success_is_misclassified_within_eps_and_in_bounds(name, keep, norm):
    p = member_problem(40)
    x = p.x.clone()
    x[::3] = x[::3].round()  # on the edges of the box, which cut starts and steps
    with torch.no_grad():
        y = p.model(x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    attack = member(name, norm, **({} if keep == "first_success" else dict(keep=keep)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = attack.run(p.model, x, y)
    with torch.no_grad():
        logits = p.model(result.x_adv)
    inside = fastadv.contains(attack.threat, result.x_adv, x)
    assert torch.equal(result.success, (logits.argmax(1) != y) & inside)
    assert result.success.any() and not result.success.all()
    assert torch.equal(result.prediction, logits.argmax(1))
    assert torch.equal(result.success, result.step >= 0)
    torch.testing.assert_close(
        result.distance, attack.threat.distance(result.x_adv, x), rtol=0, atol=0
    )
    if keep != "best" or name not in OF_THE_NEAREST:  # which alone may be further away
        assert inside.all()
    assert ((result.x_adv >= 0) & (result.x_adv <= 1)).all()


class _Liar(nn.Module):
    """Wrong on moved samples in the search; in the forward that confirms, from `honest_from`
    calls on, as right as on the clean ones."""

    def __init__(self, model, honest_from):
        super().__init__()
        self.model = model
        self.honest_from = honest_from
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        logits = self.model(x)
        if self.calls < self.honest_from:
            return logits
        return torch.zeros_like(logits).index_fill(1, torch.tensor([0]), 1.0) + 0 * logits


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_what_the_last_look_does_not_confirm_is_no_success(name, norm):
    p = member_problem(40)
    # all of one class, as the liar claims
    x = p.x[(p.model(p.x).argmax(1) == 3)]
    y = torch.full((len(x),), 3)
    order = torch.tensor([3, 0, 1, 2, 4])

    def model(z):
        return p.model(z)[:, order]

    y = torch.zeros_like(y)
    attack = member(name, norm)
    counted = Counting(nn.Identity())
    honest = attack.run(lambda z: counted(model(z)), x, y)
    fallen = int(honest.success.sum())
    assert fallen > 0 and not (honest.clean_prediction != y).any()
    liar = _Liar(model, counted.calls)
    with pytest.warns(fastadv.AttackWarning, match="unconfirmed") as caught:
        result = attack.run(liar, x, y)
    assert liar.calls == counted.calls
    assert {w.message.code: w.message.count for w in caught} == {"unconfirmed": fallen}
    assert not result.success.any() and (result.step == -1).all()


@pytest.mark.parametrize("keep", ["first_success", "authors"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fab", "fab_t"])
def test_where_fab_finds_nothing_within_eps_it_returns_x(name, norm, keep):
    p = member_problem(40)
    result = member(name, norm, keep=keep).run(p.model, p.x, p.y)
    robust = ~result.success
    assert robust.any()
    assert same_bits(result.x_adv[robust], p.x[robust])
    assert (result.distance[robust] == 0).all()
    torch.testing.assert_close(result.prediction[robust], p.y[robust])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fab", "fab_t"])
def test_the_best_of_fab_is_adversarial_at_any_distance(name, norm):
    p = member_problem(40, wrong_every=50)
    result = member(name, norm, keep="best", steps=12, scale=0.5).run(p.model, p.x[1:], p.y[1:])
    beyond = ~result.success & (result.prediction != p.y[1:])
    assert beyond.any() and result.success.any()
    eps = member(name, norm, scale=0.5).threat.eps
    assert (result.distance[beyond] > eps).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_large_radii_return_nothing_outside_eps(norm):
    if norm != "l1":
        with pytest.raises(ValueError, match="L1 only"):
            fastadv.apgd_ce(fastadv.Linf(0.1), large_radii=True)
        return
    p = member_problem(40)
    for keep in ("first_success", "authors", "best"):
        attack = member("apgd_ce", norm, large_radii=True, keep=keep, scale=0.7)
        result = attack.run(p.model, p.x, p.y)
        assert result.success.any() and not result.success.all()
        assert fastadv.contains(attack.threat, result.x_adv, p.x).all()


@pytest.mark.parametrize("name", MEMBERS)
def test_clean_wrong_samples_are_returned_untouched(name):
    p = member_problem(40)
    counted = Counting(p.model)
    result = member(name, "linf").run(counted, p.x, p.y)
    wrong = result.clean_prediction != p.y
    assert wrong.any() and result.success[wrong].all() and (result.step[wrong] == 0).all()
    assert same_bits(result.x_adv[wrong], p.x[wrong])
    all_wrong = member(name, "linf").run(Counting(p.model), p.x, (p.model(p.x).argmax(1) + 1) % 5)
    assert all_wrong.success.all() and all_wrong.backwards == 0 and all_wrong.forwards == 80


class _NaNBeyond(nn.Module):
    """The model's logits, but NaN, whose argmax is class 0, away from the clean samples."""

    def __init__(self, model, x, radius):
        super().__init__()
        self.model = model
        self.x = x
        self.radius = radius

    def forward(self, z):
        logits = self.model(z)
        near = torch.stack([(row - self.x).abs().flatten(1).amax(1).amin() for row in z.detach()])
        return torch.where((near > self.radius)[:, None], float("nan"), logits)


@pytest.mark.parametrize("name", MEMBERS)
def test_nan_logits_are_no_success_and_warned_of(name):
    p = member_problem(12, wrong_every=20)
    x, y = p.x[1:], p.y[1:]
    attack = member(name, "linf", scale=0.7)
    model = _NaNBeyond(p.model, x, 1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = attack.run(model, x, y)
    assert "nan_logits" in {w.message.code for w in caught}
    assert not result.success.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRADIENT_MEMBERS)
def test_a_zero_gradient_is_warned_of(name, norm):
    p = member_problem(12, wrong_every=20)

    def saturated(z):
        return p.model(z) + 0 * z.flatten(1)[:, :1] if not z.requires_grad else _Dead.apply(z, p)

    class _Dead(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, p):
            return p.model(z)

        @staticmethod
        def backward(ctx, grad):  # type: ignore[override]
            return torch.zeros(len(grad), 3, 5, 6), None

    with pytest.warns(fastadv.AttackWarning, match="exactly zero") as caught:
        member(name, norm, scale=0.3, **of_one_target(name)).run(saturated, p.x[1:], p.y[1:])
    counts = {w.message.code: w.message.count for w in caught}
    assert counts["zero_gradient"] >= 8  # but for those that the start fools


@pytest.mark.parametrize("norm", NORMS)
def test_square_refuses_a_start_outside_the_ball(norm):
    p = member_problem(6)
    attack = member("square", norm, restarts=1)
    inside = attack.run(p.model, p.x, p.y, x_init=p.x)
    assert torch.equal(inside.success, inside.prediction != p.y)
    with pytest.raises(ValueError, match="project it first"):
        attack.run(p.model, p.x, p.y, x_init=1 - p.x)
