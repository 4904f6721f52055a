"""What attacks give the ops in mid-attack, recorded from small runs of every attack."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv import ops
from fastadv.attacks import Attack, apgd_ce, fmn, pdpgd, pgd, sigma_zero
from fastadv.attacks.attack import constructors, norms_of
from fastadv.execution import Execution
from fastadv.ops.fab.projection import NORMS, hyperplane_projection
from fastadv.sparse import L0
from fastadv.threat_model import L1, L2, Linf

Calls = dict[str, list[tuple[Any, ...]]]

_KEPT = (1, 2, 4, 8, 12)  # which calls of an op are looked at: first steps, checks, late ones
_KEPT_AGAIN = (4,)  # and of one that has been looked at in another norm
_BUDGET = {"steps": 6, "queries": 24, "restarts": 2, "n_target_classes": 2, "budget": 60}
_CPU = torch.device("cpu")
_EAGER = Execution(cuda_graph=False)  # what is copied while a graph is recorded has no values yet
_THREATS = Linf(0.03), L2(0.3), L1(2.0)


class Recorded(TorchDispatchMode):
    """Copies of the arguments of calls of our ops, by the op's name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Calls = {}
        self.norm = ""
        self._seen: dict[tuple[str, str], int] = {}  # by the op's name and the norm

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "fastadv":
            name = func._schema.name.removeprefix("fastadv::")
            number = self._seen[name, self.norm] = self._seen.get((name, self.norm), 0) + 1
            is_again = any(op == name and norm != self.norm for op, norm in self._seen)
            if number in (_KEPT_AGAIN if is_again else _KEPT):
                self.calls.setdefault(name, []).append(copied(args))
        return func(*args, **(kwargs or {}))


def copied(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The arguments of an op, with tensors of their own."""
    return tuple(
        a.detach().clone(memory_format=torch.preserve_format) if isinstance(a, torch.Tensor) else a
        for a in arguments
    )


def calls_of_attacks(shape: tuple[int, ...], device: torch.device = _CPU) -> Calls:
    """By the op's name, arguments that attacks on 4 images (C, H, W) give it, and some for the ops
    that no attack calls. No kernel is launched: references run, on `device`."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, *shape, generator=generator).to(device)
    grad = torch.randn(x.shape, generator=generator).to(device)
    model = _network(x[0].numel()).to(device)
    y = model(x).argmax(1)
    with ops.use_backend("reference"), Recorded() as recorded:
        for attack in _attacks():
            recorded.norm = attack.threat.norm
            attack(model, x, y, execution=_EAGER)
        mask = x > 0.3
        for attack in _attacks_in_boxes(x):
            recorded.norm = f"{attack.threat.norm} in boxes"
            attack(model, x, y, mask=mask, execution=_EAGER)
        recorded.norm = ""
        ops.linf_step(x + 0.01, grad, x, step_size=0.01, eps=0.02)
        ops.project_l1(x + 0.01 * grad, x, eps=1.0)
        for norm in NORMS:
            w = grad.flatten(1)
            b = (w * x.flatten(1)).sum(1) + 0.5
            hyperplane_projection(x.flatten(1), w, b, norm=norm)
        images = (255 * x).to(torch.uint8)
        ops.augment_batch(
            images, torch.arange(4, device=device), crop=2, flip="random", start_eps=0.1
        )
    return recorded.calls


def _attacks() -> Iterator[Attack]:
    """In each norm PGD in both of its schedules, and every attack that is not of its family."""
    for threat in _THREATS:
        yield pgd(threat, steps=3, keep="last")
        yield pgd(threat, steps=3, keep="best")
        for name, make in constructors().items():
            if make.__module__ != pgd.__module__ and threat.norm in norms_of(name):
                yield _small(make, threat)
    yield pgd(L0(30), steps=5, keep="last")
    yield pgd(L0(9, unit="pixel"), steps=5, keep="best")
    yield fmn(L0(9), steps=6)
    yield pdpgd(L0(9), steps=6, first_ratio=1e-4)
    yield sigma_zero(L0(9), steps=6, threshold=0.05)


def _attacks_in_boxes(x: torch.Tensor) -> Iterator[Attack]:
    """Those of whose ops the steps have another form where elements are not alike."""
    eps = torch.linspace(0.5, 1.0, x[0].numel()).view(1, *x.shape[1:])
    for threat in (Linf(0.03 * eps), L2(0.3 * eps)):
        for make in (pgd, apgd_ce):
            yield make(threat, steps=5)


def _small(make: Callable[..., Attack], threat: Linf | L2 | L1) -> Attack:
    taken = inspect.signature(make).parameters
    settings: dict[str, Any] = {name: n for name, n in _BUDGET.items() if name in taken}
    if threat.norm == "l1" and "large_radii" in taken:
        settings["large_radii"] = True
    return make(threat, **settings)


def _network(size: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = torch.nn.Linear(size, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)
