"""The order of the CUDA calls around a recording, on a fake torch.cuda that notes them."""

import contextlib
import gc

import pytest
import torch

from fastadv.graphs.cuda import CudaGraphs
from fastadv.graphs.planner import StepGraphs
from fastadv.isolation import restored_generators


class FakeCuda:
    """Notes the calls; `invalid`: ending a recording fails, as after a wait inside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.invalid = False
        self.pools = 0
        cuda = self

        class Stream:
            name = "side"

            def wait_stream(self, other: "Stream") -> None:
                cuda.log.append(f"{self.name} waits for {other.name}")

        class Graph:
            ended = False

            def capture_begin(self, pool: object, capture_error_mode: str) -> None:
                cuda.log.append(f"begin in {pool}, {capture_error_mode}")

            def capture_end(self) -> None:
                cuda.log.append("end")
                if cuda.invalid:
                    raise RuntimeError("operation failed due to a previous error during capture")
                self.ended = True

            def pool(self) -> object:
                if not self.ended:
                    raise RuntimeError("no capture")
                return None

            def replay(self) -> None:
                cuda.log.append("replay")

            def reset(self) -> None:
                cuda.log.append("reset")

        class Generator:
            def clone_state(self) -> str:
                return "clone"

            def get_state(self) -> str:
                return "before"

            def set_state(self, state: str) -> None:
                cuda.log.append(f"generator: {state}")

            def manual_seed(self, seed: int) -> None:
                cuda.log.append(f"generator: seed {seed}")

            def graphsafe_set_state(self, state: str) -> None:
                cuda.log.append(f"generator: {state}")

        default = Stream()
        default.name = "default"

        @contextlib.contextmanager
        def on(stream: Stream):
            cuda.log.append("aside")
            yield
            cuda.log.append("back")

        def handle() -> str:
            cuda.pools += 1
            return f"pool {cuda.pools}"

        fakes = {
            "Stream": Stream,
            "CUDAGraph": Graph,
            "current_stream": lambda: default,
            "stream": on,
            "device": lambda device: contextlib.nullcontext(),
            "graph_pool_handle": handle,
            "current_device": lambda: 0,
            "is_current_stream_capturing": lambda: False,
            "default_generators": (Generator(),),
            "synchronize": lambda *device: cuda.log.append("synchronize"),
            "empty_cache": lambda: cuda.log.append("empty cache"),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            monkeypatch.setattr(
                torch._C, name, lambda *given, n=name: cuda.log.append(f"{n}{given}"), raising=False
            )

    def since(self) -> list[str]:
        log, self.log = self.log, []
        return log


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def graphs(cuda: FakeCuda) -> CudaGraphs:
    return CudaGraphs(torch.device("cuda", 0))


def _step(cuda: FakeCuda):
    return lambda: cuda.log.append(f"step, collecting: {gc.isenabled()}")


def test_a_warm_step_runs_aside_and_both_streams_wait(cuda, graphs):
    graphs.warm(_step(cuda))
    assert cuda.since() == [
        "side waits for default",
        "aside",
        "step, collecting: True",
        "back",
        "default waits for side",
    ]


def test_a_rehearsed_step_runs_aside_too_and_draws_from_the_devices_generator_as_it_is(
    cuda, graphs
):
    def step() -> None:
        with restored_generators(torch.device("cuda", 0), seed=3):
            cuda.log.append("step")

    graphs.rehearse(step)
    assert cuda.since() == [
        "side waits for default",
        "aside",
        "step",
        "back",
        "default waits for side",
    ]
    graphs.warm(step)
    assert cuda.since()[2:5] == ["generator: seed 3", "step", "generator: before"]
    assert graphs.generators() == [torch.default_generator, torch.cuda.default_generators[0]]


def test_a_recording_is_made_aside_without_garbage_collection(cuda, graphs):
    replay = graphs.capture(_step(cuda))
    assert cuda.since() == [
        "synchronize",
        "empty cache",
        "side waits for default",
        "aside",
        "begin in pool 1, thread_local",
        "step, collecting: False",
        "end",
        "back",
        "default waits for side",
    ]
    replay()
    assert cuda.since() == ["replay"] and gc.isenabled()


def test_recordings_share_a_pool_until_the_last_is_gone(cuda, graphs):
    first, second = graphs.capture(_step(cuda)), graphs.capture(_step(cuda))
    del first
    third = graphs.capture(_step(cuda))
    assert cuda.pools == 1
    del second, third
    gc.collect()
    again = graphs.capture(_step(cuda))
    assert cuda.pools == 2
    cuda.since()
    graphs.release()
    assert cuda.since() == ["synchronize", "reset", "empty cache"] and again
    graphs.release()
    assert cuda.since() == []


def _stop(error: BaseException):
    def step() -> None:
        raise error

    return step


def test_a_step_that_raises_ends_the_recording(cuda, graphs):
    for error in (KeyError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            graphs.capture(_stop(error))
        assert cuda.since()[4:] == [
            "begin in pool " + str(cuda.pools) + ", thread_local",
            "end",
            "reset",
            "default waits for side",
        ]
    assert gc.isenabled()


def test_what_an_invalid_recording_leaves_undone_is_done(cuda, graphs):
    kept = graphs.capture(_step(cuda))
    cuda.since()
    cuda.invalid = True
    with pytest.raises(RuntimeError, match="the sync"):
        graphs.capture(_stop(RuntimeError("the sync")))
    assert cuda.since()[5:] == [
        "end",
        "_cuda_endAllocateToPool(0, 'pool 1')",
        "_cuda_releasePool(0, 'pool 1')",
        "generator: clone",
        "reset",
        "default waits for side",
    ]
    # one that CUDA refuses at its end, without an error in the step
    with pytest.raises(RuntimeError, match="previous error during capture"):
        graphs.capture(_step(cuda))
    assert kept and cuda.since()[6:] == [
        "end",
        "end",
        "_cuda_endAllocateToPool(0, 'pool 1')",
        "_cuda_releasePool(0, 'pool 1')",
        "generator: clone",
        "reset",
        "default waits for side",
    ]


def test_an_operation_that_waits_never_reaches_cuda(cuda, graphs):
    planner = StepGraphs(graphs, required=True, warmup=1)
    x = torch.ones(2)

    def step() -> None:
        x.sum().item()

    planner.run("key", step)
    with pytest.raises(RuntimeError, match=r"the step uses \.item\(\)"):
        planner.run("key", step)
    assert not any("_cuda" in call for call in cuda.log)  # ended as any recording is
