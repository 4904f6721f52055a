"""Steps that take `loss=`: an objective that the craft ascends and the weights descend."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol

import torch

from fastadv.isolation import Model
from fastadv.training import arguments
from fastadv.training.step import CraftedStep
from fastadv.training.weight_loss import TrainingLoss, WeightLoss, objective_mean


class LossMethod(Protocol):
    """`CraftedStep.loss` of a step."""

    def __call__(
        self,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        sample_ids: torch.Tensor | None = None,
        x_init: torch.Tensor | None = None,
        extra: Sequence[torch.Tensor] = (),
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


class LossSetting(Protocol):
    """What type checkers see of a setting that has the name of a method: one is set, one is read.

    At run time `__post_init__` takes the setting out of the method's way.
    """

    def __get__(self, step: CraftedStep | None, owner: type | None = None) -> LossMethod: ...

    def __set__(self, step: CraftedStep, value: TrainingLoss) -> None: ...


@dataclass(eq=False, repr=False)
class ObjectiveStep(CraftedStep):
    """Mean of loss(f(x_adv), y), x_adv crafted to raise it.

    loss: "ce", cross-entropy of (B, C) logits and (B,) labels, or a `fastadv.Objective`, whose
    success and score play no part: it judges what the model returns, in float32 where that is half
    precision, by y as it is given, of any dtype and shape (B, ...). With an objective
    label_smoothing is refused, and modifiers take it in place of the cross-entropy. Other arguments
    as in `CraftedStep`.

    Example: `fastadv.training.FastAT(threat, loss=fastadv.objectives.multilabel())`.
    """

    _: KW_ONLY
    loss: LossSetting = field(default="ce")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        given = vars(self).pop("loss")
        of = getattr(given, "__self__", None)
        # dataclasses.replace hands over what it reads, the method
        self._loss_setting = of._loss_setting if isinstance(of, CraftedStep) else given
        arguments.check_loss(self._loss_setting)
        super().__post_init__()

    def _weight_loss(self) -> WeightLoss:
        return super()._weight_loss() if self.objective is None else objective_mean


del ObjectiveStep.loss  # the default, which the dataclass has read: `loss` is the method again
