"""RobustBench's `benchmark` and `clean_accuracy`."""

import os
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal

import torch

from fastadv import losses, outputs
from fastadv.compat.autoattack import AutoAttack
from fastadv.compat.autoattack.sub_attack import own_device
from fastadv.compat.robustbench import peer, records, samples
from fastadv.diagnostics import emit
from fastadv.isolation import Model, isolated
from fastadv.reach import modules_behind

ThreatName = Literal["Linf", "L2", "corruptions", "corruptions_3d"]
_ATTACKED = ("Linf", "L2")
_CORRUPTED = ("corruptions", "corruptions_3d")
_IN_TRAIN_MODE = (
    "the model is in train mode: it is benchmarked in eval mode all the same, and put back; call "
    "model.eval() first, so that both are meant"
)


def benchmark(
    model: Model,
    n_examples: int = 10000,
    dataset: str | Enum | Sequence[torch.Tensor] = "cifar10",
    threat_model: ThreatName | Enum = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str = "./data",
    corruptions_data_dir: str | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 32,
    eps: float | None = None,
    log_path: str | None = None,
    preprocessing: str | Callable | None = None,
    aa_state_path: str | os.PathLike[str] | None = None,
) -> tuple[float, float]:
    """(clean accuracy, accuracy under AutoAttack or corruptions) of the first n_examples.

    dataset: a name ("cifar10", "mnist", "digits", others with RobustBench), RobustBench's enum, or
    (x, y) tensors. threat_model: "Linf" or "L2", both with eps, or "corruptions", "corruptions_3d"
    with RobustBench. data_dir: the folder that holds the data set's files. to_disk: also write
    model_info/<dataset>/<threat_model>/<model_name>.json below the working directory.
    aa_state_path: as `state_path` of `AutoAttack.run_standard_evaluation`. Raises ValueError for
    arguments that cannot be, NotImplementedError for several models or devices, ImportError for
    what needs RobustBench where it is not installed.

    Example: `benchmark(model, dataset="cifar10", threat_model="Linf", eps=8 / 255, device="cuda")`.
    Source: Croce et al. 2021, arXiv:2010.09670.
    """
    if isinstance(model, Sequence) or isinstance(device, (list, tuple)):
        raise NotImplementedError("one model on one device: call benchmark for each")
    threat: Any = getattr(threat_model, "value", threat_model)
    if threat in _CORRUPTED:
        return peer.load("eval", f"threat_model={threat!r}").benchmark(
            model,
            n_examples,
            getattr(dataset, "value", dataset),
            threat,
            to_disk,
            model_name,
            data_dir,
            corruptions_data_dir,
            device,
            batch_size,
            eps,
            log_path,
            preprocessing,
            aa_state_path,
        )
    if any(module.training for module in modules_behind(model)[:1]):
        emit(UserWarning(_IN_TRAIN_MODE))
    if threat not in _ATTACKED:
        raise ValueError(f"threat_model must be one of {_ATTACKED + _CORRUPTED}; got {threat!r}")
    if eps is None:
        raise ValueError(f"eps must be given with threat_model={threat!r}, such as 8 / 255")
    name = samples.name_of(dataset)
    if to_disk and (model_name is None or name is None):
        raise ValueError(
            "to_disk=True names its file by the data set and the model: give model_name, and a "
            f"dataset by name; got model_name={model_name!r}, dataset={name or 'tensors'}"
        )
    x, y = samples.load(
        dataset,
        n_examples,
        data_dir,
        threat_model=threat,
        model_name=model_name,
        preprocessing=preprocessing,
    )
    if device is not None and isinstance(model, torch.nn.Module):
        model.to(device)
    where = own_device(model, x) if device is None else torch.device(device)
    accuracy = clean_accuracy(model, x, y, batch_size=batch_size, device=where)
    print(f"Clean accuracy: {accuracy:.2%}")
    adversary = AutoAttack(model, norm=threat, eps=eps, seed=0, device=where, log_path=log_path)
    x_adv = adversary.run_standard_evaluation(x, y, bs=batch_size, state_path=aa_state_path)
    assert isinstance(x_adv, torch.Tensor), "labels are returned on demand only"
    adv_accuracy = clean_accuracy(model, x_adv, y, batch_size=batch_size, device=where)
    print(f"Adversarial accuracy: {adv_accuracy:.2%}")
    if to_disk and model_name is not None and name is not None:
        records.update(name, threat, model_name, accuracy, adv_accuracy, eps)
    return accuracy, adv_accuracy


def clean_accuracy(
    model: Model,
    x: torch.Tensor,
    y: torch.Tensor,
    batch_size: int = 100,
    device: torch.device | str | None = None,
) -> float:
    """Share of (x, y) that the model, in eval mode, gets right; device: None for that of x.

    Example: `clean_accuracy(model, x, y, device="cuda")`.
    """
    if len(x) == 0:
        raise ValueError("x must hold at least one sample; got none")
    where = x.device if device is None else torch.device(device)
    correct = 0
    with isolated(model, device=where, seed=0):
        for images, labels in zip(x.split(batch_size), y.split(batch_size), strict=True):
            logits = outputs.logits_in(model(images.clone().to(where)), images)
            losses.check_logits(logits, images)
            losses.check_classes(losses.UNCAPPED_MARGIN, logits.shape[1], targeted=False)
            prediction = logits.argmax(1)
            correct += int((prediction == labels.to(where)).sum())
    return correct / len(x)
