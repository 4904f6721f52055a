"""An optimizer's step in a form that a CUDA graph can hold: fused, learning rates in tensors."""

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any

import torch

from fastadv.graphs.facts import optimizer_places, optimizer_settings
from fastadv.graphs.watched import Numbered

_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_FORM = {"fused": True, "foreach": False, "capturable": True}


def refusal_of(optimizer: torch.optim.Optimizer) -> str | None:
    """Why the steps of an optimizer cannot be recorded, or None."""
    name = type(optimizer).__name__
    if type(optimizer) not in _FUSED:
        return (
            f"a graph would hold the learning rate of {name} for ever: it can be recorded for SGD, "
            "Adam and AdamW of torch.optim"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return f"{name}(differentiable=True) has no fused form"
    return None


class RecordableOptimizer:
    """Steps of a torch.optim optimizer that read the learning rates from tensors.

    The optimizer's groups keep the numbers that schedulers write and users read: only while a step
    is made or recorded do they hold `fused`, `capturable` and, as the learning rate, a tensor that
    `fill` has brought up to date. Fused steps may differ from others in the last bit.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.device = device
        self._rates: list[torch.Tensor] = []
        self._filled: list[float | None] = []
        self._places = Numbered(
            lambda: optimizer_places(optimizer),
            lambda: [optimizer.state, *(group["params"] for group in optimizer.param_groups)],
        )

    def fill(self) -> None:
        """Bring learning rates and older state to where a recorded step reads them."""
        # CUDA's fused kernels read a float32; elsewhere a number's own 64 bits fit
        dtype = torch.float32 if self.device.type == "cuda" else torch.float64
        for i, group in enumerate(self.optimizer.param_groups):
            if i == len(self._rates):
                self._rates.append(torch.zeros((), dtype=dtype, device=self.device))
                self._filled.append(None)
            rate = group["lr"]
            if isinstance(rate, torch.Tensor):
                self._rates[i].copy_(rate)
                self._filled[i] = None
            elif rate != self._filled[i]:
                self._rates[i].fill_(rate)
                self._filled[i] = rate
        for p, state in self.optimizer.state.items():
            steps = state.get("step")  # of Adam's eager steps: on the CPU
            if isinstance(steps, torch.Tensor) and steps.device != p.device:
                state["step"] = steps.to(p.device, torch.float32)

    def step(self) -> None:
        """Make one step, or record it."""
        with self._form():
            self.optimizer.step()

    def facts(self) -> tuple[Hashable, ...]:
        """What a recorded step has baked in: settings that the optimizer itself reads, and a number
        for where parameters and state lie."""
        read = self.optimizer.defaults.keys() - {"lr"}
        return optimizer_settings(self.optimizer, names=read), self._places.number()

    @contextlib.contextmanager
    def _form(self) -> Iterator[None]:
        before: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            form = {name: value for name, value in _FORM.items() if name in group} | {"lr": rate}
            before.append((group, {name: group[name] for name in form}))
            group.update(form)
        try:
            yield
        finally:
            for group, values in before:
                group.update(values)
