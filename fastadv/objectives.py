"""Ready-made objectives: one logit, several labels, regression, segmentation, soft labels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from fastadv import objective_checks
from fastadv.objective import IGNORE_PIXELS, Objective
from fastadv.ops import layout
from fastadv.ops.reduction import tree_sum


def binary() -> Objective:
    """One logit z for the classes 0 and 1: max BCE(z, y), a success where (z > 0) != y.

    output: (B,) or (B, 1); y: 0 or 1 of any dtype, (B,) or (B, 1). score: 1 where z is right.
    Example: `fastadv.pgd(threat, loss=fastadv.objectives.binary()).run(model, x, y).success`.
    """
    functions = (_binary_loss, _binary_success, _binary_score)
    return Objective(*functions, name="binary", check=objective_checks.binary_labels)


def _binary_loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _bce(_single(output), _single(y))


def _binary_success(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (_single(output) > 0) != (_single(y) > 0)


def _binary_score(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (~_binary_success(output, y)).float()


def _bce(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Unlike torch's, whose gradient sigmoid(z) - y is 0 in float32 where a right |z| is above 17:
    here it is about e^-|z|."""
    y = labels.to(z.dtype)
    return -y * F.logsigmoid(z) - (1 - y) * F.logsigmoid(-z)


def _single(rows: torch.Tensor) -> torch.Tensor:
    if rows.ndim not in (1, 2) or rows.shape[1:].numel() != 1:
        raise ValueError(f"binary takes one logit and one label a sample; got {tuple(rows.shape)}")
    return rows.reshape(len(rows))


def multilabel(labels: Sequence[int] | None = None) -> Objective:
    """L labels that are each true or not: max mean_l BCE(z_l, y_l), a success where one flips.

    output: (B, L) logits; y: (B, L), 0 or 1 of any dtype. labels: the indices of those that are
    attacked, None for all; the others may do what they like. score: the share that is right, of
    those. Raises ValueError for no labels, TypeError for what are no integers.
    Example: `fastadv.pgd(threat, loss=fastadv.objectives.multilabel(labels=(3,)))(model, x, y)`.
    """
    chosen = None if labels is None else objective_checks.indices(labels)
    return Objective(
        _multilabel_loss,
        _multilabel_success,
        _multilabel_score,
        name="multilabel",
        parameters={} if chosen is None else {"labels": chosen},
        check=objective_checks.multilabel_labels,
    )


def _multilabel_loss(
    output: torch.Tensor, y: torch.Tensor, labels: tuple[int, ...] | None = None
) -> torch.Tensor:
    return _mean(_bce(*_columns(output, y, labels)))


def _multilabel_success(
    output: torch.Tensor, y: torch.Tensor, labels: tuple[int, ...] | None = None
) -> torch.Tensor:
    z, wanted = _columns(output, y, labels)
    return ((z > 0) != (wanted > 0)).any(1)


def _multilabel_score(
    output: torch.Tensor, y: torch.Tensor, labels: tuple[int, ...] | None = None
) -> torch.Tensor:
    z, wanted = _columns(output, y, labels)
    return ((z > 0) == (wanted > 0)).float().mean(1)


def _columns(
    output: torch.Tensor, y: torch.Tensor, labels: tuple[int, ...] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if output.ndim != 2 or output.shape != y.shape:
        raise ValueError(
            f"multilabel takes (B, L) logits and labels alike; got {tuple(output.shape)} and "
            f"{tuple(y.shape)}"
        )
    if labels is None:
        return output, y
    if not all(-output.shape[1] <= label < output.shape[1] for label in labels):
        raise ValueError(f"labels must be among the {output.shape[1]} of the model; got {labels}")
    # not by a list: an index on the host would be copied to the device at every step
    return tuple(torch.stack([rows[:, k] for k in labels], 1) for rows in (output, y))  # type: ignore[return-value]


def regression(*, tolerance: float) -> Objective:
    """Numbers: max mean (f(x) - y)^2, a success where one is off by more than `tolerance`.

    output, y: floats, (B, ...) alike, or (B, 1) and (B,). tolerance: in units of y. score: the mean
    of |f(x) - y|, which an attack raises. Raises ValueError for a negative tolerance.
    Example: `fastadv.pgd(threat, loss=fastadv.objectives.regression(tolerance=0.5))(model, x, y)`.
    """
    return Objective(
        _regression_loss,
        _regression_success,
        _regression_score,
        name="regression",
        parameters={"tolerance": objective_checks.tolerance(tolerance)},
    )


def _regression_loss(output: torch.Tensor, y: torch.Tensor, tolerance: float) -> torch.Tensor:
    return _mean(_off(output, y).square())


def _regression_success(output: torch.Tensor, y: torch.Tensor, tolerance: float) -> torch.Tensor:
    return (_off(output, y).abs() > tolerance).any(1)


def _regression_score(output: torch.Tensor, y: torch.Tensor, tolerance: float) -> torch.Tensor:
    return _mean(_off(output, y).abs())


def _off(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(B, K) the numbers' errors."""
    is_column = output.shape[1:].numel() == y.shape[1:].numel() == 1
    if output.shape != y.shape and not is_column:
        raise ValueError(
            f"regression takes outputs and y of one shape; got {tuple(output.shape)} and "
            f"{tuple(y.shape)}"
        )
    return (output.reshape(len(output), -1) - y.reshape(len(y), -1)).reshape(len(output), -1)


def segmentation(*, fraction: float = 0.1, ignore_index: int = -100) -> Objective:
    """A class a pixel: max the mean CE of its valid pixels, a success where at most `fraction` of
    them are right.

    output: (B, C, H, W) logits; y: (B, H, W) integers, `ignore_index` where a pixel does not count
    (-100, or 255 in many data sets). score: the share of valid pixels that are right. A sample
    without valid pixels has the loss 0, the score 1, and is never a success. Raises ValueError
    unless 0 <= fraction < 1, TypeError for an ignore_index that is no integer.
    Example: `fastadv.pgd(threat, loss=fastadv.objectives.segmentation(ignore_index=255))`.
    Source: Xie et al. 2017, arXiv:1703.08603 (the loss of all pixels).
    """
    return Objective(
        _segmentation_loss,
        _segmentation_success,
        _segmentation_score,
        name="segmentation",
        parameters=objective_checks.of_pixels(fraction, ignore_index),
        check=objective_checks.pixel_labels,
    )


def _segmentation_loss(
    output: torch.Tensor, y: torch.Tensor, fraction: float, ignore_index: int
) -> torch.Tensor:
    _check_pixels(output, y)
    try:
        loss = F.cross_entropy(output, y.long(), ignore_index=ignore_index, reduction="none")
    except IndexError as error:  # on the CPU
        raise ValueError(f"{error}, of {output.shape[1]} classes. {IGNORE_PIXELS}") from error
    valid = (y != ignore_index).flatten(1).sum(1)
    return _sum(loss.flatten(1)) / valid.clamp(min=1)


def _segmentation_success(
    output: torch.Tensor, y: torch.Tensor, fraction: float, ignore_index: int
) -> torch.Tensor:
    right, valid = _right_pixels(output, y, ignore_index)
    return (right <= fraction * valid) & (valid > 0)


def _segmentation_score(
    output: torch.Tensor, y: torch.Tensor, fraction: float, ignore_index: int
) -> torch.Tensor:
    right, valid = _right_pixels(output, y, ignore_index)
    return torch.where(valid > 0, right / valid.clamp(min=1), 1.0)


def _right_pixels(
    output: torch.Tensor, y: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(right, valid) pixels of each sample."""
    _check_pixels(output, y)
    valid = y != ignore_index
    right = (output.argmax(1) == y) & valid
    return right.flatten(1).sum(1), valid.flatten(1).sum(1)


def _check_pixels(output: torch.Tensor, y: torch.Tensor) -> None:
    if output.ndim < 3 or (len(output), *output.shape[2:]) != tuple(y.shape):
        raise ValueError(
            f"segmentation takes (B, C, H, W) logits and (B, H, W) labels; got "
            f"{tuple(output.shape)} and {tuple(y.shape)}"
        )


def soft() -> Objective:
    """Probabilities as labels: max -sum_c y_c log softmax(z)_c, a success where the likeliest class
    of the model is not that of y.

    output: (B, C) logits; y: (B, C) probabilities. score: 1 where they agree.
    Example: `fastadv.pgd(threat, loss=fastadv.objectives.soft())(model, x, mixed_labels)`.
    """
    functions = (_soft_loss, _soft_success, _soft_score)
    return Objective(*functions, name="soft", check=objective_checks.probabilities)


def _soft_loss(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    if output.ndim != 2 or output.shape != y.shape:
        raise ValueError(
            f"soft takes (B, C) logits and probabilities alike; got {tuple(output.shape)} and "
            f"{tuple(y.shape)}"
        )
    return _sum(-y.to(output.dtype) * F.log_softmax(output, 1))


def _soft_success(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return output.argmax(1) != y.argmax(1)


def _soft_score(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == y.argmax(1)).float()


def weighted(class_weights: torch.Tensor | Sequence[float]) -> Objective:
    """Cross-entropy times the weight of the label's class: max w_y CE(z, y), a success where the
    model's class is not y.

    output: (B, C) logits; y: (B,) integers. class_weights: (C,) finite and not negative, best on
    the device of the model. score: 1 where the model is right. Raises ValueError for other weights.
    Example: `fastadv.pgd(threat, loss=fastadv.objectives.weighted((1.0, 5.0)))(model, x, y)`.
    """
    weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().clone()
    if weights.ndim != 1 or not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError(f"class_weights must be (C,) finite and not negative; got {class_weights}")
    return Objective(
        _weighted_loss,
        _weighted_success,
        _weighted_score,
        name="weighted",
        parameters={"class_weights": weights},
        check=objective_checks.class_labels,
    )


def _weighted_loss(
    output: torch.Tensor, y: torch.Tensor, class_weights: torch.Tensor
) -> torch.Tensor:
    if output.ndim != 2 or output.shape[1] != len(class_weights) or y.shape != output.shape[:1]:
        raise ValueError(
            f"weighted takes (B, {len(class_weights)}) logits, as there are weights, and (B,) "
            f"labels; got {tuple(output.shape)} and {tuple(y.shape)}"
        )
    labels = y.long()
    weights = class_weights.to(output.device, output.dtype)
    return F.cross_entropy(output, labels, reduction="none") * weights[labels]


def _weighted_success(
    output: torch.Tensor, y: torch.Tensor, class_weights: torch.Tensor
) -> torch.Tensor:
    return output.argmax(1) != y


def _weighted_score(
    output: torch.Tensor, y: torch.Tensor, class_weights: torch.Tensor
) -> torch.Tensor:
    return (output.argmax(1) == y).float()


class _Sum(torch.autograd.Function):
    """In an order that the row's length alone decides: torch's own changes with the batch."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.columns = rows.shape[1]
        return tree_sum(rows.to(layout.compute_dtype(rows))).to(rows.dtype, copy=True)

    @staticmethod
    def backward(ctx, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0][:, None].expand(-1, ctx.columns)


def _sum(rows: torch.Tensor) -> torch.Tensor:
    """Of (B, K) over K; half precision is added up in float32."""
    return _Sum.apply(rows)  # type: ignore[return-value]


def _mean(rows: torch.Tensor) -> torch.Tensor:
    return _sum(rows) / rows.shape[1]
