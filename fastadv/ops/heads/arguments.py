"""What a loss head may be given: the names of its losses, and checks of its tensors."""

from typing import Literal

import torch

from fastadv.ops import layout

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]

LossName = Literal["ce", "margin", "dlr", "difference", "kl"]
# ratio: of no public loss, the minimum-norm attacks'; none: no loss
Kind = Literal["cross_entropy", "margin", "dlr", "difference", "ratio", "kl", "none"]
KINDS: dict[str, Kind] = {
    "ce": "cross_entropy",
    "margin": "margin",
    "dlr": "dlr",
    "difference": "difference",
    "kl": "kl",
}
_MARGIN = 'the margin loss (loss="margin")'


def check_classes(kind: str, classes: int, targeted: bool) -> None:
    """Raise ValueError where DLR, or the ratio like it, has too few classes."""
    if kind in ("dlr", "ratio") and classes < (4 if targeted else 3):
        form, needed = ("targeted DLR loss", "four") if targeted else ("DLR loss", "three")
        remedy = "an attack without it, such as fastadv.fmn" if kind == "ratio" else _MARGIN
        raise ValueError(
            f"the {form} needs at least {needed} classes; got logits of {classes}. Use {remedy} "
            "instead."
        )


def checked(
    logits: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor | None,
    reference: torch.Tensor | None,
    *,
    loss: LossName,
    smoothing: float,
    kappa: float,
) -> tuple[Tensors, Kind, float]:
    """The op's (logits, labels, targets, reference), kind and parameter; raises ValueError."""
    kind = KINDS.get(loss)
    if kind is None:
        raise ValueError(f"loss must be one of {tuple(KINDS)}; got {loss!r}")
    if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be (B, C) with C >= 2, floating-point; got {tuple(logits.shape)} "
            f"{logits.dtype}"
        )
    check_classes(kind, logits.shape[1], targets is not None)
    labels = _checked_classes("labels", labels, logits)
    if targets is not None:
        if kind == "kl":
            raise ValueError('loss="kl" has no targeted form; leave targets out')
        targets = _checked_classes("targets", targets, logits)
    elif kind == "difference":
        raise ValueError('loss="difference" is z_target - z_label: pass targets, (B,)')
    if kind == "kl":
        reference = _checked_reference(reference, logits)
    elif reference is not None:
        raise ValueError(f'reference belongs to loss="kl"; got it with loss={loss!r}')
    if not 0.0 <= smoothing <= 1.0 or (smoothing and kind != "cross_entropy"):
        raise ValueError(
            f'label_smoothing must lie in [0, 1], and 0 unless loss="ce"; got {smoothing} '
            f"with loss={loss!r}"
        )
    if not kappa >= 0.0 or (kappa and kind != "margin"):
        raise ValueError(
            f'kappa must be at least 0, and 0 unless loss="margin"; got {kappa} with loss={loss!r}'
        )
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    parameter = smoothing if kind == "cross_entropy" else kappa
    return (logits, labels, targets, reference), kind, float(parameter)


def _checked_classes(name: str, classes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if (
        classes.shape != logits.shape[:1]
        or classes.dtype not in (torch.int64, torch.int32)
        or classes.device != logits.device
    ):
        raise ValueError(
            f"{name} must be ({logits.shape[0]},) int64 or int32 on {logits.device}; got "
            f"{tuple(classes.shape)} {classes.dtype} on {classes.device}"
        )
    return classes.to(torch.int64).contiguous()


def _checked_reference(reference: torch.Tensor | None, logits: torch.Tensor) -> torch.Tensor:
    if reference is None:
        raise ValueError(
            'loss="kl" compares with clean probabilities: pass reference, (B, C), for example '
            "model(x).softmax(1)"
        )
    if (reference.shape, reference.device) != (logits.shape, logits.device) or (
        not reference.is_floating_point()
    ):
        raise ValueError(
            f"reference must be {tuple(logits.shape)}, floating-point, on {logits.device}; got "
            f"{tuple(reference.shape)} {reference.dtype} on {reference.device}"
        )
    return reference.detach().to(layout.compute_dtype(logits)).contiguous()
