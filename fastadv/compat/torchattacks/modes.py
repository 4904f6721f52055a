"""The modes of an attack: how its targets are chosen."""

from collections.abc import Callable

import torch

TargetFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LABEL, CUSTOM = "targeted(label)", "targeted(custom)"
RANDOM, LEAST_LIKELY = "targeted(random)", "targeted(least-likely)"


def labels_themselves(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return labels


def least_likely(logits: torch.Tensor, labels: torch.Tensor, kth: int) -> torch.Tensor:
    """(B,) the class of the kth smallest logit among all but the label."""
    classes = logits.shape[1]
    if kth >= classes:
        raise ValueError(f"kth_min must be below {classes}, the classes of the model; got {kth}")
    is_label = torch.arange(classes, device=logits.device) == labels[:, None]
    return logits.masked_fill(is_label, float("inf")).kthvalue(kth, dim=1).indices
