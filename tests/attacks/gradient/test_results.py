"""What results mean: brute force over plain loops, step numbers, targets, losses, repr."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from toy_models import (
    NORMS,
    assert_mixed,
    differing_fields,
    mixed_problem,
    same_bits,
    threat_of,
)

import fastadv
from fastadv import ops
from fastadv.ops.steps import l1, l2

STEPS = 6
_SAMPLES = 18
DOUBLE = torch.float64


def _options(norm):
    return dict(sparsity=0.2) if norm == "l1" else {}


def _step(threat, x_adv, grad, x, step_size):
    """One step of one sample by the public ops, which their own tests hold to the papers."""
    if threat.norm == "linf":
        return ops.linf_step(x_adv, grad, x, step_size=step_size, eps=threat.eps)
    if threat.norm == "l2":
        return l2.l2_step(x_adv, grad, x, step_size=step_size, eps=threat.eps)
    x_adv = x_adv.clone()
    return l1.l1_step_(x_adv, grad, x, step_size=step_size, eps=threat.eps, sparsity=0.2)


def _look(model, x_adv, y, target):
    """(loss, grad, prediction) of one sample, by torch's own cross-entropy."""
    x_adv = x_adv.detach().requires_grad_()
    logits = model(x_adv)
    loss = F.cross_entropy(logits, y if target is None else target[None])
    loss = loss if target is None else -loss
    (grad,) = torch.autograd.grad(loss, x_adv)
    return float(loss.detach()), grad, int(logits.argmax(1))


def _brute_force(model, threat, x, y, sample_id, *, steps, restarts, step_size, keep, target=None):
    """(x_adv, step of the first success or -1) of one sample, as the documentation has it."""

    def hits(prediction):
        return prediction == int(target) if target is not None else prediction != int(y)

    runs = []
    if keep == "first_success" and hits(_look(model, x, y, target)[2]):
        return x, 0
    for restart in range(restarts):
        x_adv = fastadv.start_point(
            threat, x, seed=0, sample_ids=torch.tensor([sample_id]), draw=restart
        )
        best = (-math.inf, x_adv)
        for step in range(steps + 1):
            loss, grad, prediction = _look(model, x_adv, y, target)
            if keep == "first_success" and hits(prediction):
                return x_adv, step
            if loss > best[0]:
                best = (loss, x_adv)
            if step < steps:
                x_adv = _step(threat, x_adv, grad, x, step_size)
        runs.append(best if keep == "best" else (loss, x_adv))
    # ties: the lowest restart, which max() of python keeps
    x_adv = max(runs, key=lambda run: run[0])[1]
    return x_adv, None if keep == "best" else -1


@pytest.mark.parametrize(
    ("norm", "batching", "targeted"),
    [(norm, "plain", False) for norm in NORMS]
    + [(norm, "continuous", True) for norm in NORMS]
    + [("linf", "continuous", False), ("linf", "plain", True)],
)
def test_first_success_is_what_a_plain_loop_finds(norm, batching, targeted):
    problem = mixed_problem(_SAMPLES, dtype=DOUBLE)
    threat = threat_of(norm, 1.3 if targeted else 1.0)
    step_size = threat.eps / 5
    target = (problem.y + 1) % 5 if targeted else None
    goals = target if targeted else [None] * _SAMPLES
    attack = fastadv.pgd(threat, steps=STEPS, step_size=step_size, restarts=3, **_options(norm))
    result = attack.run(
        problem.model,
        problem.x,
        problem.y,
        target=target,
        execution=fastadv.Execution(batching=batching, batch_size=8),
    )
    if not targeted:
        assert_mixed(result, problem.y, STEPS)
    assert result.success.any() and not result.success.all()
    for i in range(_SAMPLES):
        one = slice(i, i + 1)
        x_adv, step = _brute_force(
            problem.model,
            threat,
            problem.x[one],
            problem.y[one],
            i,
            steps=STEPS,
            restarts=3,
            step_size=step_size,
            keep="first_success",
            target=goals[i],
        )
        assert int(result.step[i]) == step, i
        # gradients of the head and of torch's cross-entropy differ in the last place
        torch.testing.assert_close(result.x_adv[one], x_adv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_best_is_the_iterate_of_highest_loss_over_all_steps_and_restarts(norm, restarts):
    # a curved model overshot by long steps, so that the best iterate is not always the last
    problem = mixed_problem(12, dtype=DOUBLE, curvature=6.0)
    threat = threat_of(norm, 3.0)
    step_size = threat.eps * 1.5
    attack = fastadv.pgd(
        threat, steps=STEPS, step_size=step_size, restarts=restarts, keep="best", **_options(norm)
    )
    result = attack.run(problem.model, problem.x, problem.y)
    if restarts == 1:
        last = dataclasses.replace(attack, keep="last")(problem.model, problem.x, problem.y)
        assert not torch.allclose(result.x_adv, last)
    for i in range(12):
        one = slice(i, i + 1)
        x_adv, _ = _brute_force(
            problem.model,
            threat,
            problem.x[one],
            problem.y[one],
            i,
            steps=STEPS,
            restarts=restarts,
            step_size=step_size,
            keep="best",
        )
        torch.testing.assert_close(result.x_adv[one], x_adv, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_last_is_the_last_iterate_of_a_plain_loop(norm):
    problem = mixed_problem(12, dtype=DOUBLE)
    threat = threat_of(norm)
    step_size = threat.eps / 5
    attack = fastadv.pgd(threat, steps=STEPS, step_size=step_size, keep="last", **_options(norm))
    moved = attack(problem.model, problem.x, problem.y)
    x_adv = fastadv.start_point(threat, problem.x, seed=0)
    for _ in range(STEPS):
        leaf = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(problem.model(leaf), problem.y, reduction="sum")
        (grad,) = torch.autograd.grad(loss, leaf)
        x_adv = _step(threat, x_adv, grad, problem.x, step_size)
    torch.testing.assert_close(moved, x_adv, rtol=0, atol=1e-12)
    assert same_bits(attack.run(problem.model, problem.x, problem.y).x_adv, moved)


def _line(x):
    """Two classes, class 1 from x = 0.5 on; float64."""
    return torch.stack([0.5 - x, x - 0.5], 1)


@pytest.mark.parametrize("batching", ["plain", "continuous"])
def test_steps_are_counted_from_the_start_iterate(batching):
    # steps of 1/16 from x reach the border at 0.5 after 0 (clean-wrong), 1, 2, 3, 4 and never
    x = torch.tensor([0.6, 0.5, 0.45, 0.4, 0.32, 0.27, 0.1], dtype=DOUBLE)
    y = torch.zeros(7, dtype=torch.long)
    attack = fastadv.bim(fastadv.Linf(0.25), steps=4, step_size=1 / 16)
    result = attack.run(_line, x, y, execution=fastadv.Execution(batching=batching))
    # at 0.5 itself the logits tie and the first class, 0, is predicted
    assert result.clean_prediction.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert result.step.tolist() == [0, 1, 1, 2, 3, 4, -1]
    taken = torch.tensor([0, 1, 1, 2, 3, 4, 4], dtype=DOUBLE)
    assert torch.equal(result.x_adv, x + taken / 16)
    assert result.success.tolist() == [True] * 6 + [False]
    assert result.prediction.tolist() == [1] * 6 + [0]
    assert torch.equal(result.distance, (result.x_adv - x).abs())
    expected = F.cross_entropy(_line(result.x_adv), y, reduction="none")
    torch.testing.assert_close(result.loss, expected, rtol=1e-14, atol=1e-14)


def test_a_start_that_fools_the_model_counts_as_step_zero():
    x = torch.tensor([0.45], dtype=DOUBLE)
    y = torch.zeros(1, dtype=torch.long)
    start = torch.tensor([0.55], dtype=DOUBLE)
    result = fastadv.bim(fastadv.Linf(0.2), steps=3).run(_line, x, y, x_init=start)
    assert result.step.tolist() == [0] and same_bits(result.x_adv, start)
    assert result.clean_prediction.tolist() == [0]


def test_clean_wrong_samples_are_returned_untouched():
    problem = mixed_problem(40)
    result = fastadv.pgd(threat_of("linf"), steps=STEPS, restarts=2).run(
        problem.model, problem.x, problem.y
    )
    wrong = result.clean_prediction != problem.y
    assert wrong.any()
    assert same_bits(result.x_adv[wrong], problem.x[wrong])
    assert (result.step[wrong] == 0).all() and result.success[wrong].all()
    assert (result.distance[wrong] == 0).all()


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_predictions_and_losses_are_those_of_the_returned_examples(keep):
    problem = mixed_problem(40)
    result = fastadv.pgd(threat_of("l2"), steps=STEPS, keep=keep).run(
        problem.model, problem.x, problem.y
    )
    with torch.no_grad():
        logits = problem.model(result.x_adv)
        clean = problem.model(problem.x).argmax(1)
    assert torch.equal(result.prediction, logits.argmax(1))
    if keep == "last":
        assert result.clean_prediction is None
    else:
        assert torch.equal(result.clean_prediction, clean)
    expected = F.cross_entropy(logits, problem.y, reduction="none")
    # twice the rounding of log-sum-exp in fp32
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-6)
    assert (result.step >= 0).eq(result.success).all()
    assert result.step.dtype == torch.int64 and result.success.dtype == torch.bool


@pytest.mark.parametrize("batching", ["plain", "continuous"])
def test_equal_losses_of_restarts_go_to_the_lowest(batching):
    x = torch.full((4, 3), 0.5, dtype=DOUBLE)
    y = torch.zeros(4, dtype=torch.long)

    def model(z):  # the loss is the same everywhere, but there is a gradient
        return torch.stack([2 + 0 * z[:, 0], z[:, 0].detach() - z[:, 0]], 1)

    attack = fastadv.pgd(fastadv.Linf(0.1), steps=2, step_size=1e-3, restarts=4)
    result = attack.run(model, x, y, execution=fastadv.Execution(batching=batching, batch_size=3))
    first = fastadv.pgd(fastadv.Linf(0.1), steps=2, step_size=1e-3, keep="last")(model, x, y)
    assert not result.success.any()
    assert same_bits(result.x_adv, first)


def test_the_lowest_restart_wins_though_a_later_one_succeeds_first():
    """Restarts overlap: a slow first one is still on its way when the second is done."""
    x = torch.full((60, 1), 0.3, dtype=DOUBLE)
    y = torch.zeros(60, dtype=torch.long)
    attack = fastadv.pgd(fastadv.Linf(0.25), steps=32, step_size=1 / 64, restarts=6)
    alone = dataclasses.replace(attack, restarts=1).run(lambda z: _line(z[:, 0]), x, y)
    assert alone.success.all() and alone.step.min() == 0 and alone.step.max() > 20
    for batch_size in (60, 20, 7):
        result = attack.run(
            lambda z: _line(z[:, 0]), x, y, execution=fastadv.Execution(batch_size=batch_size)
        )
        assert differing_fields(result, alone) == [], batch_size


def test_the_margin_loss_asks_for_kappa():
    x = torch.tensor([0.45], dtype=DOUBLE)
    y = torch.zeros(1, dtype=torch.long)

    def margin(kappa):
        attack = fastadv.bim(
            fastadv.Linf(0.4), steps=10, step_size=1 / 32, loss="margin", kappa=kappa
        )
        result = attack.run(_line, x, y)
        assert result.success.all()
        logits = _line(result.x_adv)
        return float(logits[0, 1] - logits[0, 0]), int(result.step)

    (small, early), (large, late) = margin(0.0), margin(0.25)
    assert 0 < small < 0.25 <= large
    assert early < late


def test_forwards_and_backwards_are_integers_of_the_work_done():
    x = torch.full((3,), 0.1, dtype=DOUBLE)
    y = torch.zeros(3, dtype=torch.long)
    result = fastadv.bim(fastadv.Linf(0.1), steps=4, keep="last").run(_line, x, y)
    assert (result.forwards, result.backwards) == (3 * 5, 3 * 4)  # and one to verify
