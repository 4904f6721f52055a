"""Contract C2: the adversarial example of a sample is its own: not of batch, order or schedule."""

import functools

import pytest
import torch
from short_pgd import SAMPLES, STEPS, short_pgd
from toy_models import (
    NORMS,
    Recording,
    assert_mixed,
    differing_fields,
    joined,
    mixed_problem,
    rows_of,
    threat_of,
)

import fastadv


def _execution(batching, batch_size):
    return fastadv.Execution(batching=batching, batch_size=batch_size)


@functools.cache
def _found(norm, keep="first_success"):
    """What every other way must find: the plain loop over all samples at once."""
    problem = mixed_problem(SAMPLES)
    result = short_pgd(norm, keep).run(
        problem.model, problem.x, problem.y, execution=_execution("plain", None)
    )
    if keep == "first_success":
        assert_mixed(result, problem.y, STEPS)
    return result


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_batch_size_and_the_schedule_change_no_bit(norm, keep):
    problem = mixed_problem(SAMPLES)
    attack = short_pgd(norm, keep)
    for way in (("plain", 7), ("continuous", 7), ("continuous", 32), ("continuous", None)):
        got = attack.run(problem.model, problem.x, problem.y, execution=_execution(*way))
        assert differing_fields(got, _found(norm, keep)) == [], way


@pytest.mark.parametrize(
    ("keep", "batching"),
    [
        ("first_success", "plain"),
        ("first_success", "continuous"),
        ("best", "continuous"),
        ("last", "plain"),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_samples_attacked_one_by_one_change_no_bit(norm, keep, batching):
    problem = mixed_problem(SAMPLES)
    by_step = _found(norm).step.argsort(stable=True)
    some = torch.cat([by_step.new_zeros(1), by_step[::4]]).unique()  # of every outcome
    expected = rows_of(_found(norm, keep), some)
    if keep == "first_success":
        assert_mixed(expected, problem.y[some], STEPS)
    got = short_pgd(norm, keep).run(
        problem.model,
        problem.x[some],
        problem.y[some],
        sample_ids=some,
        execution=_execution(batching, 1),
    )
    assert differing_fields(got, expected) == []


@pytest.mark.parametrize("batching", ["plain", "continuous"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_the_samples_changes_no_bit(norm, batching):
    problem = mixed_problem(SAMPLES)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    shuffled = short_pgd(norm).run(
        problem.model,
        problem.x[order],
        problem.y[order],
        sample_ids=order,
        execution=_execution(batching, 7),
    )
    assert differing_fields(shuffled, rows_of(_found(norm), order)) == []


@pytest.mark.parametrize("norm", NORMS)
def test_separate_calls_find_the_same_examples(norm):
    problem = mixed_problem(SAMPLES)
    attack = short_pgd(norm)
    ids = torch.arange(SAMPLES) + (5 << 33)
    expected = attack.run(problem.model, problem.x, problem.y, sample_ids=ids)
    cuts = [(0, 1), (1, 17), (17, SAMPLES)]
    parts = [
        attack.run(problem.model, problem.x[a:b], problem.y[a:b], sample_ids=ids[a:b])
        for a, b in cuts
    ]
    assert differing_fields(joined(parts), expected) == []


def _second_minus_label(logits, y):
    own = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], float("-inf")).amax(1, keepdim=True) - own)[:, 0]


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        ("margin", None),
        ("dlr", None),
        ("kl", None),
        (_second_minus_label, None),
        ("ce", "random"),
        ("ce", "second_best"),
        ("margin", "random"),
        ("dlr", "least_likely"),
        ("difference", "random"),
    ],
)
def test_every_loss_and_target_is_invariant(loss, target):
    problem = mixed_problem(SAMPLES)
    attack = short_pgd("linf", loss=loss, scale=1.0 if target is None else 1.5)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(4))
    expected = attack.run(problem.model, problem.x, problem.y, target=target)
    got = attack.run(
        problem.model,
        problem.x[order],
        problem.y[order],
        target=target,
        sample_ids=order,
        execution=_execution("continuous", 7),
    )
    assert expected.success.any() and not expected.success.all()
    assert differing_fields(got, rows_of(expected, order)) == []


@pytest.mark.parametrize(
    "more",
    [
        dict(label_smoothing=0.1),
        dict(loss="margin", kappa=0.05),
        dict(eot=3),
        dict(random_start="sign"),
        dict(random_start="gaussian"),
        dict(clamp_start=False),
        dict(restarts=5),
    ],
    ids=str,
)
def test_every_option_is_invariant(more):
    problem = mixed_problem(SAMPLES)
    attack = short_pgd("linf", **more)
    expected = attack.run(problem.model, problem.x, problem.y, execution=_execution("plain", None))
    assert expected.success.any() and not expected.success.all()
    for batch_size in (5, 16):
        got = attack.run(
            problem.model, problem.x, problem.y, execution=_execution("continuous", batch_size)
        )
        assert differing_fields(got, expected) == [], batch_size


def test_momentum_is_invariant():
    problem = mixed_problem(SAMPLES)
    attack = fastadv.mifgsm(threat_of("linf"), steps=STEPS)
    expected = attack.run(problem.model, problem.x, problem.y)
    assert_mixed(expected, problem.y, STEPS)
    for batch_size in (3, 16):
        got = attack.run(
            problem.model, problem.x, problem.y, execution=_execution("continuous", batch_size)
        )
        assert differing_fields(got, expected) == [], batch_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_every_dtype_is_invariant(norm, dtype):
    problem = mixed_problem(SAMPLES, dtype=dtype)
    attack = short_pgd(norm)
    expected = attack.run(problem.model, problem.x, problem.y, execution=_execution("plain", None))
    assert expected.success.any() and not expected.success.all()
    got = attack.run(problem.model, problem.x, problem.y, execution=_execution("continuous", 7))
    assert differing_fields(got, expected) == []


def test_per_sample_radii_and_steps_follow_their_samples():
    problem = mixed_problem(SAMPLES)
    eps = torch.linspace(0.0, 0.12, SAMPLES)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))

    def run(rows, execution):
        attack = fastadv.pgd(fastadv.Linf(eps[rows]), steps=STEPS, step_size=eps[rows] / 4)
        return attack.run(
            problem.model, problem.x[rows], problem.y[rows], sample_ids=rows, execution=execution
        )

    expected = run(torch.arange(SAMPLES), None)
    assert_mixed(expected, problem.y, STEPS)
    for batching in ("plain", "continuous"):
        got = run(order, _execution(batching, 7))
        assert differing_fields(got, rows_of(expected, order)) == [], batching


@pytest.mark.parametrize("keep", ["first_success", "best"])
def test_a_start_iterate_outside_the_ball_affects_its_own_sample_only(keep):
    problem = mixed_problem(SAMPLES, wrong_every=SAMPLES)
    attack = fastadv.pgd(threat_of("linf"), steps=STEPS, random_start=False, keep=keep)
    # a start iterate that fools the model already, where one is to be had
    x_init = fastadv.pgd(threat_of("linf"), steps=20)(problem.model, problem.x, problem.y)
    inside = attack.run(problem.model, problem.x, problem.y, x_init=x_init)
    x_init = x_init.clone()
    x_init[-1] = 1 - problem.x[-1]
    assert not fastadv.contains(attack.threat, x_init, problem.x)[-1]
    mixed = attack.run(problem.model, problem.x, problem.y, x_init=x_init)
    rows = torch.arange(SAMPLES - 1)
    assert (inside.success[1:-1]).any()
    assert differing_fields(rows_of(mixed, rows), rows_of(inside, rows)) == []


def test_without_bounds_a_sample_of_large_values_affects_itself_only():
    threat = fastadv.Linf(0.01, bounds=None)
    x = torch.tensor([[0.5, 0.5], [3.0e7, 0.0]])
    x_adv = x + torch.tensor([[0.02, 0.0], [0.0, 0.0]])
    assert not fastadv.contains(threat, x_adv[:1], x[:1]).item()
    assert not fastadv.contains(threat, x_adv, x)[0]


@pytest.mark.parametrize("fused", [True, False])
def test_a_normalised_model_is_invariant(fused):
    problem = mixed_problem(SAMPLES)
    model = fastadv.Normalized(problem.model, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 1.1))
    with torch.no_grad():
        y = model(problem.x).argmax(1)
    called = model if fused else model.forward
    attack = short_pgd("linf", "best")
    expected = attack.run(called, problem.x, y, execution=_execution("plain", None))
    assert expected.success.any() and not expected.success.all()
    for batch_size in (3, 16):
        got = attack.run(called, problem.x, y, execution=_execution("continuous", batch_size))
        assert differing_fields(got, expected) == [], batch_size


@pytest.mark.parametrize("batching", ["plain", "continuous"])
def test_the_model_sees_the_memory_format_of_x_at_every_call(batching):
    # a convolution rounds differently in another layout, so a change of layout is a change of bits
    problem = mixed_problem(SAMPLES)
    x = problem.x.contiguous(memory_format=torch.channels_last)
    spy = Recording(problem.model, lambda x: x.is_contiguous(memory_format=torch.channels_last))
    result = short_pgd("linf").run(spy, x, problem.y, execution=_execution(batching, 16))
    assert_mixed(result, problem.y, STEPS)
    assert all(spy.seen), f"{spy.seen.count(False)} of {len(spy.seen)} calls in another format"


@pytest.mark.parametrize("norm", NORMS)
def test_the_memory_format_changes_no_bit(norm):
    problem = mixed_problem(SAMPLES)
    attack = short_pgd(norm)
    last = problem.x.contiguous(memory_format=torch.channels_last)
    assert differing_fields(attack.run(problem.model, last, problem.y), _found(norm)) == []
