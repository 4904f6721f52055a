"""The object that every attack of this package is: its modes, its settings and its call."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader

import fastadv
from fastadv import diagnostics, losses, outputs
from fastadv.attacks.call import inputs as checks
from fastadv.attacks.call import targets
from fastadv.compat.torchattacks import modes, normalization, saving
from fastadv.isolation import Model, isolated, module_of
from fastadv.oracle.gradient import Oracle
from fastadv.threat_model import ThreatModel

_CE = losses.resolve("ce", kappa=0.0, label_smoothing=0.0)
_MIXER = 0x9E3779B97F4A7C15  # odd, so that calls of one object never share a seed


class Attack:
    """An attack with torchattacks' interface: `atk(images, labels)` returns the last iterate.

    Attributes may be changed between calls (`atk.eps = 4 / 255`). eps and alpha: in [0, 1] units,
    also for normalised images. seed: of the random starts, random targets and what the model draws;
    the k-th image that an object attacks gets the same ones whatever the batches.
    """

    eps: float  # set by the attacks
    _takes_labels: ClassVar[bool] = True

    def __init__(self, name: str, model: Model, *, seed: int) -> None:
        self.attack = name
        self.model: Model = model
        self.model_name: str = type(model).__name__
        self.device = _device_of(model)
        self.attack_mode: str = "default"
        self.supported_mode: list[str] = (
            ["default", "targeted"] if self._takes_labels else ["default"]
        )
        self.targeted: bool = False
        self.normalization_used: normalization.Normalization | None = None
        self._target_map_function: modes.TargetFunction = modes.labels_themselves
        self._kth_min = 1
        self._seed = seed
        self._calls = 0
        self._images_attacked = 0

    def threat(self) -> ThreatModel:
        """The ball and the bounds that the returned images lie in."""
        return fastadv.Linf(self.eps)

    def _settings(self, *, batch: int, seed: int) -> fastadv.Attack:
        """The attack from the start iterates on, with its attributes as they are now."""
        raise NotImplementedError

    def _start(self, x: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor | None:
        """The start iterates, None for x itself."""
        return None

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The adversarial images, normalised if the inputs are; on the device of the attack.

        inputs: (B, ...), in [0, 1] or normalised as `set_normalization_used` says. labels: (B,)
        classes, in mode "targeted(label)" the targets; None for the model's own predictions.
        Raises ValueError or TypeError for inputs that cannot be attacked.
        """
        x_adv = self._attacked(inputs, labels)[1]
        return x_adv if self.normalization_used is None else self.normalize(x_adv)

    def forward(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """The same as calling the attack."""
        return self(images, labels)

    def _attacked(
        self, inputs: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, x_adv) in [0, 1]."""
        with torch.inference_mode(False), torch.no_grad():
            model, x, sample_ids, seed = self._next_call(inputs)
            self._calls += 1
            self._images_attacked += len(x)
            y, target = self._moved(labels) if self._takes_labels else None, None
            if self.targeted and len(x):
                y, target = None, self._targets(self.attack_mode, model, x, y, sample_ids, seed)
            start = self._start(x, sample_ids) if len(x) else None
        if getattr(self, "steps", 1) < 1:
            return x, x.clone() if start is None else start
        settings = self._settings(batch=len(x), seed=seed)
        with diagnostics.without("zero_radius"):
            return x, settings(model, x, y, target=target, x_init=start)

    def _next_call(self, inputs: torch.Tensor) -> tuple[Model, torch.Tensor, torch.Tensor, int]:
        """(model of x, x in [0, 1], sample_ids, seed) of the call that comes next."""
        normalization.check_single(self.model, self.normalization_used)
        x = normalization.to_pixels(self._moved(inputs), self.normalization_used)
        model = normalization.pixel_model(self.model, self.normalization_used, x)
        sample_ids = torch.arange(len(x), device=x.device) + self._images_attacked
        return model, x, sample_ids, (self._seed + _MIXER * self._calls) % 2**64

    def _moved(self, values: Any) -> Any:
        if isinstance(values, torch.Tensor) and self.device is not None:
            return values.to(self.device)
        return values

    def _targets(
        self,
        mode: str,
        model: Model,
        x: torch.Tensor,
        y: torch.Tensor | None,
        sample_ids: torch.Tensor,
        seed: int,
    ) -> torch.Tensor:
        """(B,) targets of `mode`; the model and a user's function see x in eval mode."""
        if mode == modes.LABEL:
            if y is None:
                raise ValueError("labels are the targets in mode 'targeted(label)'; got None")
            return y
        if y is not None:
            y = checks.check_labels(y, x, name="labels")
        with isolated(model, device=x.device, seed=seed):
            if mode == modes.CUSTOM and y is not None:
                return self._moved(self._target_map_function(x, y))
            logits = Oracle(model, _CE, targeted=True).logits(x)
            y = logits.argmax(1) if y is None else y
            checks.check_range(y, logits.shape[1], name="labels")
            if mode == modes.CUSTOM:
                return self._moved(self._target_map_function(x, y))
            if mode == modes.LEAST_LIKELY:
                return modes.least_likely(logits, y, self._kth_min)
            return targets.choose("random", logits, y, seed=self._seed, sample_ids=sample_ids, x=x)

    def get_mode(self) -> str:
        return self.attack_mode

    def set_mode_default(self, quiet: bool = False) -> None:
        """Untargeted: away from the labels."""
        self.attack_mode, self.targeted = "default", False
        _announce(self.attack_mode, quiet)

    def set_mode_targeted_by_function(
        self, target_map_function: modes.TargetFunction, quiet: bool = False
    ) -> None:
        """Towards target_map_function(images in [0, 1], labels), called in eval mode.

        Example: `atk.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 10)`.
        """
        if not callable(target_map_function):
            raise TypeError(
                "target_map_function must be callable, (images, labels) to (B,) targets; got "
                f"{target_map_function!r}"
            )
        self._set_mode_targeted(modes.CUSTOM, quiet)
        self._target_map_function = target_map_function

    def set_mode_targeted_random(self, quiet: bool = False) -> None:
        """Towards a class drawn uniformly from all but the label."""
        self._set_mode_targeted(modes.RANDOM, quiet)

    def set_mode_targeted_least_likely(self, kth_min: int = 1, quiet: bool = False) -> None:
        """Towards the class of the kth_min-th smallest clean logit among all but the label."""
        if kth_min < 1:
            raise ValueError(f"kth_min must be at least 1; got {kth_min}")
        self._set_mode_targeted(modes.LEAST_LIKELY, quiet)
        self._kth_min = kth_min

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None:
        """Towards the labels that the call is given."""
        self._set_mode_targeted(modes.LABEL, quiet)

    def _set_mode_targeted(self, mode: str, quiet: bool) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError(f"{self.attack} has no targeted mode, only {self.supported_mode}")
        self.attack_mode, self.targeted = mode, True
        _announce(mode, quiet)

    def set_model(self, model: Model) -> None:
        """Attack `model` from now on, on its device."""
        normalization.check_single(model, self.normalization_used)
        self.model = model
        self.model_name = type(model).__name__
        self.device = _device_of(model) or self.device

    def set_device(self, device: torch.device | str) -> None:
        """Move images and labels to `device`: needed for models without parameters only."""
        self.device = torch.device(device)

    def set_normalization_used(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Inputs and outputs are (x - mean) / std; eps and alpha stay in [0, 1] units."""
        used = normalization.make(mean, std)
        normalization.check_single(self.model, used)
        self.normalization_used = used

    def set_model_training_mode(
        self,
        model_training: bool = False,
        batchnorm_training: bool = False,
        dropout_training: bool = False,
    ) -> None:
        """Only eval mode is there: raises NotImplementedError if any argument is True."""
        if model_training or batchnorm_training or dropout_training:
            raise NotImplementedError(
                "attacks run in eval mode: training mode would change BatchNorm's statistics. "
                "For a stochastic model keep its noise on in eval mode, and use EOTPGD"
            )

    def normalize(self, inputs: torch.Tensor) -> torch.Tensor:
        mean, std = normalization.channels(self._normalization(), inputs)
        return (inputs - mean) / std

    def inverse_normalize(self, inputs: torch.Tensor) -> torch.Tensor:
        mean, std = normalization.channels(self._normalization(), inputs)
        return inputs * std + mean

    def _normalization(self) -> normalization.Normalization:
        if self.normalization_used is None:
            raise ValueError("call set_normalization_used(mean, std) first")
        return self.normalization_used

    def get_logits(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """model(inputs), inputs being what the attack is called with; labels are ignored."""
        return outputs.logits_in(self.model(inputs), inputs)

    def get_output_with_eval_nograd(self, inputs: torch.Tensor) -> torch.Tensor:
        """`get_logits` in eval mode and without a gradient; every flag is put back."""
        with isolated(self.model, device=inputs.device, seed=self._seed):
            return outputs.logits_in(self.model(inputs), inputs)

    def get_random_target_label(
        self, inputs: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B,) targets that the next call would draw in mode "targeted(random)"."""
        return self._targets_of_next_call(modes.RANDOM, inputs, labels)

    def get_least_likely_label(
        self, inputs: torch.Tensor, labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B,) targets of mode "targeted(least-likely)", with the kth_min that was set last."""
        return self._targets_of_next_call(modes.LEAST_LIKELY, inputs, labels)

    def _targets_of_next_call(
        self, mode: str, inputs: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        with torch.inference_mode(False), torch.no_grad():
            model, x, sample_ids, seed = self._next_call(inputs)
            if not len(x):
                return torch.empty(0, dtype=torch.int64, device=x.device)
            return self._targets(mode, model, x, self._moved(labels), sample_ids, seed)

    def save(
        self,
        data_loader: DataLoader[Any],
        save_path: str | None = None,
        verbose: bool = True,
        return_verbose: bool = False,
        save_predictions: bool = False,
        save_clean_inputs: bool = False,
        save_type: saving.SaveType = "float",
    ) -> tuple[float, float, float] | None:
        """Attack every batch of data_loader; see `saving.save`."""
        figures = saving.save(
            self,
            data_loader,
            save_path,
            verbose=verbose,
            predictions=save_predictions,
            clean_inputs=save_clean_inputs,
            save_type=save_type,
        )
        return figures if return_verbose else None

    load = staticmethod(saving.load)
    to_type = staticmethod(saving.to_type)

    def __repr__(self) -> str:
        hidden = ("attack", "model", "supported_mode")
        shown = {k: v for k, v in vars(self).items() if k not in hidden and k[0] != "_"}
        shown["normalization_used"] = self.normalization_used is not None
        return f"{self.attack}({', '.join(f'{k}={v}' for k, v in shown.items())})"


def _device_of(model: Model) -> torch.device | None:
    module: nn.Module | None = module_of(model)
    return None if module is None else next((p.device for p in module.parameters()), None)


def _announce(mode: str, quiet: bool) -> None:
    if not quiet:
        print(f"attack mode: {mode}")
