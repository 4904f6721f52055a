"""Contract C2: the adversarial example of a sample is its own: not of batch, order or schedule."""

import dataclasses
import math
from contextlib import contextmanager

import pytest
import torch
from toy_models import (
    NORMS,
    Quadratic,
    Recording,
    assert_mixed,
    differing_fields,
    joined,
    mixed_problem,
    rows_of,
    same_bits,
    threat_of,
)

import fastadv

STEPS = 6
SAMPLES = 34


def _attack(norm, keep="first_success", *, restarts=None, scale=1.0, **more):
    threat = threat_of(norm, scale)
    if restarts is None:
        restarts = 1 if keep == "last" else 2
    step = threat.eps / 5 if norm == "linf" else threat.eps / 4
    options = dict(sparsity=0.2) if norm == "l1" else {}
    return fastadv.pgd(
        threat, steps=STEPS, step_size=step, restarts=restarts, keep=keep, **options, **more
    )


def _execution(batching, batch_size):
    return fastadv.Execution(batching=batching, batch_size=batch_size)


@contextmanager
def _threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_batch_size_and_the_schedule_change_no_bit(norm, keep):
    problem = mixed_problem(SAMPLES)
    attack = _attack(norm, keep)

    def run(batching, batch_size):
        execution = _execution(batching, batch_size)
        return attack.run(problem.model, problem.x, problem.y, execution=execution)

    expected = run("plain", None)
    if keep == "first_success":
        assert_mixed(expected, problem.y, STEPS)
    for batch_size in (7, 32, None):
        for batching in ("plain", "continuous"):
            got = run(batching, batch_size)
            assert differing_fields(got, expected) == [], (batching, batch_size)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_samples_attacked_one_by_one_change_no_bit(norm, keep):
    problem = mixed_problem(SAMPLES)
    attack = _attack(norm, keep)
    expected = attack.run(problem.model, problem.x, problem.y)
    some = torch.arange(16)
    if keep == "first_success":
        assert_mixed(rows_of(expected, some), problem.y[some], STEPS)
    for batching in ("plain", "continuous"):
        got = attack.run(
            problem.model, problem.x[some], problem.y[some], execution=_execution(batching, 1)
        )
        assert differing_fields(got, rows_of(expected, some)) == [], batching


@pytest.mark.parametrize("batching", ["plain", "continuous"])
@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_the_samples_changes_no_bit(norm, batching):
    problem = mixed_problem(SAMPLES)
    attack = _attack(norm)
    expected = attack.run(problem.model, problem.x, problem.y)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    shuffled = attack.run(
        problem.model,
        problem.x[order],
        problem.y[order],
        sample_ids=order,
        execution=_execution(batching, 7),
    )
    assert differing_fields(shuffled, rows_of(expected, order)) == []


@pytest.mark.parametrize("norm", NORMS)
def test_separate_calls_find_the_same_examples(norm):
    problem = mixed_problem(SAMPLES)
    attack = _attack(norm)
    ids = torch.arange(SAMPLES) + (5 << 33)
    expected = attack.run(problem.model, problem.x, problem.y, sample_ids=ids)
    cuts = [(0, 1), (1, 2), (2, 17), (17, SAMPLES)]
    parts = [
        attack.run(problem.model, problem.x[a:b], problem.y[a:b], sample_ids=ids[a:b])
        for a, b in cuts
    ]
    assert differing_fields(joined(parts), expected) == []


@pytest.mark.parametrize("norm", NORMS)
def test_large_images_of_mixed_batches_change_no_bit(norm):
    # radii that leave every outcome among five samples of 37,632 elements, more than the 32,768
    # from which torch splits
    scale = {"linf": 0.045, "l2": 1.1, "l1": 30.0}[norm]
    problem = mixed_problem(5, (3, 112, 112), classes=3, wrong_every=6)
    attack = dataclasses.replace(_attack(norm, scale=scale), steps=2)
    with _threads(1):
        expected = attack.run(problem.model, problem.x, problem.y)
    steps = expected.step.tolist()
    assert steps[0] == 0 and max(steps) > 0 and min(steps) == -1, steps
    with _threads(2):
        threaded = attack.run(problem.model, problem.x, problem.y)
        # a lone row is what torch's own sum splits among threads
        one_by_one = attack.run(
            problem.model, problem.x, problem.y, execution=_execution("continuous", 1)
        )
    assert differing_fields(threaded, expected) == []
    assert differing_fields(one_by_one, expected) == []


@pytest.mark.parametrize("norm", NORMS)
def test_the_number_of_threads_changes_no_bit(norm):
    # 36,864 elements: torch splits above 32,768
    problem = mixed_problem(12, (3, 32, 32), classes=3)
    scale = {"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm]
    attack = dataclasses.replace(_attack(norm, "best", scale=scale), steps=2)
    results = []
    for threads in (1, 2):
        with _threads(threads):
            results.append(attack.run(problem.model, problem.x, problem.y))
    assert results[0].success.any() and not results[0].success.all()
    assert differing_fields(results[1], results[0]) == []


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
    attack = _attack("linf", loss=loss, scale=1.0 if target is None else 1.5)
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
    attack = _attack("linf", **more)
    expected = attack.run(problem.model, problem.x, problem.y, execution=_execution("plain", None))
    assert expected.success.any() and not expected.success.all()
    for batch_size in (5, 16, None):
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
    attack = _attack(norm)
    expected = attack.run(problem.model, problem.x, problem.y, execution=_execution("plain", None))
    assert expected.success.any() and not expected.success.all()
    for batch_size in (3, 16):
        got = attack.run(
            problem.model, problem.x, problem.y, execution=_execution("continuous", batch_size)
        )
        assert differing_fields(got, expected) == [], batch_size


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
    attack = _attack("linf", "best")
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
    result = _attack("linf").run(spy, x, problem.y, execution=_execution(batching, 16))
    assert_mixed(result, problem.y, STEPS)
    assert all(spy.seen), f"{spy.seen.count(False)} of {len(spy.seen)} calls in another format"


@pytest.mark.parametrize("norm", NORMS)
def test_the_memory_format_changes_no_bit(norm):
    problem = mixed_problem(SAMPLES)
    attack = _attack(norm)
    expected = attack.run(problem.model, problem.x, problem.y)
    last = problem.x.contiguous(memory_format=torch.channels_last)
    assert differing_fields(attack.run(problem.model, last, problem.y), expected) == []


@pytest.mark.parametrize("norm", NORMS)
def test_another_seed_or_another_id_starts_elsewhere(norm):
    problem = mixed_problem(SAMPLES)
    ids = torch.arange(SAMPLES)

    def run(seed, ids):
        return _attack(norm, "last", seed=seed)(problem.model, problem.x, problem.y, sample_ids=ids)

    first = run(0, ids)
    assert same_bits(run(0, ids), first)
    for seed, other in ((1, ids), (-1, ids), (1 << 32, ids), (0, ids + 1), (0, ids + (1 << 32))):
        changed = (run(seed, other) != first).flatten(1).any(1)
        assert changed.all(), (seed, int(other[0]))


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_start_elsewhere(norm):
    """The best of several restarts is not always the first."""
    problem = mixed_problem(SAMPLES)
    one = _attack(norm, "best", restarts=1).run(problem.model, problem.x, problem.y)
    many = _attack(norm, "best", restarts=4).run(problem.model, problem.x, problem.y)
    assert not same_bits(one.x_adv, many.x_adv)


def test_the_global_generators_have_no_part_in_the_result():
    problem = mixed_problem(SAMPLES)
    attack = _attack("l2")
    torch.manual_seed(1)
    first = attack.run(problem.model, problem.x, problem.y)
    torch.manual_seed(2)
    assert differing_fields(attack.run(problem.model, problem.x, problem.y), first) == []


def test_the_default_dtype_has_no_part_in_the_result():
    problem = mixed_problem(SAMPLES)
    first = _attack("l2").run(problem.model, problem.x, problem.y)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        other = _attack("l2").run(problem.model, problem.x, problem.y)
    finally:
        torch.set_default_dtype(before)
    assert differing_fields(other, first) == []


def test_linf_starts_are_uniform_in_the_ball():
    n, size, eps = 64, 48, 0.1
    model = Quadratic(size, curvature=0.0)
    x = torch.full((n, size), 0.5, dtype=torch.float64)
    attack = fastadv.pgd(fastadv.Linf(eps), steps=1, step_size=1e-12, keep="last")
    moved = attack(model.double(), x, torch.zeros(n, dtype=torch.long))
    uniform = ((moved - x) / (2 * eps) + 0.5).flatten().sort().values
    rank = torch.arange(n * size, dtype=torch.float64) / (n * size)
    gap = (uniform - rank).abs().max() * math.sqrt(n * size)
    assert gap < 1.95  # Kolmogorov and Smirnov: exceeded once in a thousand


def test_random_targets_are_uniform_over_the_other_classes():
    problem = mixed_problem(600, (8,), classes=4)
    targets = []

    def note(logits, y):
        targets.append(y)
        return logits[:, 0]

    attack = fastadv.fgsm(fastadv.Linf(0.01), loss=note, keep="last")
    attack(problem.model, problem.x, problem.y, target="random")
    drawn = (targets[0] - problem.y) % 4
    counts = torch.bincount(drawn, minlength=4)
    assert counts[0] == 0
    # chi-square with 2 degrees of freedom: 13.8 is exceeded once in a thousand
    assert float(((counts[1:] - 200) ** 2 / 200).sum()) < 13.8
