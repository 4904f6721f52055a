"""Checks of what users hand to a training step, and its repr."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from types import MethodType
from typing import Any, get_args

import torch

from fastadv import losses, outputs
from fastadv.attacks.call import inputs
from fastadv.attacks.call.radius import question_small
from fastadv.attacks.call.squashing import warn_of_outputs
from fastadv.elements import check_radius, has_elements
from fastadv.execution import Precision
from fastadv.isolation import Model
from fastadv.objective import Objective, uncalled
from fastadv.region import Region, checked_mask, region_of
from fastadv.threat_model import ThreatModel, check_fits, check_threat
from fastadv.training import regions
from fastadv.training.bank import PerturbationBank
from fastadv.training.craft import BN_POLICIES
from fastadv.values import same_value


def check_settings(step: Any) -> None:
    """Raises for settings that no method takes: threat, eps_warmup, bn, precision, seed, ..."""
    check_threat(step.threat)
    check_radius(step.threat, type(step).__name__)
    if step.threat.norm == "l0":
        raise ValueError(f"{type(step).__name__} is not defined in L0; got {step.threat!r}")
    regions.check_radii(step.threat)
    for name, lowest in (("steps", 1), ("replays", 1), ("outer", 1), ("inner", 1)):
        check_count(step, name, lowest)
    check_count(step, "eps_warmup", 0)
    if getattr(step, "step_size", None) is not None:
        check_number(step, "step_size")
    check_number(step, "beta")
    check_number(step, "noise")
    check_number(step, "label_smoothing")
    if step.label_smoothing >= 1:
        raise ValueError(f"label_smoothing must lie in [0, 1); got {step.label_smoothing}")
    objective = getattr(step, "objective", None)
    if objective is not None and step.label_smoothing:
        raise ValueError(
            f"label_smoothing={step.label_smoothing:g} belongs to loss='ce'; got "
            f"loss={objective!r}. Smooth the labels yourself, as with fastadv.objectives.soft()"
        )
    if getattr(step, "bn", "batch") not in BN_POLICIES:
        raise ValueError(f"bn must be one of {BN_POLICIES}; got {step.bn!r}")
    choices = (*get_args(Precision), None)
    if step.precision not in choices:
        raise ValueError(f"precision must be one of {choices}; got {step.precision!r}")
    if not isinstance(getattr(step, "seed", 0), int):
        raise ValueError(f"seed must be an integer; got {step.seed!r}")


def check_loss(loss: object) -> None:
    """Raises for what is neither "ce" nor an objective, and says how a function becomes one."""
    if isinstance(loss, Objective) or (isinstance(loss, str) and loss == "ce"):
        return
    if isinstance(loss, str):
        raise ValueError(f"loss must be 'ce' or a fastadv.Objective; got {loss!r}")
    if forgotten := uncalled(loss):
        raise TypeError(forgotten)
    hint = ": wrap it, fastadv.Objective(function)" if callable(loss) else ""
    raise TypeError(f"loss must be 'ce' or a fastadv.Objective; got {loss!r}{hint}")


def check_modifiers(modifiers: object) -> None:
    """Raises TypeError for what is no sequence of callables."""
    if not isinstance(modifiers, Sequence) or not all(
        callable(m) and not isinstance(m, type) for m in modifiers
    ):
        raise TypeError(
            f"modifiers must be a sequence such as [fastadv.training.AWP()]; got {modifiers!r}"
        )


def check_bank(bank: object, threat: ThreatModel) -> None:
    """Raises for what is no bank, and for threats whose perturbations 8 bits of one eps cannot
    hold."""
    if not isinstance(bank, PerturbationBank | None):
        raise TypeError(f"bank must be a PerturbationBank or None; got {bank!r}")
    if bank is not None and threat.norm != "linf":
        raise ValueError(f"bank keeps L-infinity perturbations; got {threat!r}")
    if bank is not None and has_elements(threat):
        raise ValueError(
            f"bank keeps perturbations in units of one eps, inside one pair of bounds; got "
            f"{threat!r}: train without a bank"
        )


def region(threat: ThreatModel, x: torch.Tensor, mask: object) -> Region | None:
    """Where elements of x may go. Raises for what is no mask, and in L1."""
    if mask is None:
        return None
    if threat.norm == "l1":
        raise ValueError(f"{threat!r} takes no mask=: use fastadv.Linf or fastadv.L2")
    return region_of(threat, x, mask=checked_mask(mask, x))


def check_count(owner: Any, name: str, lowest: int) -> None:
    value = getattr(owner, name, lowest)
    if not isinstance(value, int) or isinstance(value, bool) or value < lowest:
        raise ValueError(f"{name} must be an integer of at least {lowest}; got {value!r}")


def check_number(owner: Any, name: str) -> None:
    value = getattr(owner, name, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a float; got {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and >= 0; got {value}")


def check_linf(step: Any) -> None:
    if step.threat.norm != "linf":
        raise ValueError(
            f"{type(step).__name__} is defined for fastadv.Linf only; got {step.threat!r}. "
            "Use PGDAT or TRADES, as recipes the methods pgd and trades"
        )


def check_batch(
    threat: ThreatModel,
    model: Model | None,
    x: object,
    y: object,
    objective: Objective | None = None,
) -> torch.Tensor:
    """x, clamped if it leaves bounds by rounding alone; raises for a batch that cannot be trained
    on. Synchronises, so the first batch only."""
    images = inputs.check_inside(x, threat)
    if isinstance(model, torch.jit.ScriptModule) and not any(True for _ in model.parameters()):
        raise ValueError(
            "the model has no weights to train: torch.jit.freeze has made constants of them; give "
            "the module as it was before"
        )
    if model is not None:
        inputs.check_device(model, images)
        question_small(threat, images)
    region_of(threat, images)  # radii and bounds of elements broadcast
    check_fits(threat, images)
    if objective is None:
        labels = inputs.check_labels(y, images, name="y")
    else:
        labels = inputs.check_asked(y, images, objective)
    check_not_empty(images)
    if torch.is_inference_mode_enabled():
        raise RuntimeError("training steps cannot run under torch.inference_mode()")
    if objective is None:
        inputs.check_range(labels, None, name="y")
    return images


def check_are_leaves(given: Iterable[torch.Tensor], why: str) -> None:
    """Raises ValueError, and says why, for an x, or an extra input, whose graph would get none."""
    if any(x.requires_grad and not x.is_leaf for x in given):
        raise ValueError(
            "x, or an extra input, was computed from what requires a gradient (an embedding?), "
            f"which would get none: {why}. Use FastAT, NFGSM or PGDAT in a loop of your own, or "
            "detach it"
        )


def asked(y: torch.Tensor, objective: Objective | None) -> torch.Tensor:
    """y as the loss takes it: class labels in int64, or as it is."""
    return y.to(torch.int64) if objective is None else y.detach()


def check_not_empty(x: torch.Tensor) -> None:
    """A mean loss over no samples is NaN; a short last batch may leave a rank without any."""
    if len(x) == 0:
        raise ValueError("x must hold at least one sample; got none. Drop the last, short batch")


def checking(
    call: Model,
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    objective: Objective | None = None,
) -> Model:
    """`call`, a way to call `model`, for the first batch: explains a wrong dtype and a model that
    works in place on its input, and at its first call compares labels y with the model's classes,
    which synchronises."""
    is_checked = False
    largest = -1 if objective is None else objective.largest_class(y)

    def checked(x_adv: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
        nonlocal is_checked
        # without gradients nothing stops such a model: it gets a copy, not the user's x
        given = x_adv if x_adv.requires_grad else x_adv.clone()
        version = given._version
        try:
            with inputs.explained_dtype(model, x):
                logits = outputs.logits_in(call(given, *extra), x)
        except TypeError as error:
            outputs.explain_arguments(error, len(extra))
            raise
        except RuntimeError as error:
            if "in-place operation" not in str(error):
                outputs.explain_layout(error, given)
                raise
            raise ValueError(outputs.IN_PLACE) from error
        if given._version != version:
            raise ValueError(outputs.IN_PLACE)
        if not is_checked:
            if objective is None:
                losses.check_logits(logits, x)
                check_classes(y, logits)
            else:
                losses.check_rows(logits, x)
                objective.check_classes(logits, largest)
            if objective is None or objective.expects_logits:
                warn_of_outputs(logits)
        is_checked = True
        return logits

    return checked


def check_classes(y: torch.Tensor, logits: torch.Tensor) -> None:
    """Raises ValueError for a label that the model has no class for; synchronises."""
    inputs.check_range(y, logits.shape[1], name="y")


def check_start(x_init: torch.Tensor, x: torch.Tensor) -> None:
    """Shape, dtype and device only: values are the caller's, and reading them would synchronise."""
    if (x_init.shape, x_init.dtype, x_init.device) != (x.shape, x.dtype, x.device):
        raise ValueError(
            f"x_init must be a tensor like x, {tuple(x.shape)} {x.dtype} on {x.device}; got "
            f"{tuple(x_init.shape)} {x_init.dtype} on {x_init.device}"
        )


def sample_ids(ids: torch.Tensor | None, x: torch.Tensor, *, needed: bool) -> torch.Tensor:
    """(B,) int64: as given, else positions in the global batch, whose ranks hold equal shares."""
    if ids is not None:
        return inputs.check_sample_ids(ids, x)
    if needed:
        raise ValueError("sample_ids must be given with a perturbation bank: it is kept by sample")
    rank = torch.distributed.get_rank() if is_distributed() else 0
    return torch.arange(rank * len(x), (rank + 1) * len(x), device=x.device)


def is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def warmup_factor(batches: int, warmup: int) -> float:
    """min(1, (batches + 1) / warmup): linear from the first batch on; 1 without warm-up."""
    return min(1.0, (batches + 1) / warmup) if warmup else 1.0


def check_state(state: object, names: tuple[str, ...], *, optional: tuple[str, ...] = ()) -> None:
    """optional: what states of earlier versions do not have."""
    if not isinstance(state, dict) or set(state) | set(optional) != {*names, *optional}:
        got = sorted(state) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"state must be what state_dict() gave, with {sorted(names)}; got {got}")


def check_method(state: dict[str, Any], step: Any) -> None:
    mine = type(step).__name__
    if state["method"] != mine:
        raise ValueError(
            f"state must be of {mine}; got that of {state['method']}. After a rollback of a "
            "Sentinel, load it into sentinel.rescue_step(step)"
        )


def settings(step: Any) -> dict[str, Any]:
    """What the constructor of a step takes, as it was given: `loss` too, not the method."""
    given = {f.name: getattr(step, f.name) for f in fields(step) if f.init}
    if isinstance(given.get("loss"), MethodType):
        given["loss"] = step._loss_setting
    return given


def pasteable(step: Any) -> str:
    """fastadv.training.Name(threat, ...) with the settings that are not the default."""
    given, values = [repr(step.threat)], settings(step)
    for f in fields(step):
        if f.init and f.name != "threat" and not same_value(values[f.name], f.default):
            given.append(f"{f.name}={values[f.name]!r}")
    return f"fastadv.training.{type(step).__name__}({', '.join(given)})"
