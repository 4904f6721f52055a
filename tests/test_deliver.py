"""One test for each thing the foundation promises, used together as a newcomer would."""

import copy
import json
from pathlib import Path

import forked
import pytest
import torch

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net

ROOT = Path(__file__).resolve().parents[1]
EPS = 0.15


@pytest.fixture(scope="module")
def task() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A digits network after a few passes, and 64 held-out digits."""
    model = digits_net(seed=0)
    x, y = load_digits("train")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(5):
        for rows in torch.randperm(len(x), generator=order).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad()
    x, y = load_digits("test")
    return model, x[:64], y[:64]


def test_house_and_packaging():
    for name in ("Makefile", "README.md", "LICENSE", ".ci/run", "pyproject.toml"):
        assert (ROOT / name).is_file(), name
    assert (ROOT / "fastadv" / "kernels" / "slots.py").samefile(ROOT / "kernels" / "slots.py")
    assert "make check test" in (ROOT / ".ci" / "run").read_text()


def test_kernels_and_references(task, either_backend):
    model, x, y = task
    # float64: how far float32's last bits of a gradient carry depends on the network, and so on the
    # CPU that trained it
    model, x, y = copy.deepcopy(model).double(), x[:4].double(), y[:4]
    for threat in (fastadv.Linf(EPS), fastadv.L2(0.8), fastadv.L1(3.0)):
        attack = fastadv.pgd(threat, steps=3)
        result = attack.run(model, x, y)
        with fastadv.ops.use_backend("reference"):
            expected = attack.run(model, x, y)
        torch.testing.assert_close(result.x_adv, expected.x_adv, rtol=0, atol=1e-9)
        assert torch.equal(result.success, expected.success)


def test_threat_models_losses_and_gradient_oracle(task):
    model, x, y = task
    quantised = torch.nn.Sequential(fastadv.BPDA(lambda z: (z * 16).round() / 16), model)
    normalised = fastadv.Normalized(model, mean=(0.0,), std=(1.0,))
    for loss in ("ce", "margin", "dlr"):
        for victim in (model, quantised, normalised):
            attack = fastadv.pgd(fastadv.Linf(EPS), steps=5, loss=loss, eot=2)
            result = attack.run(victim, x, y)
            assert result.success.float().mean() > 0.5
            assert bool(fastadv.contains(attack.threat, result.x_adv, x).all())
            assert all(p.grad is None for p in model.parameters()) and model.training


def test_engine_and_attacks(task):
    model, x, y = task
    threat = fastadv.Linf(EPS)
    clean = (model(x).argmax(1) != y).float().mean()
    for attack in (
        fastadv.fgsm(threat),
        fastadv.rfgsm(threat),
        fastadv.bim(threat),
        fastadv.pgd(threat, restarts=2),
        fastadv.mifgsm(threat),
        fastadv.pgd(fastadv.L2(1.0), loss=lambda z, t: -z.gather(1, t[:, None])[:, 0]),
    ):
        plain = attack.run(model, x, y, execution=fastadv.Execution(batching="plain"))
        refilled = attack.run(model, x, y, execution=fastadv.Execution(batch_size=7))
        assert plain.success.float().mean() > clean + 0.3, attack
        assert torch.equal(plain.success, refilled.success), attack
    for target in ("least_likely", "second_best", "random", (y + 1) % 10):
        hit = fastadv.pgd(fastadv.Linf(0.3), steps=20).run(model, x, y, target=target)
        assert hit.success.float().mean() > 0.5, target


def test_evaluate(task, tmp_path):
    model, x, y = task
    attack = fastadv.pgd(fastadv.Linf(EPS))
    report = fastadv.evaluate(model, (x, y), attack, batch_size=20)
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=9)
    assert fastadv.evaluate(model, dataset, attack).robust_accuracy == report.robust_accuracy
    assert fastadv.evaluate(model, loader, attack).robust_accuracy == report.robust_accuracy
    clean = (model(x).argmax(1) == y).double().mean().item()
    assert report.n == 64 and report.clean_accuracy == pytest.approx(clean)
    assert report.robust_accuracy < clean
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["robust_accuracy"] == report.robust_accuracy
    assert "PGD" in report.to_markdown() or "pgd" in report.to_markdown()


def test_data():
    x, y = load_digits("test")
    assert (
        x.shape == (360, 1, 8, 8)
        and x.min() == 0
        and x.max() == 1
        and set(y.tolist()) == set(range(10))
    )
    with pytest.raises((FileNotFoundError, ValueError), match="MNIST|idx"):
        fastadv.data.load_mnist(ROOT / "tests")


def test_command_line():
    assert fastadv.__version__ in forked.run("-m", "fastadv", "info")[0]
    listed, _ = forked.run("-m", "fastadv", "--help")
    assert "demo" in listed and "attack" in listed


def test_drop_in_for_torchattacks(task):
    from fastadv.compat import torchattacks

    model, x, y = task
    atk = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=10, random_start=False)
    expected = fastadv.bim(fastadv.Linf(EPS), step_size=EPS / 4, steps=10, keep="last")
    assert torch.equal(atk(x, y), expected(model, x, y))


def test_benchmark_rows_carry_their_equality_and_command():
    results = sorted((ROOT / "benchmarks" / "results").rglob("*.jsonl"))
    assert results, "rows are committed"
    for path in results:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            assert row["equality"]["error"] is not None, path
            assert row["environment"]["command"].startswith("python -m benchmarks."), path
