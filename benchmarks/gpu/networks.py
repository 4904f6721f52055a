"""Networks with random weights that attacks and training steps are timed on, and their passes."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness.networks import Problem
from fastadv import textbook
from fastadv.models import mnist_net, preact_resnet18, wide_resnet
from fastadv.models.preact_resnet import PreActResNet

_NOISE = "uniform noise, labelled by the model"
_BATCH = 256  # that running statistics are taken from
_CALIBRATED = 128  # samples that the radius is


def tiny_resnet(seed: int = 0) -> nn.Module:
    """What a rehearsal takes in place of a residual network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PreActResNet(stem=4, channels=(4, 8), blocks=1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "preact_resnet18": (preact_resnet18, (3, 32, 32)),
    "wrn-28-10": (wide_resnet, (3, 32, 32)),
    "mnist_net": (mnist_net, (1, 28, 28)),
}


def problem(name: str, n: int, device: torch.device, *, tiny: bool) -> Problem:
    """n samples of noise and a network of random weights whose BatchNorms have seen such noise."""
    make, shape = NETWORKS[name]
    if tiny and name != "mnist_net":
        make, shape = tiny_resnet, (3, 8, 8)
    model = make().to(device)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand((n, *shape), generator=generator, device=device)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in norms:
            layer.momentum = None  # the statistics of this batch, not a tenth of them
        model.train()(x[:_BATCH])
        for layer in norms:
            layer.momentum = 0.1
        y = torch.cat([model.eval()(part).argmax(1) for part in x.split(_BATCH)])
    return Problem(f"{name}, random weights", _NOISE, model, x, y)


def radius_for_half(problem: Problem, *, turns: int = 8) -> float:
    """An eps at which PGD-10 leaves about half of the samples, by bisection of its logarithm.

    A network with random weights falls at once to the radii that trained ones are attacked with,
    and an attack that stops at a success would then have nothing to do.
    """
    x, y = problem.x[:_CALIBRATED], problem.y[:_CALIBRATED]
    low, high = 1e-5, 0.3
    eps = (low * high) ** 0.5
    for _ in range(turns):
        eps = (low * high) ** 0.5
        x_adv = textbook.pgd(
            problem.model, x, y, eps=eps, steps=10, step_size=eps / 4, random_start=False
        )
        with torch.no_grad():
            robust = float((problem.model(x_adv).argmax(1) == y).float().mean())
        if robust < 0.5:
            high = eps
        else:
            low = eps
    return eps


def bare_passes(
    problem: Problem, precision: str, *, channels_last: bool, count: int
) -> Callable[[], torch.Tensor]:
    """`count` forward and backward passes to the input and nothing else; returns the gradient.

    On a GPU one CUDA graph, replayed: the physical limit of an attack in that precision. bf16: the
    network itself is cast. The weights take no gradient.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = copy.deepcopy(problem.model).to(dtype).requires_grad_(False)
    leaf = problem.x.clone().to(dtype)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        leaf = leaf.contiguous(memory_format=torch.channels_last)
    leaf.requires_grad_()

    def once() -> torch.Tensor:
        loss = F.cross_entropy(model(leaf), problem.y, reduction="sum")
        return torch.autograd.grad(loss, leaf)[0]

    if leaf.device.type != "cuda":

        def passes() -> torch.Tensor:
            for _ in range(count - 1):
                once()
            return once()

        return passes
    graph, grad = _captured(once, leaf.device)

    def replays() -> torch.Tensor:
        for _ in range(count):
            graph.replay()
        return grad

    return replays


def _captured(
    once: Callable[[], torch.Tensor], device: torch.device
) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            once()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad = once()
    return graph, grad


def gradient_in(problem: Problem, precision: str, *, channels_last: bool) -> torch.Tensor:
    """The input gradient that bare passes must have, computed eagerly, weights' beside it."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = copy.deepcopy(problem.model).to(dtype)
    model.to(memory_format=layout)  # type: ignore[call-overload]
    leaf = problem.x.clone().to(dtype).contiguous(memory_format=layout).requires_grad_()
    loss = F.cross_entropy(model(leaf), problem.y, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]
