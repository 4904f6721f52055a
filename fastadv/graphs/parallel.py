"""Wrappers that run a module on several devices or processes, which no graph can hold."""

from torch.nn.parallel import DataParallel, DistributedDataParallel

from fastadv.reach import every_module

WRAPPERS = (DataParallel, DistributedDataParallel)
REDUCED = "gradients are reduced over processes or devices, which is done outside of graphs"


def refusal_of(model: object) -> str | None:
    """Why passes of a model that is, or holds, a wrapper cannot be recorded, in words; or None."""
    return REDUCED if any(isinstance(part, WRAPPERS) for part in every_module(model)) else None
