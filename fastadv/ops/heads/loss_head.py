"""Loss heads as ops: the loss an attack ascends, dL/dlogits, the prediction and the slot state."""

from typing import NamedTuple

import torch

from fastadv.ops import layout, registry
from fastadv.ops.heads import arguments as head_arguments
from fastadv.ops.heads import reference as head_reference

_NO_SLOTS = None, None  # and no best loss
_ONE_LOOK = 0, 0, False, 0, False  # the rules of slots, where there are none


_LOSS_HEAD = registry.register(
    "loss_head_(Tensor logits, Tensor labels, Tensor? targets, Tensor? reference, "
    "Tensor(a!) loss, Tensor(b!)? grad, Tensor(c!) prediction, Tensor(d!) correct, "
    "Tensor(e!)? slots, Tensor(f!)? best_loss, str kind, float parameter, int steps, "
    "int first_step, bool stop_early, int best_from, "
    "bool any_error) -> ()",
    reference=head_reference.loss_head_in_place,
    compiled="heads.loops",
    launch=lambda *arguments: registry.kernels("heads.loss_head").launch_loss_head(*arguments),
    tolerance=1e-6,
)


class HeadOutput(NamedTuple):
    """What a model's logits are worth to an attack.

    loss: (B,) float32 (float64 for float64 logits), what the attack ascends. grad: (B, C) in the
    logits' dtype, d loss / d logits. prediction: (B,) int64, the first of the largest logits.
    correct: (B,) bool, prediction == labels.
    """

    loss: torch.Tensor
    grad: torch.Tensor
    prediction: torch.Tensor
    correct: torch.Tensor


def loss_head(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    loss: head_arguments.LossName = "ce",
    targets: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    kappa: float = 0.0,
) -> HeadOutput:
    """Loss, d loss / d logits, prediction and correctness of every row of logits, in one launch.

    An attack ascends the loss. With z a row of logits, y its label, t its target, pi the columns by
    descending z and m_k = max_{j != k} z_j:

    - "ce": -log softmax(z)_y; targeted log softmax(z)_t (label_smoothing as in torch)
    - "margin": -max(z_y - m_y, -kappa); targeted -max(m_t - z_t, -kappa); no gradient beyond kappa
    - "dlr": -(z_y - m_y) / (z_pi1 - z_pi3 + 1e-12);
      targeted -(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2 + 1e-12)
    - "difference": z_t - z_y, targeted only: the cross-entropy of y minus that of t
    - "kl": KL(reference || softmax(z)), untargeted only

    logits: (B, C), C >= 2, any float dtype. labels, targets: (B,) int64 or int32. reference:
    (B, C) probabilities that sum to one. Computed in float32 (float64 for float64 logits) and
    rounded once. Equal logits rank by ascending column; any order gives the same loss. A row with a
    NaN has loss NaN, a label outside [0, C) loss 0, both a zero gradient; so has every gradient
    that is not finite, and float16 gradients saturate at 65504. Nothing is recorded by autograd:
    continue with `logits.backward(output.grad)`. Raises ValueError if shapes, dtypes or devices do
    not fit, or if DLR has too few classes: three, targeted four.

    Example: `loss, grad, prediction, correct = fastadv.ops.loss_head(logits, y, loss="dlr")`.
    Source: Carlini and Wagner 2017, arXiv:1608.04644 (margin); Croce and Hein 2020,
    arXiv:2003.01690 (DLR); Zhang et al. 2019, arXiv:1901.08573 (KL).
    """
    tensors, kind, parameter = head_arguments.checked(
        logits, labels, targets, reference, loss=loss, smoothing=label_smoothing, kappa=kappa
    )
    output = _empty_output(tensors[0])
    _LOSS_HEAD(*tensors, *output, *_NO_SLOTS, kind, parameter, *_ONE_LOOK)
    return output


def loss_head_reference(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    loss: head_arguments.LossName = "ce",
    targets: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    kappa: float = 0.0,
) -> HeadOutput:
    """The eager twin of `loss_head`: it defines the result."""
    tensors, kind, parameter = head_arguments.checked(
        logits.detach(),
        labels,
        targets,
        reference,
        loss=loss,
        smoothing=label_smoothing,
        kappa=kappa,
    )
    output = _empty_output(tensors[0])
    head_reference.loss_head_in_place(*tensors, *output, *_NO_SLOTS, kind, parameter, *_ONE_LOOK)
    return output


def loss_head_(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor | None,
    reference: torch.Tensor | None,
    loss: torch.Tensor,
    grad: torch.Tensor | None,
    prediction: torch.Tensor,
    correct: torch.Tensor,
    slots: torch.Tensor | None,
    best_loss: torch.Tensor | None,
    kind: head_arguments.Kind,
    parameter: float,
    steps: int,
    first_step: int,
    stop_early: bool,
    best_from: int,
    any_error: bool,
) -> None:
    """`loss_head` into tensors of the engine, which also advances the slots: one launch.

    The op's own arguments in its order, called every step: only what is cheap is checked. kind:
    "cross_entropy", "margin", "dlr", "difference", "kl" (targets decide success only), "none",
    where `loss` is an input and no gradient is written, or "ratio": the margin less the parameter,
    over DLR's denominator with 1e-8. parameter: label smoothing, kappa, or that of the ratio.
    labels, targets: (B,) int64, contiguous. reference: (B, C), unit column stride. grad: (B, C) in
    the logits' dtype; None evaluates only. slots: (B, 5) int32, contiguous, columns of
    `fastadv.kernels.slots`; best_loss: (B,) in the dtype of loss, ignored without slots.

    An active slot that fools the model (margin: by kappa or more; with targets: hits its own, or
    makes any error with any_error) at STEP >= first_step for the
    first time records SUCCESS_STEP; it goes on, STEP + 1, unless STEP is `steps` or stop_early and
    it has succeeded. A higher loss than best_loss at STEP >= best_from sets IMPROVED, which is
    written only with best_loss. A finished slot keeps its state, loss and best_loss; its gradient
    and prediction are written but mean nothing. A NaN or a label outside [0, C) sets FAULT and is
    never a success.

    Example: `loss_head_(logits, y, None, None, loss, grad, prediction, correct, slots, None, "dlr",
    0.0, steps, 0, True, 0, False)`.
    """
    if kind == "dlr" or kind == "ratio":
        head_arguments.check_classes(kind, logits.shape[1], targets is not None)
    if grad is not None and (grad.dtype != logits.dtype or grad.stride()[1] != 1):
        raise ValueError(
            f"grad must have the logits' dtype {logits.dtype} and unit column stride; got "
            f"{grad.dtype} with strides {grad.stride()}"
        )
    if logits.stride()[1] != 1:
        logits = logits.contiguous()
    _LOSS_HEAD(
        logits,
        labels,
        targets,
        reference,
        loss,
        grad,
        prediction,
        correct,
        slots,
        best_loss,
        kind,
        parameter,
        steps,
        first_step,
        stop_early,
        best_from,
        any_error,
    )


def _empty_output(logits: torch.Tensor) -> HeadOutput:
    rows = logits.shape[:1]
    device = logits.device
    return HeadOutput(
        torch.empty(rows, dtype=layout.compute_dtype(logits), device=device),
        torch.empty(logits.shape, dtype=logits.dtype, device=device),
        torch.empty(rows, dtype=torch.int64, device=device),
        torch.empty(rows, dtype=torch.bool, device=device),
    )
