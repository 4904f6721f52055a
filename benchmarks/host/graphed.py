"""A graphed training step whose replay does nothing: the host's time that is spent beside it."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import torch

import fastadv
from fastadv.graphs import planner
from fastadv.graphs.watched import Numbered
from fastadv.models import preact_resnet18
from fastadv.training import graphed_step

NAME = "graphed training step, PreActResNet-18"
SHAPE = (2, 3, 8, 8)


class NoGraphs:
    """A backend of graphs whose replays do nothing."""

    recorded = 0

    def warm(self, function: Callable[[], None]) -> None:
        function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        return lambda: None

    def rehearse(self, function: Callable[[], None]) -> None:
        raise AssertionError("replays that do nothing are not compared with steps")

    def generators(self) -> list[torch.Generator]:
        return []

    def release(self) -> None:
        pass


class RecordedStep:
    """One more replay at each call."""

    def __init__(self) -> None:
        self.net = preact_resnet18().train()
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.batch = torch.rand(SHAPE), torch.tensor([0, 1])
        step = fastadv.training.FastAT(fastadv.Linf(8 / 255))
        self.backend = NoGraphs()
        with (
            fastadv.ops.use_backend("reference"),  # the stub's kernels compute nothing
            mock.patch.object(graphed_step, "backend_for", lambda *_: self.backend),
            mock.patch.object(planner, "_CHECKED", 0),
        ):
            self.run = fastadv.training.graphed(step, optimizer)
            for facts in (contextlib.nullcontext(), read_every_time()):
                with facts:
                    recorded = self.backend.recorded
                    while self.backend.recorded == recorded:
                        self()
        for entry in self.run._graphs._entries.values():
            entry.checked = planner._CHECKED

    def __call__(self) -> None:
        self.run(self.net, *self.batch)


@contextlib.contextmanager
def read_every_time() -> Iterator[None]:
    """Facts of module and optimizer are read at every step, whatever has changed."""
    with mock.patch.object(Numbered, "number", lambda self: self._facts()):
        yield
