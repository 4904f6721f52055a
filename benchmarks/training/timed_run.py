"""One seed of a speed-run, from the first training step to the final weights, on the clock."""

import time

import numpy as np
import torch
from torch import nn

from benchmarks.training.plans import Plan, make_step
from fastadv import training
from fastadv.data import DeviceLoader
from fastadv.models import build

_WARM_UP_STEPS = 3


class Run:
    """One seed of a plan: `train` gives the model to be attacked."""

    def __init__(
        self,
        plan: Plan,
        images: torch.Tensor,
        labels: torch.Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        self.plan = plan
        on_gpu = device.type == "cuda"
        self.loader = DeviceLoader(
            images,
            labels,
            batch_size=plan.batch_size,
            seed=seed,
            crop=plan.crop,
            flip=plan.flip,
            drop_last=True,
            channels_last=on_gpu,
            device=device,
        )
        self.total = plan.epochs * len(self.loader)
        self.model = build(plan.model, seed=seed).to(device)
        if on_gpu:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rate = torch.zeros((), device=device)  # a tensor: the graph reads it anew
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.rate if on_gpu else 0.0,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            nesterov=True,
            fused=on_gpu,
        )
        self.average = None if plan.ema is None else training.ema(self.model, decay=plan.ema)
        self.step = make_step(plan, len(self.loader), seed, "bf16" if on_gpu else "fp32")
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[torch.Tensor, ...] = ()

    def train(self) -> tuple[nn.Module, float, float]:
        """(model, seconds from the first step to final weights, seconds of warm-up before)."""
        began = time.perf_counter()
        if self.rate.is_cuda:
            self._capture()
        _wait(self.rate)
        warmed = time.perf_counter()
        done = 0
        reach = self.step.noise if isinstance(self.step, training.NFGSM) else 1.0
        for _ in range(self.plan.epochs):
            starts = self.loader.with_start(
                eps=reach * float(self.step.effective_eps),
                seed=self.step.seed,
                bounds=None if self.plan.method == "fast" else (0.0, 1.0),
            )
            for batch in starts:
                self._set_rate(done)
                if self.graph is None or self.step.effective_eps < self.plan.eps:
                    self._one_step(*batch)
                else:
                    for kept, new in zip(self.inputs, batch, strict=True):
                        kept.copy_(new)
                    self.graph.replay()
                if self.average is not None:
                    self.average.update_parameters(self.model)
                done += 1
        _wait(self.rate)
        model = self.model if self.average is None else self.average.module
        return model.eval(), time.perf_counter() - warmed, warmed - began

    def _one_step(
        self, x: torch.Tensor, y: torch.Tensor, index: torch.Tensor, x_start: torch.Tensor
    ) -> None:
        loss = self.step.loss(self.model, x, y, sample_ids=index, x_init=x_start)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _set_rate(self, done: int) -> None:
        at, peak = self.plan.peak
        rate = float(np.interp((done + 0.5) / self.total, (0, at, 1), (0, peak, 0)))
        if self.rate.is_cuda:
            self.rate.fill_(rate)
        else:
            self.optimizer.param_groups[0]["lr"] = rate

    def _capture(self) -> None:
        """Record one whole step at full eps; weights, momentum and counters stay as they were."""
        loader, before = self.loader, {k: v.clone() for k, v in self.model.state_dict().items()}
        position = loader.state_dict()
        self.inputs = tuple(t.clone() for t in next(iter(loader.with_start(eps=self.plan.eps))))
        loader.load_state_dict(position)
        self.step.batches = self.step.eps_warmup
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # rate 0: nothing moves but momentum and statistics
            for _ in range(_WARM_UP_STEPS):
                self._one_step(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._one_step(*self.inputs)
        self.model.load_state_dict(before)
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
        self.step.batches = 0


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
