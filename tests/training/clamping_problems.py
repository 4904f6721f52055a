"""Networks that clamp their input beside bare ones, and the iterates that a step takes on both."""

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from training_problems import METHODS, batches, conv_net, sgd, train_batch, uniform

import fastadv
from fastadv.diagnostics import AttackWarning

EPS = 0.1
THREAT = fastadv.Linf(EPS)
# starts inside the bounds: outside, a clamp has no gradient by right
INSIDE = {name: {"clamp_start": True} for name in ("FastAT", "NFGSM", "PGDAT")}


class Clamp(nn.Module):
    """x in [low, high]; kind: how that is done."""

    def __init__(self, kind: str, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.kind, self.low, self.high = kind, low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "hardtanh":
            return F.hardtanh(x, self.low, self.high)
        if self.kind == "tensors":
            low, high = (torch.full_like(x, bound) for bound in (self.low, self.high))
            return torch.clamp(x, low, high)
        return x.clamp(self.low, self.high)


class Behind(nn.Module):
    """net behind a first module, under names that the bare network has too."""

    def __init__(self, first: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.first, self.net = first, net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(self.first(x))


KINDS = ("number", "tensors", "hardtanh", "normalised")


def pair_of(kind: str, **settings: object) -> tuple[nn.Module, nn.Module]:
    """(a network that clamps, the same without a clamp), float64, in training mode."""
    net = conv_net(**{"bn": True, "dtype": torch.float64, **settings})
    twin = copy.deepcopy(net)
    if kind != "normalised":
        return Behind(Clamp(kind), net), Behind(nn.Identity(), twin)
    mean, std = (0.3,), (0.6,)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    low, high = fastadv.Normalized(nn.Identity(), mean, std).normalize(ends).flatten().tolist()
    inner, bare = Behind(Clamp("number", low, high), net), Behind(nn.Identity(), twin)
    return fastadv.Normalized(inner, mean, std), fastadv.Normalized(bare, mean, std)


def loses_gradient(kind: str, rule: str) -> bool:
    """Whether entries at a bound have no gradient."""
    return kind == "hardtanh" or (rule == "new" and kind in ("number", "normalised"))


def first_layer_of(model: nn.Module) -> str:
    return "model.net.0" if isinstance(model, fastadv.Normalized) else "net.0"


class Spied(fastadv.Linf):
    """Keeps the iterates in `seen`."""

    seen: list[torch.Tensor]

    def step_(self, x_adv, grad, x, **more):
        super().step_(x_adv, grad, x, **more)
        self.seen.append(x_adv.detach().clone())
        return x_adv


def make_step(name: str, model: nn.Module, **settings: object):
    """A step of the method `name` for `model`, whose iterates are in `step.threat.seen`."""
    given = {**INSIDE.get(name, {}), **settings}
    if name == "YOPO":
        given = {"first_layer": first_layer_of(model), **given}
    step = METHODS[name](THREAT, **given)
    step.threat = Spied(EPS)
    object.__setattr__(step.threat, "seen", [])
    return step


def problems(name: str, count: int) -> list[tuple[torch.Tensor, torch.Tensor, dict]]:
    """Batches with many entries at the bounds, and starts inside them. Of FreeAT the same batch:
    the perturbation of another one would lead outside."""
    data = batches(1) * count if name == "FreeAT" else batches(count)
    out = []
    for i, (x, y) in enumerate(data):
        x = x.double()
        assert (x == 0).flatten(1).any(1).all() and (x == 1).any()
        start = (x + uniform(x, EPS, seed=i)).clamp(0, 1)
        out.append((x, y, {"x_init": start} if name in ("TRADES", "MART", "YOPO") else {}))
    return out


@contextlib.contextmanager
def counted_warnings() -> Iterator[list[AttackWarning]]:
    """The warnings that a model clamps; any other is an error."""
    found: list[AttackWarning] = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield found
    for warning in seen:
        assert isinstance(warning.message, AttackWarning), warning.message
        assert warning.message.code == "clamped_input"
        found.append(warning.message)


def run(name, model, count=3, **settings):
    """(step, its iterates, losses, AttackWarnings) of `count` batches."""
    step = make_step(name, model, **settings)
    optimizer, losses = sgd(model), []
    with counted_warnings() as warned:
        for x, y, more in problems(name, count):
            losses += train_batch(step, model, optimizer, x, y, **more)
    return step, step.threat.seen, torch.stack(losses), warned


def assert_same(mine, theirs):
    assert len(mine) == len(theirs)
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        assert torch.equal(a, b), f"{i}: {int((a != b).sum())} of {a.numel()} differ"


def assert_same_weights(mine, theirs):
    pairs = zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other and torch.equal(a, b), name
