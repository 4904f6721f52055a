"""Radii and bounds of elements: tabular features with ranges of their own, channels with radii."""

import copy

import pytest
import torch
from plain_loops import pgd_l2, pgd_linf
from tabular_problem import FEATURES, HIGH, LOW, WIDTH, tabular
from toy_models import Quadratic, differing_fields, same_bits

import fastadv

SAMPLES, STEPS = 24, 6
EPS = torch.tensor([[0.3, 0.5, 90.0, 0.1, 0.0, 0.7, 0.2]])
LINF = fastadv.Linf(EPS, bounds=(LOW, HIGH))
L2 = fastadv.L2(EPS, bounds=(LOW, HIGH))


@pytest.fixture(scope="module")
def table():
    return tabular(SAMPLES)


def plain(loop, table, start, **settings):
    model, x, y = table
    everywhere = torch.ones((), dtype=torch.bool)
    return loop(
        model, x, y, start, mask=everywhere, eps=EPS, steps=STEPS, lo=LOW, hi=HIGH, **settings
    )


def test_in_linf_it_is_a_plain_loop_bit_for_bit(table):
    model, x, y = table
    start = fastadv.start_point(LINF, x, seed=4)
    offset = (start - x).abs()
    assert (offset <= EPS * (1 + 1e-6)).all() and (offset[:, EPS[0] == 0] == 0).all()
    assert (offset.amax(0)[[0, 1, 2, 5]] > 0.6 * EPS[0][[0, 1, 2, 5]]).all()
    attack = fastadv.pgd(LINF, steps=STEPS, keep="last")
    got = attack(model, x, y, x_init=start)
    expected = plain(pgd_linf, table, start, step_size=EPS * (2.5 / STEPS))
    assert same_bits(got, expected)
    drawn = fastadv.pgd(LINF, steps=1, step_size=0.0, keep="last", seed=4)(model, x, y)
    assert torch.equal(drawn, start)
    one_length = fastadv.pgd(LINF, steps=STEPS, step_size=0.1, keep="last")(model, x, y, x_init=x)
    assert same_bits(one_length, plain(pgd_linf, table, x, step_size=0.1))


def test_in_l2_the_ball_is_that_of_the_scaled_input(table):
    model, x, y = table
    attack = fastadv.pgd(L2, steps=STEPS, keep="last")
    got = attack(model, x, y, x_init=x)
    free = torch.where((EPS > 0) & (HIGH > LOW), EPS, 1.0)
    still = (EPS == 0) | (HIGH == LOW)
    expected = pgd_l2(
        model,
        x,
        y,
        x,
        mask=~still,
        eps=free,
        steps=STEPS,
        lo=LOW,
        hi=HIGH,
        step_size=2.5 / STEPS,
    )
    torch.testing.assert_close(got / WIDTH, expected / WIDTH, rtol=0, atol=2e-6)
    length = ((got - x).double() / free)[:, ~still[0]].norm(dim=1)
    assert (length <= 1 + 1e-5).all() and (length > 0.5).any()
    torch.testing.assert_close(L2.distance(got, x), length)
    assert fastadv.contains(L2, got, x).all()
    assert not fastadv.contains(L2, x + 1.5 * (got - x), x)[length > 0.9].any()


@pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize(
    "make", [fastadv.fgsm, fastadv.pgd, fastadv.mifgsm, fastadv.apgd_ce, fastadv.apgd_t]
)
def test_every_gradient_attack_stays_inside_and_succeeds(make, threat, table):
    model, x, y = table
    attack = make(threat) if make is fastadv.fgsm else make(threat, steps=STEPS)
    result = attack.run(model, x, y)
    assert result.success.any()
    assert ((result.x_adv >= LOW) & (result.x_adv <= HIGH)).all()
    assert (result.x_adv == x)[:, (EPS[0] == 0) | (LOW[0] == HIGH[0])].all()
    assert fastadv.contains(threat, result.x_adv, x).all()
    assert (result.distance <= 1 + 1e-5).all()  # in units of eps


def test_one_radius_and_bounds_written_out_are_the_usual_ones():
    model = Quadratic(12, 4)
    x = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    whole = torch.full((1, 3, 1, 1), 0.1)
    unit = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    for make in (fastadv.fgsm, fastadv.rfgsm, fastadv.pgd, fastadv.mifgsm, fastadv.apgd_ce):
        usual = make(fastadv.Linf(torch.tensor(0.1))).run(model, x, y)
        for threat in (fastadv.Linf(whole), fastadv.Linf(whole, bounds=unit)):
            written = make(threat).run(model, x, y)
            assert same_bits(written.x_adv, usual.x_adv)
            assert torch.equal(written.success, usual.success)


def test_values_of_each_sample_and_element_go_with_their_samples(table):
    model, x, y = table
    shares = torch.linspace(0.5, 1.0, SAMPLES)[:, None]
    mask = torch.rand(1, FEATURES, generator=torch.Generator().manual_seed(0)) < 0.8

    def run(rows, **execution):
        threat = fastadv.Linf(EPS * shares[rows], bounds=(LOW, HIGH))
        attack = fastadv.apgd_ce(threat, steps=STEPS)
        ids = torch.arange(SAMPLES)[rows]
        execution = fastadv.Execution(**execution)
        return attack.run(model, x[rows], y[rows], mask=mask, sample_ids=ids, execution=execution)

    whole = run(slice(None))
    assert differing_fields(run(slice(None), batch_size=5), whole) == []
    parts = [run(slice(first, first + 9)).x_adv for first in range(0, SAMPLES, 9)]
    assert same_bits(torch.cat(parts), whole.x_adv)
    threat = fastadv.Linf(EPS * shares, bounds=(LOW, HIGH))
    attacks = [fastadv.apgd_ce(threat, steps=STEPS), fastadv.apgd_t(threat, steps=STEPS)]
    ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
    result = ensemble.run(model, x, y, mask=mask)
    assert fastadv.contains(threat, result.x_adv, x).all() and result.success.any()


def test_threat_models_are_compared_and_pasted_back():
    for threat in (LINF, L2, fastadv.Linf(EPS / 99), fastadv.Linf(0.1, bounds=(LOW, 1e9))):
        given = dict(fastadv=fastadv, torch=torch, inf=torch.inf)
        assert eval(repr(threat), given) == threat
        assert copy.deepcopy(threat) == threat and hash(copy.deepcopy(threat)) == hash(threat)
    assert fastadv.Linf(EPS / 99) != fastadv.Linf(EPS / 98)
    assert LINF != fastadv.Linf(EPS, bounds=(LOW, HIGH + 1))


def test_projections(table):
    _, x, _ = table
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * WIDTH
    near = torch.min(torch.max(far, x - EPS), x + EPS)
    assert torch.equal(LINF.project(far, x), torch.min(torch.max(near, LOW), HIGH))
    assert fastadv.contains(L2, L2.project(torch.where(EPS > 0, far, x), x), x).all()


def test_one_value_a_sample_stays_one_value_a_sample():
    model = Quadratic(4, 3)
    x = torch.full((4, 4), 0.5)
    radius = torch.tensor([0.0, 0.1, 0.2, 0.3])
    got = fastadv.bim(fastadv.Linf(radius), steps=20, keep="last")(model, x, x[:, 0].long())
    torch.testing.assert_close((got - x).abs().amax(1), radius)


def attack_of(threat):
    return fastadv.pgd(threat, steps=1)


def anywhere(eps):
    return fastadv.Linf(eps, bounds=None)


@pytest.mark.parametrize(
    "threat, words",
    [
        (anywhere(EPS[0]), r"one value a sample, \(24,\); got \(7,\).*eps\[None\]"),
        (anywhere(EPS[:, :5]), r"eps must be .* or broadcast to x, \(24, 7\), with a batch"),
        (anywhere(EPS[None]), r"eps must be .* broadcast to x.*got \(1, 1, 7\)"),
        (
            fastadv.Linf(0.1, bounds=(LOW[:, :5], 50.0)),
            "lo of bounds must be a float or broadcast to x",
        ),
        (fastadv.Linf(0.1, bounds=(LOW + 0.2, torch.inf)), "of 168 values do not, the first at"),
        (fastadv.Linf(0.1, bounds=(-1.0, torch.inf)), r"x must lie in bounds \(-1.0, inf\)"),
    ],
)
def test_what_does_not_fit_x(threat, words, table):
    with pytest.raises(ValueError, match=words):
        attack_of(threat)(*table)


def test_what_no_threat_model_is():
    with pytest.raises(ValueError, match=r"\(1, 7\); got \(7,\): give lo\[None\]"):
        fastadv.Linf(0.1, bounds=(LOW[0], HIGH[0]))
    with pytest.raises(ValueError, match="lo <= hi in every element"):
        fastadv.Linf(0.1, bounds=(HIGH, LOW))
    with pytest.raises(ValueError, match="must broadcast to each other"):
        fastadv.Linf(0.1, bounds=(LOW, HIGH[:, :3]))
    with pytest.raises(ValueError, match="larger than the range of bounds in some elements"):
        fastadv.Linf(10 * EPS, bounds=(LOW, HIGH))
    with pytest.raises(ValueError, match="eps must be a finite float"):
        fastadv.Linf(-EPS)


def test_attacks_that_take_none_say_what_does():
    for make in (fastadv.fab, fastadv.square):
        with pytest.raises(ValueError, match="radii and bounds of elements: use fastadv.pgd"):
            make(LINF)
    with pytest.raises(ValueError, match="in L1 takes no radii and bounds of elements"):
        fastadv.apgd_ce(fastadv.L1(EPS))
    with pytest.raises(ValueError, match="step_size has one length a sample in L2"):
        fastadv.pgd(fastadv.L2(0.1, bounds=None), step_size=EPS)(
            Quadratic(7, 3), torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64)
        )
