"""What a call took, and the physical limit of it: its forward and backward passes alone."""

import contextlib
import statistics
import time
from collections.abc import Callable

import torch

from fastadv import outputs
from fastadv.attacks.call.result import Cost
from fastadv.attacks.call.search import Search
from fastadv.engine.work import Extra
from fastadv.graphs.planner import Backend
from fastadv.isolation import Model
from fastadv.oracle.gradient import Oracle

_LEAST_ROUNDS = 3
_MOST_ROUNDS = 50
_LEAST_SECONDS = 0.2  # in which a pass of a small network is repeated


def cost_of(
    oracle: Oracle,
    search: Search,
    x: torch.Tensor,
    *,
    extra: Extra,
    rows: int,
    began: float,
    timed: bool,
) -> Cost:
    """The cost of a call that began at `began`; timed: measure its limit too."""
    seconds = time.perf_counter() - began
    on_cpu = x.device.type == "cpu"
    limit = 0.0
    if timed:
        # small batches take longer a sample
        rows = oracle.rows_of(min(rows, max(search.attacked, 1)))
        with contextlib.suppress(
            torch.OutOfMemoryError, MemoryError
        ):  # what was found is worth more
            limit = _limit(oracle, x, extra, rows=rows, backend=search.recorder)
    return search.cost._replace(
        seconds=seconds, model_seconds=oracle.seconds if on_cpu else limit, limit_seconds=limit
    )


def _limit(
    oracle: Oracle, x: torch.Tensor, extra: Extra, *, rows: int, backend: Backend | None
) -> float:
    """Seconds that the passes counted by `oracle` take at `rows` samples a pass, nothing else.

    The same models in the same precision, captured as a graph where steps are. The passes that this
    takes, of each kind four to fifty, are not counted. Must be called inside `isolated(model)`.
    """
    x = x[:rows].detach()
    more = [part[:rows] for part in extra]
    own = _given(oracle.model, more)
    search = own if oracle.search is None else _given(oracle.search.forward, more)
    forwards = oracle.forwards - oracle.own_forwards
    backwards = oracle.backwards - oracle.own_backwards
    kinds = (
        (oracle.own_backwards, _both(own, x)),
        (oracle.own_forwards - oracle.own_backwards, _forward(own, x)),
        (backwards, _both(search, x)),
        (forwards - backwards, _forward(search, x)),
    )
    total = 0.0
    for count, run in kinds:
        if count > 0:
            total += count * _seconds(run, x.device, backend) / len(x)
    return total


def _given(model: Model, extra: list[torch.Tensor]) -> Model:
    return (lambda x: model(x, *extra)) if extra else model


def _both(model: Model, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            logits = outputs.logits_in(model(leaf), leaf)
        torch.autograd.grad(logits, leaf, torch.ones_like(logits))

    return run


def _forward(model: Model, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        model(x.clone())

    return run


def _seconds(run: Callable[[], None], device: torch.device, backend: Backend | None) -> float:
    run()
    if backend is not None:
        backend.warm(run)
        with contextlib.suppress(Exception):  # what cannot be recorded is timed as it is
            run = backend.capture(run)
        run()
    times: list[float] = []
    while len(times) < _LEAST_ROUNDS or (sum(times) < _LEAST_SECONDS and len(times) < _MOST_ROUNDS):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
