"""Attacks leave no trace: modes, flags, random state and autograd modes are put back, always."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType

import torch
from torch import nn

Model = Callable[[torch.Tensor], torch.Tensor]


def modules_behind(model: object, depth: int = 3) -> list[nn.Module]:
    """The modules that a callable reaches: itself, the owner of a bound method, those in the
    arguments of a partial, and those that a function closes over or names globally."""
    if isinstance(model, nn.Module):
        return [model]
    if depth == 0 or not callable(model) or isinstance(model, type):
        return []
    if isinstance(model, functools.partial):
        reached = [model.func, *model.args, *model.keywords.values()]
    elif isinstance(model, MethodType):
        reached = [model.__self__, model.__func__]
    elif isinstance(model, FunctionType):
        cells = inspect.getclosurevars(model)
        reached = [*cells.nonlocals.values(), *cells.globals.values()]
        reached += [*(model.__defaults__ or ()), *(model.__kwdefaults__ or {}).values()]
    else:
        reached = list(getattr(model, "__dict__", {}).values())
    found: dict[nn.Module, None] = {}
    for value in reached:
        found.update(dict.fromkeys(modules_behind(value, depth - 1)))
    return list(found)


def module_of(model: Model) -> nn.Module | None:
    """The module that a model is: itself, or the owner of a bound method; None for functions,
    which may reach modules that have nothing to do with the answer."""
    owner = model.__self__ if isinstance(model, MethodType) else model
    return owner if isinstance(owner, nn.Module) else None


@contextlib.contextmanager
def isolated(model: Model, *, device: torch.device, seed: int) -> Iterator[None]:
    """Evaluate `model` in eval mode with frozen weights, then restore every flag, also on errors.

    Inside: every submodule in eval mode, no parameter requires a gradient, no gradient mode, no
    inference mode, no autocast (success is decided in the model's own precision), and the global
    generators of the CPU and of `device` seeded with `seed`, so that what a random model draws is
    reproducible. Of a plain function, the modules that `modules_behind` finds.
    """
    roots = modules_behind(model)
    training = [m for root in roots for m in root.modules() if m.training]
    parameters = [p for root in roots for p in root.parameters()]
    trainable = [p for p in parameters if p.requires_grad and not p.is_inference()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(restored_generators(device, seed))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", device.type}:
            # no cache: the model's own autocast, inside this one, would keep the first cast of an
            # iterate that is then changed in place, and see it for ever
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        stack.callback(_restore_flags, training, trainable)
        # the attributes, not .eval(): a module may override train() and eval()
        for m in training:
            m.training = False
        for p in trainable:
            p.requires_grad_(False)
        yield


def _restore_flags(training: list[nn.Module], trainable: list[nn.Parameter]) -> None:
    for m in training:
        m.training = True
    for p in trainable:
        p.requires_grad_(True)


@contextlib.contextmanager
def restored_generators(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators of the CPU and of `device` seeded with `seed`, then put back.

    While a CUDA graph is captured the device's generator belongs to the graph, and is left alone.
    """
    generators = [torch.default_generator]
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed % 2**63)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
