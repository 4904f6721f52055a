"""The loss head's rules of slots: success, faults and the best loss."""

import pytest
import torch
from head_problems import INF, KINDS, NAN, State, one_row

from fastadv.kernels import slots as columns


@pytest.mark.parametrize(
    "before, predicted, options, after",
    [
        (dict(STEP=0), 0, {}, (1, -1, 1)),
        (dict(STEP=2), 0, {}, (3, -1, 1)),
        (dict(STEP=3), 0, {}, (3, -1, 0)),
        (dict(STEP=1), 2, {}, (1, 1, 0)),
        (dict(STEP=1), 2, dict(stop_early=False), (2, 1, 1)),
        (dict(STEP=3), 2, dict(stop_early=False), (3, 3, 0)),
        (dict(STEP=2, SUCCESS_STEP=1), 2, dict(stop_early=False), (3, 1, 1)),
        (dict(STEP=2, SUCCESS_STEP=1), 0, dict(stop_early=False), (3, 1, 1)),
        (dict(STEP=2, SUCCESS_STEP=1), 0, {}, (2, 1, 0)),
        (dict(STEP=0), 2, dict(first_step=1), (1, -1, 1)),
        (dict(STEP=1), 2, dict(first_step=1), (1, 1, 0)),
        (dict(STEP=3), 2, dict(first_step=4), (3, -1, 0)),
        (dict(STEP=1, ACTIVE=0), 2, {}, (1, -1, 0)),
        (dict(STEP=0), 0, dict(steps=0), (0, -1, 0)),
    ],
)
def test_slot_rules(device, either_backend, before, predicted, options, after):
    state = one_row(device, predicted, **before).evaluate(**options)
    assert state.row()[:3] == after
    assert state.prediction.tolist() == [predicted]
    assert state.correct.tolist() == [predicted == 0]


@pytest.mark.parametrize("kind", ["cross_entropy", "margin", "dlr", "difference", "none"])
def test_a_targeted_slot_succeeds_at_its_target_only(device, either_backend, kind):
    logits = torch.eye(4, device=device)[[0, 1, 2]]
    labels = torch.zeros(3, dtype=torch.int64, device=device)
    targets = torch.full((3,), 2, device=device)
    state = State(logits, labels).evaluate(kind, targets=targets)
    assert state.column("SUCCESS_STEP") == [-1, -1, 0]
    assert state.correct.tolist() == [True, False, False]


@pytest.mark.parametrize("targeted", [False, True])
def test_kappa_must_be_reached_to_succeed(device, either_backend, targeted):
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [3.0, 0.0]], device=device)
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    targets = torch.ones_like(labels) if targeted else None
    assert State(logits, labels).evaluate("margin", 2.0, targets=targets).column(
        "SUCCESS_STEP"
    ) == [-1, 0, 0, -1]
    assert State(logits, labels).evaluate("margin", 0.0, targets=targets).column(
        "SUCCESS_STEP"
    ) == [0, 0, 0, -1]


def test_kappa_is_compared_in_the_precision_of_the_loss(device, either_backend):
    gap = torch.tensor(0.1, device=device)  # float32: 1.5e-9 above the double 0.1
    logits = torch.stack([torch.zeros_like(gap), gap])[None]
    state = State(logits, torch.zeros(1, dtype=torch.int64, device=device))
    assert state.evaluate("margin", 0.1).column("SUCCESS_STEP") == [0]
    assert state.grad.tolist() == [[-1.0, 1.0]]


def test_a_tie_with_the_label_behind_it_is_no_success(device, either_backend):
    logits = torch.ones(1, 3, device=device)
    state = State(logits, torch.zeros(1, dtype=torch.int64, device=device)).evaluate("margin")
    assert state.column("SUCCESS_STEP") == [-1]


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_nan_logits_are_a_fault_and_never_a_success(device, either_backend, kind):
    logits = torch.tensor([[0.0, NAN, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], device=device)
    targets = torch.tensor([1, 1], device=device) if kind == "difference" else None
    state = State(logits, torch.zeros(2, dtype=torch.int64, device=device))
    state.loss[:] = 5.0
    state.evaluate(kind, targets=targets, reference=torch.full_like(logits, 0.25))
    assert state.column("FAULT") == [columns.FAULT_NAN_LOGITS, 0]
    assert state.column("SUCCESS_STEP")[0] == -1
    assert state.column("STEP")[0] == 1
    if kind != "none":
        assert state.loss[0].isnan() and (state.grad[0] == 0).all()


@pytest.mark.parametrize(
    "kind, label, target",
    [
        (kind, label, target)
        for kind in (*KINDS, "none")
        for label, target in [(-1, 1), (4, 1), (2**32, 1), (0, 4), (0, -1)]
        if kind != "kl" or label != 0  # kl reads no targets
    ],
)
def test_bad_labels_are_a_fault_and_never_a_success(device, either_backend, kind, label, target):
    logits = torch.tensor([[0.0, 4.0, 1.0, 2.0]], device=device)
    targets = torch.tensor([target], device=device) if kind != "kl" else None
    state = State(logits, torch.tensor([label], device=device))
    state.evaluate(kind, targets=targets, reference=torch.full_like(logits, 0.25))
    assert state.column("FAULT") == [columns.FAULT_BAD_LABEL]
    assert state.column("SUCCESS_STEP") == [-1]
    assert state.prediction.tolist() == [1]
    if kind != "none":
        assert state.loss.tolist() == [0.0] and (state.grad == 0).all()


def test_faults_accumulate(device, either_backend):
    state = one_row(device, 1, FAULT=8)
    state.logits[0, 0] = NAN
    state.labels[0] = 3
    expected = 8 | columns.FAULT_NAN_LOGITS | columns.FAULT_BAD_LABEL
    assert state.evaluate().column("FAULT") == [expected]


def test_best_loss_is_tracked_before_a_success_may_count(device, either_backend):
    state = State(torch.zeros(1, 3, device=device), torch.ones(1, dtype=torch.int64, device=device))
    state.best_loss.fill_(-INF)
    state.evaluate("margin", INF, first_step=1)
    assert state.column("SUCCESS_STEP") == [-1] and state.column("IMPROVED") == [1]


def test_best_loss_rises_strictly(device, either_backend):
    logits = torch.zeros(4, 3, device=device)
    logits[:, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    state = State(
        logits,
        torch.zeros(4, dtype=torch.int64, device=device),
        IMPROVED=[1, 1, 1, 1],
        ACTIVE=[1, 1, 1, 0],
        STEP=[1, 1, 0, 1],
    )
    state.best_loss[:] = torch.tensor([1.0, 1.5, 1.0, 1.0])
    state.evaluate("margin", INF, best_from=1)
    assert state.column("IMPROVED") == [0, 1, 0, 0]  # equal; higher; before best_from; finished
    assert state.best_loss.tolist() == [1.0, 2.0, 1.0, 1.0]


def test_a_nan_loss_is_no_improvement(device, either_backend):
    state = one_row(device, 1)
    state.logits[0, 0] = NAN
    state.evaluate()
    assert state.column("IMPROVED") == [0] and state.best_loss.tolist() == [-INF]


def test_without_best_loss_improved_is_left_alone(device, either_backend):
    assert one_row(device, 1, IMPROVED=1).evaluate(best=False).column("IMPROVED") == [1]


def test_with_any_error_a_miss_of_the_target_counts(device, either_backend):
    logits = torch.tensor([[0.0, 1.0, 0.0, 0.5], [2.0, 1.0, 0.0, 0.5]], device=device)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    targets = torch.full_like(labels, 2)  # neither row predicts it; the first is misclassified
    for any_error, expected in ((False, [-1, -1]), (True, [0, -1])):
        state = State(logits, labels)
        state.evaluate("dlr", targets=targets, any_error=any_error)
        assert state.column("SUCCESS_STEP") == expected
