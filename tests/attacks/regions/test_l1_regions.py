"""Masks, radii and bounds of elements in L1: the plain step around which elements are held."""

import pytest
import torch
from op_counts import outer_ops, per_step
from plain_loops import pgd_l1
from tabular_problem import FEATURES, HIGH, LOW, WIDTH, tabular
from toy_models import differing_fields, mixed_problem, same_bits, threat_of

import fastadv

SAMPLES, STEPS = 24, 5
FIXED_STEPS = [fastadv.fgsm, fastadv.bim, fastadv.pgd, fastadv.mifgsm]
EPS = torch.tensor([[0.9, 2.0, 400.0, 0.1, 0.0, 2.0, 0.4]])  # nor the fifth
SCALED = fastadv.L1(EPS, bounds=(LOW, HIGH))
STILL = (EPS == 0) | (LOW == HIGH)


def made(make, threat, **settings):
    return make(threat, **settings, **({} if make is fastadv.fgsm else dict(steps=STEPS)))


@pytest.fixture(scope="module")
def problem():
    return mixed_problem(SAMPLES)


@pytest.fixture(scope="module")
def table():
    return tabular(SAMPLES)


def drawn_mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6


@pytest.mark.parametrize("make", FIXED_STEPS)
def test_outside_nothing_moves_and_inside_it_is_an_attack(make, problem):
    mask, threat = drawn_mask(SAMPLES, 1, 4, 4), threat_of("l1", 4.0)
    result = made(make, threat).run(problem.model, problem.x, problem.y, mask=mask)
    outside = ~mask.expand_as(problem.x)
    assert same_bits(result.x_adv[outside], problem.x[outside])
    assert (result.success & (result.step > 0)).any()
    length = (result.x_adv.double() - problem.x.double()).abs().flatten(1).sum(1)
    assert (length <= threat.eps * (1 + 1e-6)).all()
    assert fastadv.contains(threat, result.x_adv, problem.x).all()


@pytest.mark.parametrize("bounds", [(0.0, 1.0), None], ids=str)
@pytest.mark.parametrize("make", FIXED_STEPS)
def test_a_mask_of_everything_changes_no_bit_and_one_of_nothing_returns_x(make, bounds, problem):
    attack = made(make, threat_of("l1", bounds=bounds))
    free = attack.run(problem.model, problem.x, problem.y)
    everything = torch.ones(4, 4, dtype=torch.bool)
    same = attack.run(problem.model, problem.x, problem.y, mask=everything)
    assert differing_fields(same, free) == []
    nothing = attack.run(problem.model, problem.x, problem.y, mask=~everything)
    assert same_bits(nothing.x_adv, problem.x)


@pytest.mark.parametrize("shape", [(4, 4), (SAMPLES, 3, 4, 4)], ids=str)
def test_masked_iterates_are_those_of_a_plain_loop(shape, problem):
    """The share of sparsity is one of the elements in the mask."""
    x, mask = problem.x, drawn_mask(*shape)
    threat = fastadv.L1(1.5, bounds=None)
    for sparsity in (0.07, 0.33):
        attack = fastadv.pgd(threat, steps=STEPS, step_size=0.6, sparsity=sparsity, keep="last")
        got = attack(problem.model, x, problem.y, mask=mask, x_init=x)
        expected = pgd_l1(
            problem.model,
            x,
            problem.y,
            x,
            mask=mask,
            eps=torch.tensor(1.5),
            step_size=0.4,
            steps=STEPS,
            lo=torch.tensor(-torch.inf),
            hi=torch.tensor(torch.inf),
            sparsity=sparsity,
        )
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
        assert (got != x).any()


@pytest.mark.parametrize("sparsity", [0.3, 1.0])
@pytest.mark.parametrize("radii", ["one", "elements"])
def test_radii_and_bounds_are_those_of_a_plain_loop(radii, sparsity, table):
    model, x, y = table
    eps = EPS if radii == "elements" else torch.full_like(EPS, 0.4)
    threat = fastadv.L1(EPS if radii == "elements" else 0.4, bounds=(LOW, HIGH))
    step = 0.4 if radii == "elements" else 0.4 * 0.4
    attack = fastadv.pgd(threat, steps=STEPS, step_size=step, sparsity=sparsity, keep="last")
    moving = ~STILL if radii == "elements" else LOW < HIGH
    settings = dict(mask=moving, eps=eps, step_size=0.4, steps=STEPS, lo=LOW, hi=HIGH)
    got = attack(model, x, y, x_init=x)
    expected = pgd_l1(model, x, y, x, sparsity=sparsity, **settings)
    torch.testing.assert_close(got / WIDTH, expected / WIDTH, rtol=0, atol=2e-6)
    assert same_bits(got[:, ~moving[0]], x[:, ~moving[0]]) and (got != x).any()


@pytest.mark.parametrize("make", FIXED_STEPS)
def test_every_fixed_step_attack_stays_in_the_scaled_ball_and_succeeds(make, table):
    model, x, y = table
    result = made(make, SCALED).run(model, x, y)
    assert result.success.any()
    assert ((result.x_adv >= LOW) & (result.x_adv <= HIGH)).all()
    assert same_bits(result.x_adv[:, STILL[0]], x[:, STILL[0]])
    moved = (result.x_adv.double() - x.double())[:, ~STILL[0]] / EPS[~STILL].double()
    length = moved.abs().sum(1)
    assert (length <= 1 + 1e-4).all()  # a rounding of 900 is 1.5e-7 of its radius, of 3 the same
    assert fastadv.contains(SCALED, result.x_adv, x).all()
    torch.testing.assert_close(result.distance, length.to(result.distance.dtype))
    with torch.no_grad():
        broken = model(result.x_adv).argmax(1) != y
    assert torch.equal(broken, result.success)


def test_random_starts_fill_the_scaled_ball_inside_of_the_mask(table):
    model, x, y = table
    mask = torch.tensor([[True, True, True, True, True, False, True]])
    attacks = [fastadv.pgd(SCALED, steps=1, step_size=0.0, keep="last", seed=s) for s in range(2)]
    starts = [attack(model, x, y, mask=mask) for attack in attacks]
    assert not torch.equal(*starts)
    for start in starts:
        assert fastadv.contains(SCALED, start, x).all()
        assert same_bits(start[:, ~mask[0]], x[:, ~mask[0]])
        assert (start != x)[:, (mask & ~STILL)[0]].float().mean() > 0.9
    drawn = fastadv.start_point(SCALED, x, seed=0)
    assert fastadv.contains(SCALED, drawn, x).all() and (SCALED.distance(drawn, x) > 0.3).any()


def test_projections(table):
    _, x, _ = table
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * WIDTH
    near = SCALED.project(far, x)
    assert fastadv.contains(SCALED, near, x).all()
    torch.testing.assert_close(SCALED.project(near, x), near)
    assert same_bits(SCALED.project(x, x), x)


def test_regions_go_with_their_samples(table):
    """Regrouped as slots are freed, in batches of any size."""
    model, x, y = table
    shares = torch.linspace(0.5, 1.0, SAMPLES)[:, None]
    threat = fastadv.L1(EPS * shares, bounds=(LOW, HIGH))
    mask = drawn_mask(SAMPLES, FEATURES)
    for settings in (dict(threat=threat), dict(threat=fastadv.L1(0.4, bounds=(LOW, HIGH)))):
        attack = fastadv.pgd(**settings, steps=STEPS, sparsity=0.3, restarts=2)
        whole = attack.run(model, x, y, mask=mask)
        assert whole.success.any()
        for execution in (dict(batch_size=3), dict(batching="plain")):
            execution = fastadv.Execution(**execution)
            got = attack.run(model, x, y, mask=mask, execution=execution)
            assert differing_fields(got, whole) == []


def test_masked_successes_keep_their_bits_under_regrouping(problem):
    mask, attack = drawn_mask(SAMPLES, 3, 4, 4), made(fastadv.mifgsm, threat_of("l1", 4.0))
    whole = attack.run(problem.model, problem.x, problem.y, mask=mask)
    small = fastadv.Execution(batch_size=3)
    got = attack.run(problem.model, problem.x, problem.y, mask=mask, execution=small)
    assert differing_fields(got, whole) == []


def test_normalised_models_are_attacked_alike(problem):
    """Whose gradient is that of the normalised input."""
    model = fastadv.Normalized(problem.model, mean=(0.4, 0.5, 0.4), std=(0.2, 0.3, 0.25))
    mask, eps = drawn_mask(SAMPLES, 3, 4, 4), torch.rand(1, 3, 4, 4) + 1.0
    bounds = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    for threat in (fastadv.L1(2.0), fastadv.L1(2.0, bounds=bounds), fastadv.L1(eps)):
        attack = fastadv.bim(threat, steps=3, keep="last")
        got = attack(model, problem.x, problem.y, mask=mask)
        expected = attack(lambda x: model(x), problem.x, problem.y, mask=mask)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert same_bits(got[~mask], problem.x[~mask]) and (got != problem.x).any()


def test_channels_last_and_half_precision(problem):
    mask = drawn_mask(SAMPLES, 3, 4, 4)
    eps = torch.rand(1, 3, 4, 4) + 1.0
    for threat in (fastadv.L1(2.0), fastadv.L1(eps)):
        attack = fastadv.pgd(threat, steps=3)
        expected = attack(problem.model, problem.x, problem.y, mask=mask)
        last = problem.x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(attack(problem.model, last, problem.y, mask=mask), expected)
        model, half = (t.to(torch.bfloat16) for t in (mixed_problem(4).model, problem.x))
        got = attack(model, half, problem.y, mask=mask)
        assert same_bits(got[~mask], half[~mask])
        assert fastadv.contains(threat, got, half).all()


def added(counts, plain):
    """The operations that `counts` has beyond those of `plain`, views apart."""
    views = {"aten::as_strided", "aten::detach"}
    more = {name: counts[name] - plain.get(name, 0) for name in counts.keys() - views}
    return {name: count for name, count in more.items() if count}


def test_a_mask_adds_one_operation_to_a_step_and_bounds_another(problem):
    whole = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    mask, execution = drawn_mask(SAMPLES, 3, 4, 4), fastadv.Execution(batching="plain")

    def step(threat, **given):
        def call_of(steps):
            attack = fastadv.pgd(threat, steps=steps)
            return lambda: attack(problem.model, problem.x, problem.y, execution=execution, **given)

        return per_step(outer_ops, call_of)

    plain = step(fastadv.L1(1.0))
    masked = step(fastadv.L1(1.0), mask=mask)
    bounded = step(fastadv.L1(1.0, bounds=whole), mask=mask)
    assert added(masked, plain) == {"aten::mul": 1}
    assert added(bounded, plain) == {"aten::mul": 1, "aten::clamp": 1}


def test_gaussian_starts_and_step_sizes_of_elements_are_refused_in_words(problem):
    mask = drawn_mask(4, 4)
    attack = fastadv.pgd(fastadv.L1(1.0), steps=1, random_start="gaussian")
    with pytest.raises(ValueError, match="a 'gaussian' start in L1 takes no mask="):
        attack(problem.model, problem.x, problem.y, mask=mask)
    attack = fastadv.pgd(fastadv.L1(1.0), steps=1, step_size=torch.ones(1, 3, 1, 1))
    with pytest.raises(ValueError, match="step_size has one length a sample in L1"):
        attack(problem.model, problem.x, problem.y)
