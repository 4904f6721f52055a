"""What a recorded step has baked in about modules and optimizers: if it changes, record anew."""

from collections.abc import Hashable, Set
from typing import Any

import torch
from torch import nn


def module_facts(module: nn.Module) -> tuple[Hashable, ...]:
    """Types, plain attributes (training, p of a dropout, ...), and where tensors lie; no values of
    tensors, which a replay reads anew."""
    facts: list[Hashable] = []
    for part in module.modules():
        facts.append(type(part))
        for name, value in vars(part).items():
            if type(value) in _PLAIN:
                facts.append((name, value))
            elif isinstance(value, tuple | torch.Tensor):
                facts.append((name, _baked(value)))
        for tensors in (part._parameters, part._buffers):
            facts.extend([tensor_facts(tensor) for tensor in tensors.values()])
        facts.append((len(part._forward_hooks), len(part._forward_pre_hooks)))
    return tuple(facts)


def optimizer_facts(
    optimizer: torch.optim.Optimizer, *, settings: Set[str]
) -> tuple[Hashable, ...]:
    """The named settings of the groups, and where parameters and their state lie."""
    facts: list[Hashable] = []
    for group in optimizer.param_groups:
        facts.extend((name, _baked(group[name])) for name in sorted(settings) if name in group)
        for p in group["params"]:
            facts.append(tensor_facts(p))
            facts.extend(_baked(value) for value in optimizer.state.get(p, {}).values())
    return tuple(facts)


def tensor_facts(tensor: torch.Tensor | None) -> Hashable:
    """Where a tensor lies, and in which form."""
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


_PLAIN = frozenset((bool, int, float, str, torch.dtype))


def _baked(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return tensor_facts(value)
    if isinstance(value, tuple | list):
        return tuple(_baked(v) for v in value)
    return value if type(value) in _PLAIN else type(value)
