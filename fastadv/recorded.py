"""Models that torch has recorded: in which mode, which no flag changes any more."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from fastadv import diagnostics
from fastadv.reach import every_module

_FLAGS = ("train", "training")  # of dropout, of normalisation, in the schemas of torch's operators
_KNOWN: weakref.WeakKeyDictionary[nn.Module, bool]
_KNOWN = weakref.WeakKeyDictionary()


def left_in_training(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those whose dropout or batch statistics stay on: traced or exported in train mode.

    torch.jit.trace and torch.export write the mode of that moment into what they record, and
    torch.export's modules refuse .eval(). Scripted modules obey their flag.
    """
    return [m for m in modules if isinstance(m, _RECORDED) and _is_in_training(m)]


def warn_of_training(model: object, samples: int) -> None:
    """Warn where a part of the model, which is asked about `samples`, is left in training."""
    is_left = left_in_training(every_module(model))
    diagnostics.warn("recorded_in_training", samples if is_left else 0, samples)


_RECORDED = (torch.jit.ScriptModule, fx.GraphModule)


def _is_in_training(module: torch.jit.ScriptModule | fx.GraphModule) -> bool:
    if module not in _KNOWN:
        is_exported = isinstance(module, fx.GraphModule)
        flags = _of_exported(module) if is_exported else _of_block(_graph_of(module))
        _KNOWN[module] = any(flag is True for flag in flags)
    return _KNOWN[module]


def _of_exported(module: fx.GraphModule) -> Iterator[object]:
    """The flags of the operators of a graph, where they are constants."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for i, argument in enumerate(() if schema is None else schema.arguments):
            if argument.name in _FLAGS:
                yield node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)


def _graph_of(module: torch.jit.ScriptModule) -> Any:
    """None of one without a forward."""
    return getattr(module, "inlined_graph", None)


def _of_block(block: Any) -> Iterator[object]:
    for node in () if block is None else block.nodes():
        for inner in node.blocks():
            yield from _of_block(inner)
        if node.kind().startswith("aten::"):
            arguments = torch._C.parse_schema(node.schema()).arguments
            for argument, value in zip(arguments, node.inputs(), strict=False):
                if argument.name in _FLAGS:
                    yield value.toIValue()
