"""A stand-in for CUDA graphs on a CPU: operations are recorded by address and replayed in order."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv.graphs.unrecordable import check_recordable, tensors_in
from fastadv.isolation import drawing_as_recorded


class Tape:
    """A backend for `fastadv.graphs.planner.StepGraphs` with the semantics of CUDA graphs.

    capture runs the function once with every effect undone: values of tensors that existed before,
    and the global generator. A replay makes the same operations on the same tensors; whatever
    Python computed is baked in; random operations draw anew. Tensors made while capturing are the
    graph's own: after capture and after each replay they hold garbage (NaN), as memory does that
    other graphs share.
    """

    def __init__(self) -> None:
        self.warmed = self.rehearsed = self.captured = self.replayed = self.released = 0

    def warm(self, function: Callable[[], None]) -> None:
        self.warmed += 1
        function()

    def rehearse(self, function: Callable[[], None]) -> None:
        self.rehearsed += 1
        with drawing_as_recorded():
            function()

    def generators(self) -> list[torch.Generator]:
        return [torch.default_generator]

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        recorder = _Recorder()
        generator = torch.get_rng_state()
        try:
            with recorder:
                function()
        finally:
            recorder.undo()
            torch.set_rng_state(generator)
        self.captured += 1
        self.recorded(recorder)

        def replay() -> None:
            self.replayed += 1
            recorder.replay()

        return replay

    def recorded(self, recorder: "_Recorder") -> None:
        """What a faulty tape spoils."""

    def release(self) -> None:
        self.released += 1


class Forgetful(Tape):
    """A faulty one: its replays leave out the first operation that only writes in place."""

    def recorded(self, recorder: "_Recorder") -> None:
        recorder.forget()


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[tuple[int, torch.Tensor]]]] = []
        # storages by address; held, so that no address is used twice
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._own: dict[int, torch.UntypedStorage] = {}

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # as for the guard of a capture

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        check_recordable(func, args, kwargs)
        given = tensors_in(args, kwargs)
        for tensor in given:
            self._keep(tensor)
        known = {_address(tensor) for tensor in given}
        result = func(*args, **kwargs)
        made = [
            (i, tensor)
            for i, tensor in enumerate(tensors_in(result))
            if _address(tensor) not in known
        ]
        for _, tensor in made:
            self._own[_address(tensor)] = tensor.untyped_storage()
        self._calls.append((func, args, kwargs, made))
        return result

    def _keep(self, tensor: torch.Tensor) -> None:
        """The value of a tensor that is not the graph's, when it is first seen."""
        at = _address(tensor)
        if at not in self._own and at not in self._before:
            storage = tensor.untyped_storage()
            self._before[at] = storage, storage.clone()

    def forget(self) -> None:
        """The first operation that makes no tensor and writes into one that is not the graph's."""
        first = min(
            i
            for i, (func, args, _, made) in enumerate(self._calls)
            if not made
            and func._schema.is_mutable
            and any(_address(tensor) not in self._own for tensor in tensors_in(args))
        )
        del self._calls[first]

    def undo(self) -> None:
        for storage, value in self._before.values():
            storage.copy_(value)
        self._before = {}
        self._poison()

    def replay(self) -> None:
        with (
            torch.no_grad(),
            torch.autocast("cpu", enabled=False),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            for func, args, kwargs, made in self._calls:
                results = tensors_in(func(*args, **kwargs))
                for i, tensor in made:
                    tensor.copy_(results[i])
        self._poison()

    def _poison(self) -> None:
        for storage in self._own.values():
            storage.fill_(0xFF)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
