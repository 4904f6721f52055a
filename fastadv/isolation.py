"""Attacks leave no trace: modes, flags, random state and autograd modes are put back, always."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import MethodType

import torch
from torch import nn

from fastadv import reach, recorded

Model = Callable[..., torch.Tensor]  # of x, and of what `extra=` gives beside it

# whose RNNs run on cuDNN; ROCm, whose MIOpen has the same rule, says cuda too
_CUDNN_DEVICE = "cuda"


def module_of(model: Model) -> nn.Module | None:
    """The module that a model is: itself, or the owner of a bound method; None for functions,
    which may reach modules that have nothing to do with the answer."""
    owner = model.__self__ if isinstance(model, MethodType) else model
    return owner if isinstance(owner, nn.Module) else None


def is_training(module: nn.Module) -> bool:
    """Its flag; False for a module frozen by torch.jit.freeze, which has lost it."""
    return bool(getattr(module, "training", False))


@contextlib.contextmanager
def isolated(model: Model, *, device: torch.device, seed: int) -> Iterator[bool]:
    """Evaluate `model` in eval mode with frozen weights, then restore every flag, also on errors.

    Inside: every submodule in eval mode, no parameter requires a gradient, no gradient mode, no
    inference mode, no autocast (success is decided in the model's own precision), and the global
    generators of the CPU and of `device` seeded with `seed`, so that what a random model draws is
    reproducible. All of this for every module that the model reaches, see `fastadv.reach`. With an
    RNN on a GPU cuDNN is off, see `differentiable_in_eval`. What was traced or exported in train
    mode stays in it; its buffers are put back. Yields whether there is any such.
    """
    modules = reach.every_module(model)
    training = [m for m in modules if is_training(m)]
    parameters = [p for m in modules for p in m._parameters.values() if p is not None]
    trainable = [p for p in parameters if p.requires_grad and not p.is_inference()]
    fixed = recorded.left_in_training(modules)
    with (
        restored_generators(device, seed),
        torch.inference_mode(False),
        torch.no_grad(),
        _without_autocast(device),
        differentiable_in_eval(modules),
    ):
        try:
            with restored_buffers(b for m in fixed for b in m.buffers()):
                _set_training(training, False)
                for p in trainable:
                    p.requires_grad_(False)
                yield bool(fixed)
        finally:
            _restore_flags(training, trainable)


@contextlib.contextmanager
def _without_autocast(device: torch.device) -> Iterator[None]:
    """On the CPU and on `device`. No cache: the model's own autocast, inside this one, would keep
    the first cast of an iterate that is then changed in place, and see it for ever."""
    with torch.autocast("cpu", enabled=False, cache_enabled=False):
        if device.type == "cpu":
            yield
            return
        with torch.autocast(device.type, enabled=False, cache_enabled=False):
            yield


@contextlib.contextmanager
def differentiable_in_eval(modules: Iterable[nn.Module]) -> Iterator[None]:
    """cuDNN off, if one of `modules` is an RNN with parameters on a GPU; then as it was.

    cuDNN's RNNs have no backward in eval mode; torch's own have. All of a model's layers then run
    without cuDNN, and logits may differ from those with it by rounding. The flag belongs to the
    process: it holds for other threads too, as torch's own `torch.backends.cudnn.flags` would.
    """
    recurrent = (m for m in modules if isinstance(m, nn.RNNBase))
    if not any(p.device.type == _CUDNN_DEVICE for m in recurrent for p in m.parameters()):
        yield
        return
    # not torch.backends.cudnn.flags, which sets benchmark, TF32 and fp32_precision as well
    before = torch._C._get_cudnn_enabled()
    torch._C._set_cudnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_cudnn_enabled(before)


@contextlib.contextmanager
def restored_buffers(buffers: Iterable[torch.Tensor]) -> Iterator[None]:
    """What is written in place to the buffers inside is undone; no synchronisation.

    No version tells of it: those of running statistics stay as they are when batch_norm moves them.
    """
    saved = [(b, b.clone()) for b in buffers if not b.is_inference()]
    try:
        yield
    finally:
        for buffer, before in saved:
            # .data: a graph that has saved the buffer is as right as it was before
            buffer.data.copy_(before)


def _restore_flags(training: list[nn.Module], trainable: list[nn.Parameter]) -> None:
    _set_training(training, True)
    for p in trainable:
        p.requires_grad_(True)


def _set_training(modules: list[nn.Module], mode: bool) -> None:
    """The attributes, not `train(mode)`: a module may override train() and eval()."""
    for m in modules:
        if type(m).__setattr__ is nn.Module.__setattr__ and "training" in m.__dict__:
            m.__dict__["training"] = mode  # as that would, in a tenth of the time
        else:
            m.training = mode


_AS_RECORDED: ContextVar[bool] = ContextVar("fastadv.isolation.as_recorded", default=False)


@contextlib.contextmanager
def drawing_as_recorded() -> Iterator[None]:
    """Inside, in this thread, steps draw as a replay of them would: `restored_generators` leaves
    the device's generator alone."""
    token = _AS_RECORDED.set(True)
    try:
        yield
    finally:
        _AS_RECORDED.reset(token)


@contextlib.contextmanager
def restored_generators(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators of the CPU and of `device` seeded with `seed`, then put back.

    While a CUDA graph is captured the device's generator belongs to the graph, and is left alone;
    and inside `drawing_as_recorded`.
    """
    is_recorded = _AS_RECORDED.get()
    generators = [] if is_recorded and device.type == "cpu" else [torch.default_generator]
    if device.type == "cuda" and not (is_recorded or torch.cuda.is_current_stream_capturing()):
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
