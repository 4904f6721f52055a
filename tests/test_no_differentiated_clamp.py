"""No gradient of ours goes through a clamp: what that is at the bounds depends on torch.

Pixels lie on the bounds, and a clamp that gives them no gradient stops them from being moved. These
walks run what takes gradients; `test_clamps_in_source` looks at what they do not reach.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from clamp_watch import Differentiated
from graphs.tape import Tape
from members import MEMBERS, member
from torch import nn
from toy_models import NORMS, threat_of
from training.training_problems import METHODS, THREAT, batches, conv_net, sgd, train_batch, uniform

import fastadv
from benchmarks import reference
from fastadv import textbook
from fastadv.compat import torchattacks
from fastadv.demo import figures as demo_figures
from fastadv.training import (
    AWP,
    CleanMixing,
    FastAT,
    GradAlign,
    PerturbationBank,
    Sentinel,
    TrainingWarning,
    graphed,
    graphed_step,
)


class _Clamping(nn.Sequential):
    """What the walks are checked with: its clamp changes nothing and is differentiated."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.clamp(-9.0, 9.0))


Walk = Callable[[nn.Sequential], object]


def _attack(attack: fastadv.Attack, **more: Any) -> Walk:
    def walk(net: nn.Sequential) -> None:
        ((x, y),) = batches(1, size=6)
        net.eval()
        attack.run(net, x, None if "target" in more else net(x).argmax(1), **more)

    return walk


def _of_each_norm() -> Iterator[tuple[str, Walk]]:
    for norm in NORMS:
        threat = threat_of(norm)
        yield f"fgsm {norm}", _attack(fastadv.fgsm(threat))
        for make in (fastadv.bim, fastadv.pgd, fastadv.mifgsm):
            yield f"{make.__name__} {norm}", _attack(make(threat, steps=3))
        for name in MEMBERS:
            yield f"{name} {norm}", _attack(member(name, norm))


def _each_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _autoattack(net: nn.Sequential) -> None:
    ensemble = fastadv.autoattack(threat_of("linf"), version="fast")
    attacks = [
        dataclasses.replace(attack, queries=20) if attack.constructor == "square" else attack
        for attack in ensemble.attacks
    ]
    ensemble = dataclasses.replace(ensemble, attacks=tuple(attacks))
    fastadv.evaluate(net.eval(), batches(1, size=4)[0], ensemble, progress=False)


def _normalised(net: nn.Sequential) -> None:
    ((x, y),) = batches(1, size=6)
    model = fastadv.Normalized(net.eval(), (0.4,), (0.2,))
    fastadv.pgd(threat_of("linf"), steps=2).run(model, x, y)
    attack = torchattacks.PGD(net, eps=0.1, alpha=0.03, steps=2)
    attack.set_normalization_used(mean=[0.4], std=[0.2])
    attack((x - 0.4) / 0.2, y)


_LINF = threat_of("linf")
_PRECISE = fastadv.Execution(precision="bf16", final_pass=True)


_ATTACKS: dict[str, Walk] = {
    **dict(_of_each_norm()),
    "rfgsm": _attack(fastadv.rfgsm(_LINF)),
    **{
        f"pgd {name}": _attack(fastadv.pgd(_LINF, steps=2, loss=loss, clamp_start=False))
        for name, loss in (("margin",) * 2, ("dlr",) * 2, ("kl",) * 2, ("own loss", _each_loss))
    },
    "pgd difference": _attack(fastadv.pgd(_LINF, steps=2, loss="difference"), target="random"),
    "pgd eot": _attack(fastadv.pgd(_LINF, steps=2, eot=2, restarts=2, keep="best")),
    "pgd last": _attack(fastadv.pgd(_LINF, steps=2, keep="last")),
    "pgd bf16": _attack(fastadv.pgd(_LINF, steps=2), execution=_PRECISE),
    "autoattack": _autoattack,
    "normalised": _normalised,
}


def _trained(make: Callable[[], Any], **more: Any) -> Walk:
    def walk(net: nn.Sequential) -> None:
        step, optimizer = make(), sgd(net)
        for x, y in batches(2, size=6):
            train_batch(step, net, optimizer, x, y, **more)

    return walk


def _recorded(name: str, **more: Any) -> Walk:
    def walk(net: nn.Sequential) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graphed_step, "backend_for", lambda device, cuda_graph: Tape())
            step: Any = METHODS[name](THREAT, **more)
            run = graphed(step, sgd(net))
            for x, y in batches(5, size=6):
                run(net, x, y)
        assert run.replays > 0

    return walk


def _watched(net: nn.Sequential) -> None:
    ((x, y),) = batches(1, size=20)
    sentinel = Sentinel(THREAT, x, y, every=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        sentinel.watch(FastAT(THREAT), net, sgd(net))
    assert sentinel.history


_MODIFIED = [name for name in METHODS if name != "YOPO"]
_MODIFIERS = {"AWP": AWP(), "GradAlign": GradAlign(), "CleanMixing": CleanMixing()}


_STEPS: dict[str, Walk] = {
    **{name: _trained(lambda name=name: METHODS[name](THREAT)) for name in METHODS},
    **{
        f"{name} {kind}": _trained(lambda n=name, m=modifier: METHODS[n](THREAT, modifiers=[m]))
        for name in _MODIFIED
        for kind, modifier in _MODIFIERS.items()
    },
    "PGDAT L2": _trained(lambda: METHODS["PGDAT"](fastadv.L2(0.5))),
    "FastAT clamped": _trained(lambda: FastAT(THREAT, clamp_start=True)),
    "FastAT bank": _trained(
        lambda: FastAT(THREAT, bank=PerturbationBank(6, (1, 8, 8))), sample_ids=torch.arange(6)
    ),
    "graphed FastAT": _recorded("FastAT", modifiers=[AWP(), GradAlign()]),
    **{f"graphed {name}": _recorded(name) for name in ("TRADES", "MART", "FreeAT", "YOPO")},
    "sentinel": _watched,
}


def _textbook(net: nn.Sequential) -> None:
    ((x, y),) = batches(1, size=6)
    for norm, eps in (("linf", 0.1), ("l2", 0.5)):
        textbook.fgsm(net, x, y, eps=eps, norm=norm)
        textbook.pgd(net, x, y, eps=eps, steps=2, step_size=eps / 2, norm=norm, restarts=2)
    reference.mifgsm(net, x, y, eps=0.1, steps=2, step_size=0.05)
    reference.pgd_first_success(net, x, y, eps=0.1, steps=2, step_size=0.05)


def _reference(name: str, **more: Any) -> Walk:
    def walk(net: nn.Sequential) -> None:
        ((x, y),) = batches(1, size=6)
        given: dict[str, Any] = {"noise": uniform(x, 0.1, seed=0), "eps": 0.1, "step_size": 0.03}
        if name == "free_replays":
            given = {"delta": torch.zeros_like(x), "eps": 0.1}
        elif name == "nfgsm_step":
            del given["eps"]
        elif name == "yopo_step":
            given["first_layer"] = net if isinstance(net, _Clamping) else net[0]
        getattr(reference, name)(net, sgd(net), x, y, **given, **more)

    return walk


_LOOPS: dict[str, Walk] = {
    "textbook": _textbook,
    "fast_step": _reference("fast_step", clamp_start=False),
    "fast_step clamped": _reference("fast_step", clamp_start=True),
    "pgd_step": _reference("pgd_step", steps=2),
    "free_replays": _reference("free_replays", replays=2),
    "nfgsm_step": _reference("nfgsm_step"),
    "trades_step": _reference("trades_step", steps=2, beta=6.0),
    "mart_step": _reference("mart_step", steps=2, beta=5.0),
    "yopo_step": _reference("yopo_step", outer=2, inner=2),
    "restarts": lambda net: demo_figures.losses_of_restarts(
        net, batches(1)[0][0][0], 0, seed=0, steps=2, restarts=2
    ),
}


_WALKS = {**_ATTACKS, **_STEPS, **_LOOPS}


@pytest.mark.parametrize("name", _WALKS)
def test_no_clamp_is_differentiated(name: str):
    with Differentiated() as seen:
        _WALKS[name](conv_net())
    assert not seen.places


@pytest.mark.parametrize("name", [name for name in _WALKS if not name.startswith("square")])
def test_a_clamp_would_be_seen(name: str):
    """The walk takes gradients, and a clamp that they go through is named by file and line."""
    with Differentiated() as seen:
        _WALKS[name](_Clamping(*conv_net()))
    assert seen.places == {f"tests/{Path(__file__).name}:{_LINE_OF_THE_CLAMP}"}


_LINE_OF_THE_CLAMP = _Clamping.forward.__code__.co_firstlineno + 1
