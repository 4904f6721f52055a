"""The loss head's arguments: strides, dtypes, empty batches, and errors that name them."""

import pytest
import torch
from head_problems import LOSSES, NAMES, State, arguments, exact, one_row, problem

from fastadv.ops.heads.loss_head import loss_head, loss_head_reference


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
