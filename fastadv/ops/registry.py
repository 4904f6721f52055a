"""Registers an op: its schema, eager reference, Triton launch and fake."""

from collections.abc import Callable
from typing import Any

import torch

from fastadv.ops import backend

# define/impl dispatch in about 2 us a call; the custom_op decorators cost 18 to 50 us
_LIBRARY = torch.library.Library("fastadv", "DEF")


def register(
    schema: str,
    *,
    reference: Callable[..., Any],
    launch: Callable[..., Any],
    fake: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define `fastadv::<schema>` and return its overload.

    The first argument decides the device. `reference` and `launch` take every argument by position:
    schemas have no defaults, which the dispatcher would drop. `fake` may be left out by ops that
    only mutate.
    """
    name = schema.split("(", 1)[0]
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    overload = getattr(torch.ops.fastadv, name).default
    written = [
        i
        for i, argument in enumerate(overload._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def implementation(*args: Any) -> Any:
        # below autograd in both backends: a kernel records no graph, so neither may the reference
        with torch._C._AutoDispatchBelowAutograd():
            if not backend.runs_triton(args[0].device):
                return reference(*args)
            with backend.on_device_of(args[0]):
                result = launch(*args)
        backend.wrote(*(args[i] for i in written))  # the eager reference bumps them by itself
        return result

    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastadv::{name}", fake or _no_output, lib=_LIBRARY)
    return overload


def _no_output(*args: Any) -> None:
    return None
