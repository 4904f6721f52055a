"""Everything runs on a device without float64, and is decided as exactly."""

import pytest
import torch
from no_float64 import without_float64
from torch import nn
from toy_models import mixed_problem, threat_of

import fastadv
from fastadv import training
from fastadv.ops import doubles
from fastadv.quantise import to_uint8

NORMS = ("linf", "l2", "l1")


@pytest.fixture
def device(monkeypatch):
    with without_float64(monkeypatch) as mode:
        yield mode


def attacks():
    for norm in NORMS:
        threat = threat_of(norm)
        yield fastadv.pgd(threat, steps=4, restarts=2)
        yield fastadv.pgd(threat, steps=4, keep="best")
        yield fastadv.mifgsm(threat, steps=4)
        yield fastadv.apgd_ce(threat, steps=9)
        yield fastadv.apgd_t(threat, steps=6, n_target_classes=2)
        yield fastadv.fab(threat, steps=4)
        yield fastadv.fab_t(threat, steps=4, n_target_classes=2)
        yield fastadv.square(threat, queries=40)
    yield fastadv.fgsm(threat_of("linf"))
    yield fastadv.pgd(fastadv.Linf(torch.linspace(0.02, 0.1, 3).view(1, 3, 1, 1)), steps=4)
    yield fastadv.apgd_ce(fastadv.L2(torch.linspace(0.2, 0.5, 3).view(1, 3, 1, 1)), steps=4)
    yield fastadv.autoattack(threat_of("linf"), version="fast")


ATTACKS = list(attacks())


def test_what_the_device_refuses(device):
    x = torch.rand(3)
    for wrong in (
        lambda: x.double(),
        lambda: torch.zeros(2, dtype=torch.float64, device=x.device),
        lambda: x.new_zeros(2, dtype=torch.float64),
        lambda: x.to(torch.complex128),
        lambda: torch.as_tensor(doubles.doubled(x).numpy(), device=x.device),
    ):
        with pytest.raises(TypeError, match="no float64"):
            wrong()
    host = doubles.doubled(x)
    with pytest.raises(RuntimeError, match="same device"):
        host + x
    assert host.square().dtype == torch.float64 and device.fetched >= 1
    back = doubles.returned(host, x)
    assert (back + x).dtype == torch.float32
    assert float(host.sum()) == pytest.approx(float(x.sum()))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: repr(attack)[8:50])
def test_every_attack(monkeypatch, attack):
    problem = mixed_problem(12, (3, 6, 6))
    with fastadv.ops.use_backend("reference"):
        expected = attack.run(problem.model, problem.x, problem.y)
    with without_float64(monkeypatch):
        found = attack.run(problem.model, problem.x, problem.y)
    assert found.distance.dtype == torch.float32
    hits = found.success
    inside = fastadv.contains(attack.threat, found.x_adv, problem.x)
    assert bool(inside.all()) and bool((found.prediction != problem.y)[hits].all())
    torch.testing.assert_close(found.distance.double(), expected.distance, rtol=2e-4, atol=1e-6)
    assert int((found.success != expected.success).sum()) == 0
    if attack.threat.norm == "linf" and "fab" not in repr(attack):  # nothing is added up
        assert torch.equal(found.x_adv, expected.x_adv)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), None])
def test_the_ball_is_decided_in_float64(monkeypatch, norm, bounds):
    """A point by a part in 10^6 inside, and one outside: float32 sums cannot tell."""
    kind = {"linf": fastadv.Linf, "l2": fastadv.L2, "l1": fastadv.L1}[norm]
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 4
    x_adv = x + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    distance = kind(1.0).distance(x_adv, x)
    factor = torch.linspace(1 - 4e-6, 1 + 4e-6, 6, dtype=torch.float64)
    eps = distance * factor
    threat = kind(1.0, bounds=bounds)
    expected = fastadv.contains(threat, x_adv, x, eps)
    with without_float64(monkeypatch):
        assert torch.equal(fastadv.contains(threat, x_adv, x, eps), expected)
        got = threat.distance(x_adv, x)
    assert got.dtype == torch.float32 and torch.equal(got, distance.float())


@pytest.mark.parametrize("norm", NORMS)
def test_bytes(monkeypatch, norm):
    threat = threat_of(norm)
    x = (torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    x_adv = fastadv.start_point(threat, x, seed=0)
    expected = to_uint8(x_adv, x, threat)
    with without_float64(monkeypatch):
        assert torch.equal(to_uint8(x_adv, x, threat), expected)


@pytest.mark.parametrize(
    "how", [{"precision": "bf16"}, {"fold_batchnorm": True}], ids=lambda how: next(iter(how))
)
def test_fast_searches(monkeypatch, how):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    attack, execution = fastadv.pgd(threat_of("linf"), steps=4), fastadv.Execution(**how)
    y = net.eval()(x).argmax(1)
    expected = attack.run(net, x, y, execution=execution)
    fastadv.release()
    with without_float64(monkeypatch):
        found = attack.run(net, x, y, execution=execution)
    fastadv.release()
    assert torch.equal(found.x_adv, expected.x_adv) and torch.equal(found.success, expected.success)


@pytest.mark.parametrize("name", ["FastAT", "NFGSM", "PGDAT", "TRADES", "MART", "FreeAT"])
def test_training(monkeypatch, name):
    problem = mixed_problem(12)
    weights = {k: v.clone() for k, v in problem.model.state_dict().items()}

    def trained():
        problem.model.load_state_dict(weights)
        step = getattr(training, name)(threat_of("linf"))
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
        average = training.ema(problem.model)
        for loss in step(problem.model, problem.x, problem.y):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        average.update_parameters(problem.model)
        return torch.cat([p.detach().flatten() for p in problem.model.parameters()])

    with fastadv.ops.use_backend("reference"):
        expected = trained()
    with without_float64(monkeypatch):
        assert torch.equal(trained(), expected)


def test_a_sentinel(monkeypatch):
    problem = mixed_problem(12)
    with without_float64(monkeypatch):
        _watched(problem)


def _watched(problem):
    sentinel = training.Sentinel(threat_of("linf"), problem.x, problem.y, every=1)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1)
    step = training.FastAT(threat_of("linf"))
    sentinel.keep(problem.model, optimizer)
    step.loss(problem.model, problem.x, problem.y).backward()
    optimizer.step()
    sentinel.watch(step, problem.model, optimizer)


def test_evaluation(monkeypatch):
    problem = mixed_problem(12)
    threat = threat_of("linf")
    members = (
        fastadv.apgd_ce(threat, steps=4),
        fastadv.fab_t(threat, steps=2, n_target_classes=1),
        fastadv.square(threat, queries=8),
    )
    attack = fastadv.autoattack(threat, version="custom", attacks=members)
    with fastadv.ops.use_backend("reference"):
        expected = fastadv.evaluate(problem.model, (problem.x, problem.y), attack, batch_size=5)
    with without_float64(monkeypatch):
        report = fastadv.evaluate(problem.model, (problem.x, problem.y), attack, batch_size=5)
    assert torch.equal(report.robust, expected.robust)
    torch.testing.assert_close(report.distance, expected.distance, rtol=1e-6, atol=0.0)


def test_drop_ins(device, tmp_path):
    from fastadv.compat.autoattack import AutoAttack
    from fastadv.compat.torchattacks import PGD

    problem = made_outside()
    peer = PGD(problem.model, eps=0.06, steps=2)
    loader = [(problem.x, problem.y)]
    peer.save(loader, str(tmp_path / "saved.pt"), return_verbose=True, verbose=False)
    authors = AutoAttack(problem.model, norm="Linf", eps=0.06, version="custom", verbose=False)
    authors.attacks_to_run, authors.apgd.n_iter = ["apgd-ce"], 3
    authors.run_standard_evaluation(problem.x, problem.y, bs=4)


def made_outside():
    """Its images are drawn in float64 and rounded."""
    with torch.utils._python_dispatch._disable_current_modes():
        return mixed_problem(8)
