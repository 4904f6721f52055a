"""What is made once for a model and used by every attack on it: its shadow, graphs, buffers."""

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from types import MethodType

import torch
from torch import nn

from fastadv import memory
from fastadv.diagnostics import ExecutionWarning, emit
from fastadv.engine.stepping import Plans
from fastadv.execution import Execution
from fastadv.graphs import parallel
from fastadv.graphs.cuda import backend_for
from fastadv.graphs.facts import module_facts
from fastadv.graphs.planner import StepGraphs
from fastadv.isolation import Model, module_of
from fastadv.oracle.gradient import UNLIMITED
from fastadv.oracle.shadow.search_model import SearchModel, search_model
from fastadv.tuning.kept import forget

_MOST_EXECUTIONS = 4  # of one model, kept at a time
_MOST_GRAPHS = 64  # four attacks, two variants of a step, a few shapes
_CHECKED = 64  # rows that `search_model` looks at
_SLOW = (
    "precision='fp16' is emulated on CPUs and was 13 to 40 times slower than fp32: use "
    "precision='bf16', or a GPU"
)


@dataclass
class Prepared:
    """search: None for the user's model itself. graphs: None for eager steps. room: the most rows
    of a pass, since memory ran out.

    facts: what graphs and shadow rely on, compared at every call, by submodule and attribute; but
    for what passes themselves change (a counter, a kept activation), which `settle` finds out.
    """

    search: SearchModel | None
    graphs: StepGraphs | None
    plans: Plans = field(default_factory=Plans)
    room: int = UNLIMITED
    facts: dict[tuple[str, str], Hashable] = field(default_factory=dict)
    settled: bool = False

    def fits(self, facts: dict[tuple[str, str], Hashable]) -> bool:
        return all(facts.get(name, _GONE) == fact for name, fact in self.facts.items())

    def settle(self, model: Model) -> None:
        """After the first attack, which is none of the user's doing: forget what it changed."""
        module = module_of(model)
        if module is None or self.settled or not self.facts:
            return
        now = dict(module_facts(module))
        self.facts = {k: fact for k, fact in self.facts.items() if now.get(k, _GONE) == fact}
        self.settled = True

    def release(self) -> None:
        if self.graphs is not None:
            self.graphs.release()


_GONE = object()
_KEPT: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Prepared]]
_KEPT = weakref.WeakKeyDictionary()


def prepared(
    model: Model,
    execution: Execution,
    x: torch.Tensor,
    logits: torch.Tensor | None,
    extra: tuple[torch.Tensor, ...] = (),
) -> Prepared:
    """What `model` was prepared for earlier, brought up to date, or made now.

    Must be called inside `isolated(model)`. x, extra: the first batch; logits: the model's there,
    None if the execution is exact. Of a module it is kept until the module is gone, or `release` is
    called; a plain function may change what it closes over, so that nothing of it is kept.
    """
    backend = backend_for(x.device, execution.cuda_graph)
    if execution.is_exact and backend is None:
        return Prepared(None, None)
    module = _lasting_module(model)
    facts = {} if module is None else dict(module_facts(module))
    kept: OrderedDict[Hashable, Prepared] = OrderedDict()
    if module is not None:
        kept = _KEPT.setdefault(module, kept)
    key = _key(model, execution, x)
    found = kept.pop(key, None)
    if found is not None and not found.fits(facts):
        found.release()
        found = None
    if found is None:
        search = None
        if not execution.is_exact:
            assert logits is not None
            search = _checked_search(model, execution, x, logits, extra)
            if search.replica is None:
                module = None  # it refers to the user's module, which could never be freed
            search = replace(search, own=search.model)
            if search.precision == "fp16" and x.device.type == "cpu":
                emit(ExecutionWarning(_SLOW))
            for note in search.notes:
                emit(ExecutionWarning(note))
        graphs = None
        if backend is not None:
            graphs = StepGraphs(backend, required=execution.cuda_graph is True, most=_MOST_GRAPHS)
            is_copy = search is not None and search.replica is not None
            reason = None if is_copy else parallel.refusal_of(model)  # a copy has no wrappers
            if reason is not None:
                graphs.refuse(reason)
        found = Prepared(search, graphs, facts=facts)
    elif found.search is not None:
        found.search.refresh()
    if module is None:
        return found
    kept[key] = found
    if len(kept) > _MOST_EXECUTIONS:
        kept.popitem(last=False)[1].release()
    return found


def _checked_search(
    model: Model,
    execution: Execution,
    x: torch.Tensor,
    logits: torch.Tensor,
    extra: tuple[torch.Tensor, ...],
) -> SearchModel:
    """Built and checked at as many samples as memory has room for."""
    while True:
        try:
            return search_model(
                model,
                precision=execution.precision,
                channels_last=execution.channels_last,
                fold_batchnorm=execution.fold_batchnorm,
                compile=execution.compile,
                x=x,
                logits=logits,
                extra=extra,
            )
        except Exception as error:
            if not memory.may_halve(error, len(x), x.device):
                raise
        rows = (min(len(x), _CHECKED) + 1) // 2
        x, logits = x[:rows], logits[:rows]
        extra = tuple(part[:rows] for part in extra)
        memory.free_cached(x.device)


def release() -> None:
    """Free what attacks keep for models between calls: shadow copies, graphs and their memory, and
    what execution="auto" has found.

    It is freed by itself once a model is gone.
    Example: `fastadv.release()` before another library needs the GPU's memory.
    """
    for executions in list(_KEPT.values()):
        for one in executions.values():
            one.release()
    _KEPT.clear()
    forget()


def _lasting_module(model: Model) -> nn.Module | None:
    """The module that `model` is, or of whose class it is a method; a function bound to a module
    may be another one of the same name at the next call."""
    module = module_of(model)
    if isinstance(model, MethodType) and module is not None:
        is_own = getattr(type(module), model.__func__.__name__, None) is model.__func__
        return module if is_own else None
    return module


def _key(model: Model, execution: Execution, x: torch.Tensor) -> Hashable:
    how = (execution.precision, execution.channels_last, execution.fold_batchnorm)
    name = getattr(model, "__name__", "")  # of a bound method
    return (*how, execution.compile, execution.cuda_graph, name, x.device, x.dtype)
