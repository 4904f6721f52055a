"""The loss head against float64 autograd, and its backends against each other."""

import numpy as np
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
    exact,
    one_row,
    problem,
)

from fastadv.ops import backend
from fastadv.ops.heads import reference as head_reference
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


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z.T.contiguous().T,
        lambda z: torch.cat([z, z], 1)[:, : z.shape[1]],
        lambda z: torch.stack([z, z], 2)[..., 0],
    ],
    ids=["transposed", "sliced", "strided"],
)
def test_any_stride_gives_the_same_bits(device, either_backend, view):
    logits, labels, _, _ = problem(device, 5, 10)
    assert not view(logits).is_contiguous()
    for got, expected in zip(
        loss_head(view(logits), labels), loss_head(logits, labels), strict=True
    ):
        assert torch.equal(got, expected)


def test_expanded_logits(device, either_backend):
    logits, labels, _, _ = problem(device, 1, 10)
    got = loss_head(logits.expand(3, 10), labels.expand(3))
    assert torch.equal(got.grad, loss_head(logits, labels).grad.expand(3, 10))


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_an_empty_batch(device, either_backend, loss, targeted):
    logits, labels, targets, reference = (t[:0] for t in problem(device, 1, 5))
    got = loss_head(logits, labels, **arguments(loss, targeted, labels, targets, reference))
    assert [tuple(t.shape) for t in got] == [(0,), (0, 5), (0,), (0,)]


def test_int32_labels_are_converted(device, either_backend):
    logits, labels, targets, _ = problem(device, 3, 5)
    got = loss_head(logits, labels.int(), loss="difference", targets=targets.int())
    assert torch.equal(got.grad, loss_head(logits, labels, loss="difference", targets=targets).grad)


def test_logits_that_require_grad_are_not_recorded(device, either_backend):
    leaf, labels, _, _ = problem(device, 3, 5)
    leaf.requires_grad_()
    logits = 2.0 * leaf
    output = loss_head(logits, labels)
    assert not any(t.requires_grad for t in output)
    logits.backward(output.grad)
    _, grad = exact(2.0 * leaf, labels, dict(loss="ce"))
    torch.testing.assert_close(leaf.grad.double(), 2.0 * grad, rtol=1e-5, atol=1e-6)


def test_dlr_names_the_margin_loss_where_classes_are_too_few(device):
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="DLR loss needs at least three.*of 2.*margin"):
        loss_head(torch.zeros(1, 2, device=device), labels, loss="dlr")
    with pytest.raises(ValueError, match="targeted DLR loss needs at least four.*of 3.*margin"):
        loss_head(torch.zeros(1, 3, device=device), labels, loss="dlr", targets=labels)
    with pytest.raises(ValueError, match="DLR loss needs at least three"):
        State(torch.zeros(1, 2, device=device), labels).evaluate("dlr")


@pytest.mark.parametrize("head", [loss_head, loss_head_reference])
@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(labels=torch.zeros(3, dtype=torch.int64)), r"labels must be \(2,\).*got \(3,\)"),
        (dict(labels=torch.zeros(2)), "labels must be.*int64 or int32.*torch.float32"),
        (dict(labels=torch.zeros(2, dtype=torch.int64, device="meta")), "labels must.*on meta"),
        (dict(targets=torch.zeros(2, 1, dtype=torch.int64)), r"targets must.*got \(2, 1\)"),
        (dict(loss="difference"), "difference.*pass targets"),
        (dict(loss="kl"), "kl.*pass reference"),
        (dict(loss="kl", reference=torch.ones(2, 4)), r"reference must be \(2, 5\).*\(2, 4\)"),
        (dict(loss="kl", targets=torch.zeros(2, dtype=torch.int64)), "kl.*no targeted form"),
        (dict(reference=torch.ones(2, 5)), 'reference belongs to loss="kl".*ce'),
        (dict(loss="hinge"), "loss must be one of .*'margin'.*got 'hinge'"),
        (dict(loss="none"), "loss must be one of"),
        (dict(logits=torch.zeros(2)), r"logits must be \(B, C\).*got \(2,\)"),
        (dict(logits=torch.zeros(2, 1)), r"logits must be.*C >= 2.*got \(2, 1\)"),
        (dict(logits=torch.zeros(2, 5, dtype=torch.int64)), "logits must be.*torch.int64"),
        (dict(label_smoothing=1.5), r"label_smoothing must lie in \[0, 1\].*got 1.5"),
        (dict(loss="dlr", label_smoothing=0.1), "label_smoothing must.*loss='dlr'"),
        (dict(loss="margin", kappa=-1.0), "kappa must be at least 0.*got -1.0"),
        (dict(kappa=1.0), "kappa must be.*0 unless.*loss='ce'"),
    ],
)
def test_errors_name_the_argument(device, head, changes, match):
    given = dict(logits=torch.zeros(2, 5), labels=torch.zeros(2, dtype=torch.int64)) | changes
    given = {
        name: value.to(device) if isinstance(value, torch.Tensor) and not value.is_meta else value
        for name, value in given.items()
    }
    with pytest.raises(ValueError, match=match):
        head(given.pop("logits"), given.pop("labels"), **given)


def test_a_gradient_of_another_dtype_is_refused(device):
    state = one_row(device, 1)
    state.grad = state.grad.half()
    with pytest.raises(ValueError, match="grad must have the logits' dtype.*got torch.float16"):
        state.evaluate()
