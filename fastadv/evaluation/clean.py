"""What a model says of clean samples, and which model it is."""

import torch
from torch.nn.parallel import DistributedDataParallel

from fastadv import memory, outputs
from fastadv.isolation import Model, isolated, module_of


def logits_of(
    model: Model, x: torch.Tensor, *extra: torch.Tensor, batch_size: int, seed: int = 0
) -> torch.Tensor:
    """(n, C) logits that the model gives x, and extra beside it, in eval mode, on the model's
    device."""
    device = device_of(model) or x.device

    def answer(part: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        own = (column.to(device) for column in more)
        return outputs.logits_in(model(part.to(device), *own), part)

    with isolated(model, device=device, seed=seed):
        return memory.in_parts(answer, x, *extra, rows=batch_size)


def device_of(model: Model) -> torch.device | None:
    """That of the first parameter or buffer; None where there is none."""
    module = module_of(model)
    if module is None:
        return None
    for tensors in (module.parameters(), module.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


def without_wrapper(model: Model) -> Model:
    """The module in DistributedDataParallel, whose forward waits for the other processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def describe_model(model: Model, fingerprint: str) -> str:
    module = module_of(model)
    if module is None:
        return getattr(model, "__qualname__", type(model).__name__)
    count = sum(parameter.numel() for parameter in module.parameters())
    return f"{type(module).__name__} ({count:,} parameters, sha256 {fingerprint[:12]})"
