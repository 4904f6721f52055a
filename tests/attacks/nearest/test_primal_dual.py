"""PDGD and PDPGD take adversarial-library's steps: see tests/golden/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden.tiny_model import TinyModel
from toy_models import Recording, same_bits

import fastadv

FOLDER = Path(__file__).parents[2] / "golden"
ATTACKS = {
    "pdgd": (fastadv.pdgd, fastadv.L2(), {}),
    "pdgd_targeted": (fastadv.pdgd, fastadv.L2(), {}),
    "pdpgd_linf": (fastadv.pdpgd, fastadv.Linf(), {}),
    "pdpgd_l2": (fastadv.pdpgd, fastadv.L2(), {}),
    "pdpgd_l1": (fastadv.pdpgd, fastadv.L1(), {}),
    "pdpgd_l1_targeted": (fastadv.pdpgd, fastadv.L1(), {}),
    "pdpgd_l0": (fastadv.pdpgd, fastadv.L0(), {}),
    "pdpgd_l0_norm": (fastadv.pdpgd, fastadv.L0(), dict(proximal="norm", first_ratio=1e-4)),
}
PLAIN = fastadv.Execution(batching="plain")


def _problem(dtype):
    with np.load(FOLDER / "autoattack_model.npz", allow_pickle=False) as given:
        model = TinyModel(given).to(dtype)
        x, y = torch.from_numpy(given["x"][::2]).to(dtype), torch.from_numpy(given["y"][::2])
    return model, x, y


def _run(run, dtype, rows=slice(None)):
    """(our result; the sums of README.md of our points and of the peer's; the peer's distances)."""
    with np.load(FOLDER / "nearest" / "primal_dual.npz", allow_pickle=False) as given:
        number = given["runs"].tolist().index(run)
        theirs, distance = (torch.from_numpy(given[name][number]) for name in ("sums", "distance"))
        target = torch.from_numpy(given["target"])
    model, x, y = _problem(dtype)
    model, x, y = Recording(model, torch.clone), x[rows], y[rows]
    make, threat, options = ATTACKS[run]
    attack = make(threat, steps=len(theirs) - 1, dual_step_size=1.0, **options)
    aim = target[rows] if "targeted" in run else None
    result = attack.run(model, x, y, target=aim, execution=PLAIN)
    away = torch.stack([*model.seen[1:-1], result.x_adv]).detach() - x
    weight = torch.arange(x[0].numel(), dtype=torch.float64).cos()
    return result, away.flatten(2).double() @ weight, theirs[:, rows], distance[rows]


@pytest.mark.parametrize("either_backend", ["reference", "compiled"], indirect=True)
@pytest.mark.parametrize("run", ATTACKS)
def test_every_point_is_the_peers_in_float64(run, either_backend):
    result, ours, theirs, distance = _run(run, torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    assert torch.equal(result.success, distance > 0) and result.success.any()
    found = result.success
    torch.testing.assert_close(result.distance[found], distance[found], rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", ["pdgd", "pdpgd_l2", "pdpgd_l1", "pdpgd_l0"])
def test_a_batch_of_one_is_the_peers_too(run):
    for row in range(4):
        _, ours, theirs, _ = _run(run, torch.float64, slice(row, row + 1))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("run", ["pdgd", "pdpgd_linf", "pdpgd_l2", "pdpgd_l1"])
def test_float32_follows(run):
    result, ours, theirs, distance = _run(run, torch.float32)
    torch.testing.assert_close(ours[:6], theirs[:6], rtol=1e-4, atol=1e-4)
    found = distance > 0
    torch.testing.assert_close(result.distance[found], distance[found], rtol=0.01, atol=0)


@pytest.mark.parametrize("make", [fastadv.pdgd, fastadv.pdpgd])
def test_a_single_step_looks_at_the_start(make):
    """The peer divides by zero."""
    model, x, y = _problem(torch.float32)
    result = make(fastadv.L2(), steps=1).run(model, x, y)
    assert not result.success.any() and same_bits(result.x_adv, x)
    nearer = make(fastadv.L2(), steps=40, dual_step_size=1.0).run(model, x, y)
    again = make(fastadv.L2(), steps=1).run(model, x, y, x_init=nearer.x_adv)
    assert same_bits(again.x_adv, nearer.x_adv) and again.success.all()


def test_in_l0_all_other_entries_keep_their_bits():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(24, 40, generator=generator)
    x[:, ::5] = -0.0
    weight = torch.randn(40, generator=generator)
    need = 0.6 * torch.rand(24, generator=generator) + 0.1

    def model(z):
        score = (z - x) @ weight - need
        return torch.stack([-score, score], 1)

    y = torch.zeros(24, dtype=torch.long)
    result = fastadv.pdpgd(fastadv.L0()).run(model, x, y, execution=PLAIN)
    gains = torch.where(weight > 0, (1 - x) * weight, -x * weight).sort(1, descending=True).values
    fewest = (gains.cumsum(1) < need[:, None]).sum(1) + 1
    assert result.success.all()
    assert (result.distance >= fewest).all() and result.distance.mean() < 2 * fewest.double().mean()
    still = result.x_adv == x
    assert same_bits(result.x_adv[still], x[still])
    assert torch.equal((~still).sum(1).double(), result.distance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fastadv.pdgd(fastadv.L1()), "pdgd takes threat models in l2 only"),
        (lambda: fastadv.pdpgd(fastadv.L0(unit="pixel")), "pdpgd counts entries"),
        (lambda: fastadv.pdpgd(fastadv.L1(), steps=0), "steps"),
        (lambda: fastadv.pdpgd(fastadv.L1(), proximal_steps=0), "proximal_steps"),
        (lambda: fastadv.pdpgd(fastadv.L1(), proximal="l1"), "proximal must be one of"),
        (lambda: fastadv.pdpgd(fastadv.L1(), step_size=0.0), "step_size"),
        (lambda: fastadv.pdpgd(fastadv.L1(), dual_step_size=-0.1), "dual_step_size"),
        (lambda: fastadv.pdpgd(fastadv.L1(), reduction=0.0), "reduction"),
        (lambda: fastadv.pdpgd(fastadv.L1(), dual_reduction=1.5), "dual_reduction"),
        (lambda: fastadv.pdpgd(fastadv.L1(), smoothing=1.0), "smoothing"),
        (lambda: fastadv.pdpgd(fastadv.L1(), tolerance=-0.1), "tolerance"),
        (lambda: fastadv.pdpgd(fastadv.L1(), least_ratio=1.0), "least_ratio"),
        (lambda: fastadv.pdpgd(fastadv.L1(), first_ratio=1e-7), "first_ratio"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
