"""The head "ratio", of ALMA: the margin less a tolerance over DLR's denominator."""

import pytest
import torch
from head_problems import NAN, problem

from fastadv.ops.heads.loss_head import loss_head_

_TOLERANCE = 0.01


def _textbook(z, labels, targets):
    own = labels if targets is None else targets
    z_own = z.gather(1, own[:, None])[:, 0]
    others = z.scatter(1, own[:, None], -torch.inf).amax(1)
    top = z.sort(dim=1, descending=True).values
    low = top[:, 2] if targets is None else (top[:, 2] + top[:, 3]) / 2
    gap = others - z_own if targets is None else z_own - others
    return (gap - _TOLERANCE) / (top[:, 0] - low + 1e-8)


def _head(logits, labels, targets):
    """(loss, gradient, prediction)."""
    loss = torch.empty(len(logits), dtype=logits.dtype, device=logits.device)
    grad, prediction = torch.empty_like(logits), torch.empty_like(labels)
    correct = torch.empty_like(labels, dtype=torch.bool)
    outputs = loss, grad, prediction, correct, None, None
    loss_head_(logits, labels, targets, None, *outputs, "ratio", _TOLERANCE, 0, 0, False, 0, False)
    return loss, grad, prediction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [4, 10, 1000])
@pytest.mark.parametrize("targeted", [False, True])
def test_values_against_float64_autograd(targeted, classes, dtype, device, either_backend):
    logits, labels, targets, _ = problem(device, 9, classes, dtype)
    targets = targets if targeted else None
    loss, grad, prediction = _head(logits, labels, targets)
    leaf = logits.double().requires_grad_()
    expected = _textbook(leaf, labels, targets)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    atol = 2e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=atol, atol=atol)
    torch.testing.assert_close(grad.double(), slope, rtol=atol, atol=atol)
    assert torch.equal(prediction, logits.argmax(1))


def test_a_nan_has_no_gradient_and_three_classes_are_needed(device, either_backend):
    logits, labels, targets, _ = problem(device, 3, 5)
    logits[1, 2] = NAN
    loss, grad, _ = _head(logits, labels, None)
    assert loss.isnan().tolist() == [False, True, False]
    assert (grad[1] == 0).all() and grad.isfinite().all()
    with pytest.raises(ValueError, match=r"targeted DLR loss needs at least four.*fastadv\.fmn"):
        _head(logits[:, :3].contiguous(), labels % 3, targets % 3)
