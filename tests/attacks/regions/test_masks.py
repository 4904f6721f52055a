"""`mask=`: what lies outside of it does not move, and has no part in norms."""

import pytest
import torch
from op_counts import outer_ops, per_step
from plain_loops import pgd_l2, pgd_linf
from toy_models import differing_fields, mixed_problem, same_bits, threat_of

import fastadv

SAMPLES = 24
STEPS = 5
ATTACKS = [
    pytest.param(make, norm, id=f"{make.__name__}-{norm}")
    for make in (
        fastadv.fgsm,
        fastadv.bim,
        fastadv.pgd,
        fastadv.mifgsm,
        fastadv.rfgsm,
        fastadv.apgd_ce,
        fastadv.apgd_t,
    )
    for norm in ("linf", "l2")
    if (make, norm) != (fastadv.rfgsm, "l2")
]


def made(make, norm, **settings):
    single = make in (fastadv.fgsm, fastadv.rfgsm)
    threat = threat_of(norm, 2.0)
    return make(threat, **settings) if single else make(threat, steps=STEPS, **settings)


@pytest.fixture(scope="module")
def problem():
    return mixed_problem(SAMPLES)


def drawn_mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.6


@pytest.mark.parametrize("make, norm", ATTACKS)
def test_outside_nothing_moves_and_inside_it_is_an_attack(make, norm, problem):
    mask = drawn_mask(SAMPLES, 1, 4, 4)
    result = made(make, norm).run(problem.model, problem.x, problem.y, mask=mask)
    outside = ~mask.expand_as(problem.x)
    assert same_bits(result.x_adv[outside], problem.x[outside])
    fell = result.success & (result.step > 0)
    assert fell.any() and (result.x_adv != problem.x)[fell].flatten(1).any(1).all()
    inside = fastadv.contains(threat_of(norm, 2.0), result.x_adv, problem.x)
    assert inside.all()


@pytest.mark.parametrize("make, norm", ATTACKS)
def test_a_mask_of_everything_changes_no_bit_and_one_of_nothing_returns_x(make, norm, problem):
    attack = made(make, norm)
    free = attack.run(problem.model, problem.x, problem.y)
    everything = torch.ones(4, 4, dtype=torch.bool)
    same = attack.run(problem.model, problem.x, problem.y, mask=everything)
    assert differing_fields(same, free) == []
    nothing = attack.run(problem.model, problem.x, problem.y, mask=~everything)
    assert same_bits(nothing.x_adv, problem.x)
    assert torch.equal(nothing.success, nothing.clean_prediction != problem.y)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4), (SAMPLES, 1, 4, 1), (3, 1, 1)], ids=str)
def test_the_linf_iterates_are_those_of_a_plain_loop_bit_for_bit(shape, problem):
    x, mask = problem.x, drawn_mask(*shape)
    threat = fastadv.Linf(0.05)
    start = torch.where(mask, fastadv.start_point(threat, x, seed=3), x)
    attack = fastadv.pgd(threat, steps=STEPS, step_size=0.02, keep="last")
    got = attack(problem.model, x, problem.y, mask=mask, x_init=start)
    expected = pgd_linf(
        problem.model,
        x,
        problem.y,
        start,
        mask=mask,
        eps=0.05,
        step_size=0.02,
        steps=STEPS,
        lo=0.0,
        hi=1.0,
    )
    assert same_bits(got, expected)
    # the random start is the plain one inside of the mask
    once = fastadv.pgd(threat, steps=1, step_size=0.0, keep="last", seed=3)
    assert torch.equal(once(problem.model, x, problem.y, mask=mask), start)


def test_the_l2_iterates_are_those_of_a_plain_loop(problem):
    x, mask = problem.x, drawn_mask(SAMPLES, 3, 4, 4)
    attack = fastadv.pgd(fastadv.L2(0.4), steps=STEPS, step_size=0.2, keep="last")
    got = attack(problem.model, x, problem.y, mask=mask, x_init=x)
    expected = pgd_l2(
        problem.model,
        x,
        problem.y,
        x,
        mask=mask,
        eps=torch.tensor(0.4),
        step_size=0.5,
        steps=STEPS,
        lo=0.0,
        hi=1.0,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    assert same_bits(got[~mask], x[~mask])


@pytest.mark.parametrize(
    "make, norm", [(fastadv.pgd, "linf"), (fastadv.apgd_ce, "l2"), (fastadv.pgd, "l1")]
)
def test_masks_go_with_their_samples(make, norm, problem):
    """Regrouped as slots are freed, in batches of any size, in any order."""
    mask = drawn_mask(SAMPLES, 3, 4, 4)
    attack, ids = made(make, norm), torch.arange(SAMPLES)

    def run(rows, **execution):
        return attack.run(
            problem.model,
            problem.x[rows],
            problem.y[rows],
            mask=mask[rows],
            sample_ids=ids[rows],
            execution=fastadv.Execution(**execution),
        )

    whole = run(ids, batch_size=SAMPLES)
    for execution in (dict(batch_size=5), dict(batching="plain")):
        assert differing_fields(run(ids, **execution), whole) == []
    backwards = run(ids.flip(0), batch_size=7)
    assert same_bits(backwards.x_adv.flip(0), whole.x_adv)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("make", [fastadv.pgd, fastadv.mifgsm, fastadv.apgd_ce])
def test_a_mask_adds_nothing_to_a_step(make, norm, problem):
    """Neither an op nor a look at the device; that each op launches once, its own tests see."""
    mask = drawn_mask(SAMPLES, 3, 4, 4)
    execution = fastadv.Execution(batching="plain")

    def step(count, **more):
        def call_of(steps):
            attack = make(threat_of(norm), steps=steps)
            more_of = dict(more, execution=execution)
            return lambda: attack(problem.model, problem.x, problem.y, **more_of)

        return per_step(count, call_of)

    assert step(outer_ops, mask=mask) == step(outer_ops)


@pytest.mark.parametrize(
    "make, norm", [(fastadv.pgd, "linf"), (fastadv.apgd_ce, "l2"), (fastadv.pgd, "l1")]
)
def test_replayed_steps_take_the_mask_of_their_call(make, norm, problem, tapes):
    attack = made(make, norm)
    one = drawn_mask(SAMPLES, 3, 4, 4)
    for mask in (one, ~one, None, one):
        got, expected = (
            attack.run(
                problem.model,
                problem.x,
                problem.y,
                mask=mask,
                execution=fastadv.Execution(cuda_graph=graph, batch_size=8),
            )
            for graph in ("auto", False)
        )
        assert differing_fields(got, expected) == []
    assert sum(tape.replayed for tape in tapes) > 0


def test_channels_last_and_half_precision(problem):
    mask = drawn_mask(SAMPLES, 3, 4, 4)
    attack = fastadv.pgd(fastadv.Linf(0.06), steps=3)
    expected = attack(problem.model, problem.x, problem.y, mask=mask)
    last = problem.x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(attack(problem.model, last, problem.y, mask=mask), expected)
    model, half = (t.to(torch.bfloat16) for t in (mixed_problem(4).model, problem.x))
    got = attack(model, half, problem.y, mask=mask)
    assert same_bits(got[~mask], half[~mask])


def test_streams_and_ensembles_hand_the_mask_on(problem):
    mask = drawn_mask(SAMPLES, 3, 4, 4)
    threat = threat_of("linf", 2.0)
    attacks = [fastadv.apgd_ce(threat, steps=5), fastadv.apgd_t(threat, steps=5)]
    ensemble = fastadv.autoattack(threat, version="custom", attacks=attacks)
    result = ensemble.run(problem.model, problem.x, problem.y, mask=mask)
    assert same_bits(result.x_adv[~mask], problem.x[~mask])
    assert (result.broken_by >= 0).any()
    stream = fastadv.pgd(threat, steps=5).streaming()
    parts = [
        stream(problem.model, problem.x[rows], problem.y[rows], mask=mask[rows])
        for rows in torch.arange(SAMPLES).split(9)
    ]
    whole = fastadv.pgd(threat, steps=5)(problem.model, problem.x, problem.y, mask=mask)
    assert same_bits(torch.cat(parts), whole)


def test_attacks_that_take_no_mask_say_what_does(problem):
    mask = torch.ones(4, 4, dtype=torch.bool)
    others = [make(threat_of("linf")) for make in (fastadv.fab, fastadv.fab_t, fastadv.square)]
    others += [fastadv.apgd_ce(threat_of("l1"))]
    for attack in (*others, fastadv.autoattack(threat_of("linf"))):
        with pytest.raises(ValueError, match=r"takes no mask=: use fastadv\.pgd"):
            attack.run(problem.model, problem.x, problem.y, mask=mask)


@pytest.mark.parametrize(
    "mask, error, words",
    [
        (torch.ones(4, 4), TypeError, "mask must be a bool tensor, .* got torch.float32"),
        ([[True]], TypeError, "mask must be a bool tensor, .* got list"),
        (torch.ones(4, 5, dtype=torch.bool), ValueError, r"mask must broadcast to x.* \(4, 5\)"),
        (torch.ones(7, 1, 1, 1, dtype=torch.bool), ValueError, "mask must broadcast to x"),
        (torch.ones(1, 1, 1, 4, 4, dtype=torch.bool), ValueError, "mask must broadcast to x"),
        (torch.ones(4, 4, dtype=torch.bool, device="meta"), ValueError, "device of x, cpu; got me"),
    ],
)
def test_masks_that_are_none(mask, error, words, problem):
    with pytest.raises(error, match=words):
        fastadv.pgd(fastadv.Linf(0.1), steps=1)(problem.model, problem.x, problem.y, mask=mask)


def test_a_start_that_leaves_the_mask(problem):
    mask = drawn_mask(SAMPLES, 3, 4, 4)
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=1)
    with pytest.raises(ValueError, match="x_init must equal x outside of mask="):
        attack(problem.model, problem.x, problem.y, mask=mask, x_init=1 - problem.x)


def test_gradients_outside_of_the_mask_hide_no_masked_ones(problem):
    """The warning of zero gradients asks about what may move."""
    inside = torch.zeros(3, 4, 4, dtype=torch.bool)
    inside[0] = True

    def blind(x):
        return problem.model(torch.cat([x[:, :1].detach(), x[:, 1:]], 1))

    attack = fastadv.pgd(fastadv.Linf(0.1), steps=2)
    with pytest.warns(fastadv.AttackWarning, match="gradient"):
        attack(blind, problem.x, problem.y, mask=inside)
