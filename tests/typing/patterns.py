"""The patterns of README and docs, as a type checker reads them: `make check` runs pyright over
this file, and nothing runs the file itself.

No checker knows what a loop of a user's own assigns unless the library says so: that
`sentinel.watch` gives the step that it was given, or the one that rescues, either of which has
`loss`; that an attack gives a tensor, and `run` a result.
"""

from collections.abc import Iterable
from typing import assert_type

import torch
from torch import nn

import fastadv
from fastadv import training
from fastadv.attacks.streaming import StreamingAttack
from fastadv.compat import autoattack, torchattacks
from fastadv.data import DeviceLoader, load_digits
from fastadv.evaluation import Curve
from fastadv.models import digits_net
from fastadv.training.graphed_step import GraphedStep

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def attacked(model: nn.Module) -> None:
    x, y = load_digits("test")
    attack = fastadv.pgd(fastadv.Linf(0.18), steps=20, restarts=2, keep="best")
    assert_type(attack(model, x, y), torch.Tensor)
    assert_type(attack(model, x, target="random"), torch.Tensor)
    assert_type(attack(model, x, y, target=(y + 1) % 10), torch.Tensor)
    assert_type(attack.run(model, x, target="least_likely"), fastadv.AttackResult)
    assert_type(attack.run(model, x, y).success.float().mean(), torch.Tensor)
    attack(model, x, y, execution=fastadv.Execution(precision="bf16", cuda_graph="auto"))


def attacked_by_a_function(model: nn.Module) -> None:
    """A model is any callable from tensors to logits."""
    x, y = load_digits()
    fastadv.apgd_t(fastadv.L2(0.5))(lambda x: model(2 * x - 1), x, y)
    fastadv.fab(fastadv.L1(5.0))(torch.compile(model), x, y)


def streamed(model: nn.Module, loader: Batches) -> None:
    stream = fastadv.pgd(fastadv.Linf(0.18)).streaming()
    assert_type(stream, StreamingAttack)
    for x, y in loader:
        assert_type(stream(model, x, y), torch.Tensor)
        assert_type(stream.run(model, x, target="second_best"), fastadv.AttackResult)
    ensemble = fastadv.autoattack(fastadv.Linf(0.18), "rand", keep="authors").streaming(seen=100)
    assert_type(ensemble.seen, int)


def evaluated() -> None:
    x, y = load_digits("test")
    model = digits_net(weights="fast-at")
    for weights in ("standard", "fast-at"):
        model = digits_net(weights=weights)
    ensemble = fastadv.autoattack(fastadv.Linf(0.18))
    report = fastadv.evaluate(model, (x[:20], y[:20]), ensemble, checkpoint="aa.pt")
    assert_type(report, fastadv.Report)
    assert_type([stage.name for stage in report.stages], list[str])
    assert_type(report.robust_accuracy, float)
    assert_type(f"{report.clean_accuracy:.1%}", str)
    report.save("report.html")
    attack = fastadv.pgd(fastadv.Linf(0.18))
    curve = fastadv.robustness_curve(model, (x, y), attack, eps=[0.1, 0.2])
    assert_type(curve, Curve)


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Batches) -> None:
    threat = fastadv.Linf(0.18)
    step = training.FastAT(threat, eps_warmup=20, precision="bf16", bn="eval")
    for x, y in loader:
        loss = step.loss(model, x, y)
        assert_type(loss, torch.Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    free = training.FreeAT(threat, replays=4)
    yopo = training.YOPO(threat, first_layer="0", outer=2, inner=2)
    for method in (free, yopo, step):
        for loss in method(model, *load_digits()):
            assert_type(loss, torch.Tensor)


def trained_by_an_objective(model: nn.Module, loader: Batches, mask: torch.Tensor) -> None:
    step = training.PGDAT(fastadv.Linf(0.18), loss=fastadv.objectives.segmentation())
    for x, y in loader:
        assert_type(step.loss(model, x, y, extra=(mask,), mask=mask), torch.Tensor)
        batch = step.craft(model, x, y)
        assert_type(batch, training.Crafted)
        step.advance(model(batch.x_adv).mean())
    training.FreeAT(fastadv.Linf(0.18), loss=fastadv.objectives.binary())


def watched(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Batches) -> None:
    threat = fastadv.Linf(0.18)
    x, y = load_digits()
    sentinel = training.Sentinel(threat, x[:500], y[:500], every=10, on_collapse="rollback")
    step = training.FastAT(threat)
    for x, y in loader:
        step.loss(model, x, y).backward()
        optimizer.step()
        step = sentinel.watch(step, model, optimizer)
    assert_type(step, training.FastAT | training.PGDAT)
    step = sentinel.finish(step, model, optimizer)
    assert_type(step.loss(model, x, y), torch.Tensor)


def watched_replays(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Batches) -> None:
    """`FreeAT` has no method `loss`, and what rescues it takes the same loop."""
    threat = fastadv.Linf(0.18)
    sentinel = training.Sentinel(threat, *load_digits(), every=10)
    step = training.FreeAT(threat)
    for x, y in loader:
        for loss in step(model, x, y):
            assert_type(loss, torch.Tensor)
            loss.backward()
        step = sentinel.watch(step, model, optimizer)
    assert_type(step, training.FreeAT | training.PGDAT)


def composed(model: nn.Module) -> None:
    images, labels = load_digits("train")
    step = training.PGDAT(
        fastadv.Linf(0.18),
        steps=2,
        bank=training.PerturbationBank(len(images), images.shape[1:]),
        modifiers=[training.AWP(), training.GradAlign(), training.CleanMixing()],
    )
    average = training.ema(model)
    for index in torch.arange(256).split(64):
        step.loss(model, images[index], labels[index], sample_ids=index).backward()
        average.update_parameters(model)


def recorded(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    images, labels = load_digits()
    loader = DeviceLoader((images * 255).byte(), labels, batch_size=128, crop=1)
    run = training.graphed(training.FastAT(fastadv.Linf(0.18)), optimizer)
    assert_type(run, GraphedStep)
    for batch in loader:
        assert_type(run(model, *batch[:2]), torch.Tensor)


def migrated(model: nn.Module) -> None:
    x, y = load_digits()
    torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10)(x, y)
    names = ["apgd-ce"]
    adversary = autoattack.AutoAttack(
        model, eps=8 / 255, version="custom", attacks_to_run=names, device="cpu"
    )
    adversary.run_standard_evaluation(x[:20], y[:20], bs=20)
