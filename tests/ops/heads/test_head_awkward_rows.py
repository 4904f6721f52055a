"""The loss head on ties, infinite values, NaN and labels out of range."""

import numpy as np
import pytest
import torch
from head_problems import INF, LOSSES, NAMES, NAN, arguments, exact, problem

from fastadv.ops.heads import reference as head_reference
from fastadv.ops.heads.loss_head import loss_head, loss_head_reference


@pytest.mark.parametrize(
    "row, expected",
    [
        ([1.0, 1.0, 1.0], 0),
        ([0.0, 2.0, 2.0], 1),
        ([-INF, -INF, -INF], 0),
        ([0.0, INF, INF], 1),
        ([0.0, NAN, INF], 1),
        ([INF, 0.0, NAN], 2),
        ([-0.0, 0.0, -1.0], 0),
    ],
)
def test_prediction_is_the_first_of_the_largest(device, either_backend, row, expected):
    logits = torch.tensor([row], device=device)
    with np.errstate(all="ignore"):  # inf - inf, which a GPU computes without a word
        got = loss_head(logits, torch.tensor([expected], device=device))
    assert got.prediction.tolist() == [expected]
    assert got.correct.tolist() == [True]


def test_prediction_of_tied_and_nan_rows_longer_than_a_block(device, either_backend):
    logits = torch.zeros(3, 9000, device=device)
    logits[0, [4000, 8999]] = 1.0
    logits[1, [8000, 8500]] = NAN
    logits[1, 100] = INF
    logits[2] = -INF
    with np.errstate(all="ignore"):
        got = loss_head(logits, torch.zeros(3, dtype=torch.int64, device=device), loss="margin")
    assert got.prediction.tolist() == [4000, 8000, 0]


@pytest.mark.parametrize(
    "row",
    [
        [1.0, 1.0, 1.0, 1.0],
        [2.0, 2.0, 1.0, 0.0],
        [2.0, 1.0, 1.0, 1.0],
        [0.0, 3.0, 3.0, 3.0],
        [0.0, 2.0, 1.0, 1.0],
    ],
)
@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_tied_logits_give_the_textbook_loss_and_the_reference_gradient(
    device, either_backend, loss, targeted, row
):
    logits = torch.tensor([row, row], device=device)
    labels, targets = torch.tensor([0, 2], device=device), torch.tensor([1, 0], device=device)
    reference = torch.full_like(logits, 0.25)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    expected, _ = exact(logits, labels, chosen)
    relative = 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(got.loss.double(), expected, rtol=relative, atol=relative)
    torch.testing.assert_close(got.grad, eager.grad, rtol=relative, atol=relative)


def test_fp16_gradients_of_tied_logits_are_finite(device, either_backend):
    logits = torch.tensor([[0.0, 3.0, 3.0, 3.0]], dtype=torch.float16, device=device)
    grad = loss_head(logits, torch.tensor([0], device=device), loss="dlr").grad
    assert grad.isfinite().all() and grad.abs().max() == 65504


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_logits_that_are_not_finite_never_crash(device, either_backend, loss, targeted, value):
    logits, labels, targets, reference = problem(device, 4, 5)
    logits[0, 0] = logits[1, 0] = logits[1, 3] = value
    logits[2, labels[2]] = value
    logits[3] = value
    chosen = arguments(loss, targeted, labels, targets, reference)
    with np.errstate(all="ignore"):  # inf - inf, which a GPU computes without a word
        got = loss_head(logits, labels, **chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    tolerance = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(got, eager, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert got.grad.isfinite().all()
    if value != value:
        assert got.loss.isnan().all() and (got.grad == 0).all()


def test_cross_entropy_of_infinite_logits_is_that_of_torch(device, either_backend):
    logits = torch.tensor([[INF, 0.0, 1.0], [-INF, 0.0, 1.0]], device=device)
    labels = torch.tensor([0, 0], device=device)
    with np.errstate(all="ignore"):
        got = loss_head(logits, labels)
    assert got.loss[0].isnan() and got.loss[1] == INF
    assert (got.grad[0] == 0).all() and got.grad[1, 0] == -1


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_labels_out_of_range_give_no_loss_and_no_gradient(device, either_backend, loss, targeted):
    logits, labels, targets, reference = problem(device, 6, 5)
    labels[:4] = torch.tensor([-1, 5, 2**32 + 1, -(2**62)])
    if targeted:
        targets[4] = 5
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    bad = [0, 1, 2, 3, 4] if targeted else [0, 1, 2, 3]
    assert (got.loss[bad] == 0).all() and (got.grad[bad] == 0).all()
    assert not got.correct[:4].any()
    chosen = arguments(loss, targeted, labels, targets[5:], reference[5:])
    alone = loss_head(logits[5:], labels[5:], **chosen)
    assert torch.equal(got.loss[5:], alone.loss) and torch.equal(got.grad[5:], alone.grad)


def _awkward_rows(device, classes):
    """Rows full of ties, infinite values and NaN."""
    values = torch.tensor([-INF, -INF, -1.0, -0.0, 0.0, 2.0, INF, NAN], device=device)
    generator = torch.Generator().manual_seed(classes)
    rows = [
        values[torch.randint(low, high, (64, classes), generator=generator)]
        for low, high in ((0, 2), (0, 4), (2, 6), (0, 7), (0, 8))
    ]
    lonely = torch.full((classes, classes), -INF, device=device)
    lonely.fill_diagonal_(1.0)
    return torch.cat([*rows, lonely])


@pytest.mark.parametrize("classes", [4, 5, 17, 40])
def test_maxima_one_by_one_rank_as_a_stable_sort(device, monkeypatch, classes):
    z = _awkward_rows(device, classes)
    values, columns = z.sort(dim=1, descending=True, stable=True)
    top, first = z.max(1)
    rows = head_reference._Rows(z, top, first, first, None, top != top)
    monkeypatch.setattr(head_reference, "_SORTED_CLASSES", 0)
    for count in (2, 3, 4):
        ranked_values, ranked = head_reference._ranked(rows, count)
        assert torch.equal(torch.stack(ranked, 1), columns[:, :count])
        torch.testing.assert_close(
            torch.stack(ranked_values, 1), values[:, :count], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("loss, targeted", [("margin", False), ("dlr", False), ("dlr", True)])
def test_the_way_of_ranking_changes_no_bit(device, monkeypatch, loss, targeted):
    logits = _awkward_rows(device, 12)
    labels = torch.arange(len(logits), device=device) % 12
    chosen = arguments(loss, targeted, labels, (labels + 5) % 12, None)
    outputs = []
    for limit in (0, 12):
        monkeypatch.setattr(head_reference, "_SORTED_CLASSES", limit)
        outputs.append(loss_head_reference(logits, labels, **chosen))
    torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)
