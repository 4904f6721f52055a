"""Sees the torch functions that a forward pass calls, with what they get and give."""

from collections.abc import Callable, Sequence

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from fastadv.isolation import Model

# ask a tensor for its shape and the like, or give a view of it (as `.T` does)
ASKING = {"__get__", "size", "dim", "stride", "numel", "is_contiguous", "is_floating_point"}

See = Callable[[str, tuple, list[torch.Tensor], object], None]


def watch(model: Model, x: torch.Tensor, see: See, extra: Sequence[torch.Tensor] = ()) -> None:
    """model(x, *extra), no gradient, see(name, args, tensors, output) after each torch function.

    tensors: those among the arguments, in containers too. What a Python function of torch calls
    inside is not seen, but the function itself is.
    """
    with _Watch(see), torch.no_grad():
        model(x, *extra)


class _Watch(TorchFunctionMode):
    def __init__(self, see: See) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        output = func(*args, **(kwargs or {}))
        self.see(getattr(func, "__name__", ""), args, tensors_in((args, kwargs)), output)
        return output


def tensors_in(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
