"""Recording and replaying with torch.cuda.CUDAGraph; the only part of graphs that needs a GPU."""

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastadv.graphs.planner import Backend
from fastadv.graphs.unrecordable import Guard
from fastadv.isolation import drawing_as_recorded


def backend_for(device: torch.device, cuda_graph: bool | str) -> Backend | None:
    """What records on `device`: nothing for False, nor for "auto" where there is no CUDA.

    cuda_graph: "auto", True or False. Raises ValueError for True on another device, and for any
    other value.
    """
    if cuda_graph not in ("auto", True, False):
        raise ValueError(f"cuda_graph must be 'auto', True or False; got {cuda_graph!r}")
    if cuda_graph is False:
        return None
    if device.type == "cuda":
        return CudaGraphs(device)
    if cuda_graph is True:
        raise ValueError(
            f"cuda_graph=True needs tensors on a CUDA device; got {device}. Move model and data "
            "there, or give cuda_graph='auto', which records where it can"
        )
    return None


class CudaGraphs:
    """CUDA graphs of one device: one side stream, one memory pool that all of its graphs share.

    Sharing is right because they are replayed one at a time, and what survives a replay lies in
    tensors made outside of it. Making one is free: stream and pool come with the first use.
    """

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device = torch.device(device)
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"fastadv.graphs.cuda.CudaGraphs({str(self.device)!r})"

    def warm(self, function: Callable[[], None]) -> None:
        """Run it on the side stream: cuBLAS keeps a workspace for each, made at its first use."""
        with self._aside():
            function()

    def rehearse(self, function: Callable[[], None]) -> None:
        """Run it on the side stream, drawing from the device's generator as a replay does."""
        with self._aside(), drawing_as_recorded():
            function()

    def generators(self) -> list[torch.Generator]:
        """The global ones of the CPU and of the device."""
        with torch.cuda.device(self.device):
            index = torch.cuda.current_device()
        return [torch.default_generator, torch.cuda.default_generators[index]]

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record it on the side stream; returns the replay, on the stream of its caller.

        Host code runs once, kernels do not. A failed recording leaves streams, generators and the
        allocator as they were.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # out of memory ends a recording: leave it what there is
        with self._aside(), _no_collection():
            try:
                # thread_local: data loaders pin memory in threads of their own meanwhile
                graph.capture_begin(pool=self._shared_pool(), capture_error_mode="thread_local")
                with Guard():
                    function()
                graph.capture_end()
            except BaseException:
                self._abandon(graph)
                raise
        self._graphs.add(graph)
        return graph.replay

    def release(self) -> None:
        """Destroy all graphs and give their memory back to the device; replays of them raise."""
        if len(self._graphs):
            torch.cuda.synchronize(self.device)
            for graph in list(self._graphs):
                graph.reset()
            self._graphs.clear()
            torch.cuda.empty_cache()  # a pool without graphs is kept until then
        self._pool = None

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the side stream, which waits for the caller's before and is waited for after."""
        with torch.cuda.device(self.device):
            if self._side is None:
                self._side = torch.cuda.Stream()
            side, current = self._side, torch.cuda.current_stream()
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    yield
            finally:
                current.wait_stream(side)

    def _shared_pool(self) -> Any:
        # the allocator takes no pool again whose last graph is gone
        if self._pool is None or not len(self._graphs):
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed, on the side stream."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the graph is empty
            try:
                graph.capture_end()
            except Exception:
                self._tidy(graph)
        graph.reset()

    def _tidy(self, graph: torch.cuda.CUDAGraph) -> None:
        """What `capture_end` leaves undone where CUDA had ended the recording in an error: the
        allocator still serves the pool, and the generator believes that it is being recorded."""
        with contextlib.suppress(Exception):
            graph.pool()  # raises unless the recording came to its end
            return
        pool = self._pool
        index = torch.cuda.current_device()
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with contextlib.suppress(Exception):
                getattr(torch._C, name)(index, pool)
        with contextlib.suppress(Exception):
            generator: Any = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: what it destroys (events, graphs, memory) may end a recording."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
