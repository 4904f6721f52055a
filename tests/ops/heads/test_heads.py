"""The loss head against float64 autograd, and its backends against each other."""

import pytest
import torch
from head_problems import (
    INF,
    LOSSES,
    MINIMUM,
    NAMES,
    NAN,
    State,
    arguments,
    assert_close_to_exact,
    problem,
)

from fastadv.ops import backend
from fastadv.ops.heads.loss_head import loss_head, loss_head_reference


@pytest.mark.parametrize(
    "loss, targeted, classes",
    [
        pytest.param(*loss, classes, id=f"{name}-{classes}")
        for loss, name in zip(LOSSES, NAMES, strict=True)
        for classes in (2, 3, 4, 10, 1000)
        if classes >= MINIMUM.get(loss, 2)
    ],
)
def test_values_against_float64_autograd(device, either_backend, loss, targeted, classes):
    logits, labels, targets, reference = problem(device, 6, classes)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    assert torch.equal(got.prediction, logits.argmax(1))
    assert torch.equal(got.correct, got.prediction == labels)
    assert (got.loss.dtype, got.grad.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_every_float_dtype(device, either_backend, loss, targeted, dtype):
    logits, labels, targets, reference = problem(device, 5, 10, dtype)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    assert got.grad.dtype == dtype
    assert got.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    "loss, targeted, dtype",
    [(*loss, torch.float32) for loss in LOSSES] + [("kl", False, torch.float64)],
)
def test_more_classes_than_a_block_holds(device, either_backend, loss, targeted, dtype):
    logits, labels, targets, reference = problem(device, 1, 21_000, dtype)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    assert torch.equal(got.prediction, logits.argmax(1))


@pytest.mark.parametrize("targeted", [False, True])
def test_label_smoothing_is_that_of_torch(device, either_backend, targeted):
    logits, labels, targets, _ = problem(device, 4, 10)
    chosen = arguments("ce", targeted, labels, targets, None, label_smoothing=0.1)
    assert_close_to_exact(loss_head(logits, labels, **chosen), logits, labels, chosen)


def test_label_smoothing_over_many_classes(device, either_backend):
    logits, labels, _, _ = problem(device, 1, 21_000)
    chosen = dict(loss="ce", label_smoothing=0.1)
    assert_close_to_exact(loss_head(logits, labels, **chosen), logits, labels, chosen)


@pytest.mark.parametrize("targeted", [False, True])
def test_margin_stops_rising_at_kappa(device, either_backend, targeted):
    logits, labels, _, _ = problem(device, 12, 4)
    targets = torch.cat([logits.argmax(1)[:6], logits.argmin(1)[6:]])
    chosen = arguments("margin", targeted, labels, targets, None, kappa=0.25)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    beyond = got.loss == 0.25
    assert beyond.any() and not beyond.all()
    assert (got.grad[beyond] == 0).all() and (got.grad[~beyond] != 0).any(1).all()


def test_margin_has_its_gradient_at_kappa_itself(device, either_backend):
    logits = torch.tensor([[0.0, 2.0, 1.0]], device=device)
    got = loss_head(logits, torch.tensor([0], device=device), loss="margin", kappa=2.0)
    assert torch.equal(got.loss, torch.tensor([2.0], device=device))
    assert torch.equal(got.grad, torch.tensor([[-1.0, 1.0, 0.0]], device=device))


def test_margin_without_limit(device, either_backend):
    logits = torch.tensor([[0.0, 50.0]], device=device)
    got = loss_head(logits, torch.tensor([0], device=device), loss="margin", kappa=INF)
    assert torch.equal(got.loss, torch.tensor([50.0], device=device))


def test_a_saturated_row_has_exactly_zero_gradient(device, either_backend):
    logits = torch.tensor([[200.0, 0.0, -50.0]], device=device)
    got = loss_head(logits, torch.tensor([0], device=device))
    assert torch.equal(got.loss, torch.zeros(1, device=device))
    assert torch.equal(got.grad, torch.zeros(1, 3, device=device))


@pytest.mark.parametrize("classes", [10, 9000])
@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_a_row_has_the_same_bits_in_any_batch(device, either_backend, loss, targeted, classes):
    batch = 9 if classes == 10 else 3
    logits, labels, targets, reference = problem(device, batch, classes)

    def rows(start, stop):
        chosen = arguments(loss, targeted, labels, targets[start:stop], reference[start:stop])
        return loss_head(logits[start:stop], labels[start:stop], **chosen)

    together = rows(0, batch)
    for size in (1, 7) if classes == 10 else (1, 2):
        parts = [rows(i, min(i + size, batch)) for i in range(0, batch, size)]
        for name, whole in together._asdict().items():
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), whole), (size, name)


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_a_slot_pass_writes_the_loss_and_gradient_of_a_plain_one(device, loss, targeted):
    logits, labels, targets, reference = problem(device, 9, 10)
    logits[3, 2], logits[4, 1], labels[5] = NAN, INF, 10
    chosen = arguments(loss, targeted, labels, targets, reference)
    plain = loss_head_reference(logits, labels, **chosen)
    kind = {"ce": "cross_entropy"}.get(loss, loss)
    with backend.use_backend("reference"):
        slotted = State(logits, labels).evaluate(
            kind, targets=targets if targeted else None, reference=reference
        )
    for name, expected in plain._asdict().items():
        got = getattr(slotted, name)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_triton_equals_the_reference(device, loss, targeted):
    logits, labels, targets, reference = problem(device, 8, 37)
    chosen = arguments(loss, targeted, labels, targets, reference)
    with backend.use_backend("triton"):
        got = loss_head(logits, labels, **chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    assert torch.equal(got.prediction, eager.prediction)
    assert torch.equal(got.correct, eager.correct)
    if loss in ("margin", "difference", "dlr"):  # no sums: every operation is correctly rounded
        assert torch.equal(got.loss, eager.loss) and torch.equal(got.grad, eager.grad)
