"""C&W: the steps of its peers, and where they err."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchattacks
from golden.tiny_model import TinyModel
from toy_models import Recording, differing_fields, mixed_problem, rows_of

import fastadv

FOLDER = Path(__file__).parents[2] / "golden"
_AS_AUTHORS = dict(
    variable="tanh",
    step_size=0.05,
    final_step_size=0.05,
    relative_step=None,
    settled=0.0,
    first_constant=0.125,
)
_FOUR = dict(steps=20, search_steps=4, abort_early=False)
_FORTY = dict(steps=12, search_steps=40)
# name: (threat, settings, samples shown alone, tolerance); foolbox measures from the image that
# tanh gives back, which is not the image
GOLDEN = {
    "cw_l2": (fastadv.L2(), _FOUR, False, 1e-9),
    "cw_l2_abort": (fastadv.L2(), dict(steps=20, search_steps=10, kappa=0.2), True, 1e-9),
    "cw_linf": (fastadv.Linf(), _FORTY, True, 1e-9),
    "cw_foolbox": (fastadv.L2(), _FOUR, False, 2e-5),
}


def _stored(path):
    with np.load(path, allow_pickle=False) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def _everywhere_steep(x):
    """That of tests/golden/make_cw.py."""
    size = x[0].numel()
    weight = torch.arange(5.0 * size, dtype=x.dtype).reshape(size, 5).cos() / 8
    return lambda z: (z - 0.5).flatten(1).sinh() @ weight


@pytest.mark.parametrize("either_backend", ["reference", "compiled"], indirect=True)
@pytest.mark.parametrize("run", GOLDEN)
def test_every_point_is_the_peers_in_float64(run, either_backend):
    given, stored = (
        _stored(FOLDER / name) for name in ("autoattack_model.npz", f"nearest/{run}.npz")
    )
    threat, settings, alone, tolerance = GOLDEN[run]
    model = TinyModel({name: rows.numpy() for name, rows in given.items()}).double()
    if run == "cw_foolbox":
        model = _everywhere_steep(given["x"].double())
    attack = fastadv.cw(threat, **_AS_AUTHORS, **settings)
    x = given["x"].double()
    y = given["y"] if run != "cw_foolbox" else model(x).argmax(1)
    lengths = stored["lengths"].split(stored["counts"].tolist())
    x_adv, distance = x.clone(), torch.zeros(len(x), dtype=torch.float64)
    right = model(x).argmax(1) == y
    for i in range(0, len(x), 1 if alone else len(x)):
        at = slice(i, i + 1 if alone else len(x))
        if alone and not right[i]:
            continue
        asked = Recording(model, torch.clone)
        result = attack.run(asked, x[at], y[at], execution=fastadv.Execution(batching="plain"))
        x_adv[at], distance[at] = result.x_adv, result.distance.where(result.success, 0.0)
        for row in range(len(x[at])):
            if right[i + row]:
                theirs = lengths[i + row][: len(asked.seen) - 2]
                clean = x[i + row]
                points = [z[row].detach() for z in asked.seen[1 : len(theirs) + 1]]
                ours = torch.stack([threat.distance(z[None], clean[None])[0] for z in points])
                torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    found = right & (distance > 0)
    assert found.sum() >= 3
    torch.testing.assert_close(distance[found], stored["distance"][found], rtol=0, atol=tolerance)
    shown = stored["shown"][found[stored["shown"]]]
    kept = found[stored["shown"]]
    torch.testing.assert_close(x_adv[shown], stored["adv"][kept], rtol=0, atol=tolerance)


def _saturated():
    """(model, images of zeros and ones, labels): two classes by a plane."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(8, 64, generator=generator).round()
    weight = torch.randn(2, 64, generator=generator)
    model = torch.nn.Linear(64, 2, bias=False)
    model.weight.data = weight
    return model, x, model(x).argmax(1).detach()


@pytest.mark.parametrize(
    ("norm", "settings"), [("l2", {}), ("l2", dict(variable="tanh", step_size=0.3)), ("linf", {})]
)
def test_elements_at_a_bound_move(norm, settings):
    """In torchattacks their variable is infinite, and they stay for ever."""
    model, x, y = _saturated()
    theirs = torchattacks.CW(model, c=10.0, steps=100, lr=0.1)(x, y)
    assert torch.equal(theirs, x)
    threat = fastadv.L2() if norm == "l2" else fastadv.Linf()
    result = fastadv.cw(threat, **settings).run(model, x, y)
    assert result.success.all()
    weight = model.weight[0] - model.weight[1]
    plane = (x @ weight).abs() / weight.norm(p=2 if norm == "l2" else 1)
    assert (result.distance >= plane * (1 - 1e-5)).all()  # less without the bounds
    assert (result.distance < 3 * plane).all()


def test_shifted_logits_are_attacked_alike():
    """torchattacks masks by a product: where all logits are negative it does nothing."""
    model, x, y = _saturated()
    x = 0.1 + 0.8 * x
    plain = fastadv.cw(fastadv.L2(), steps=30).run(model, x, y)
    shifted = fastadv.cw(fastadv.L2(), steps=30).run(lambda z: model(z) - 128.0, x, y)
    torch.testing.assert_close(shifted.distance, plain.distance, rtol=1e-3, atol=0)
    theirs = torchattacks.CW(Shifted(model), c=10.0, steps=50, lr=0.1)(x, y)
    assert (model(theirs).argmax(1) == y).all()


class Shifted(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z):
        return self.model(z) - 128.0


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_sample_ends_the_rounds_of_another(norm):
    """adversarial-library and foolbox end a round for the whole batch."""
    p = mixed_problem(12, (3, 5, 6), curvature=3.0)
    threat = fastadv.L2() if norm == "l2" else fastadv.Linf()
    attack = fastadv.cw(threat, **(_AS_AUTHORS | dict(steps=20, search_steps=4)))
    together = attack.run(p.model, p.x, p.y)
    if norm == "l2":  # in L-infinity there are the more rounds
        full = fastadv.cw(threat, **(_AS_AUTHORS | _FOUR)).run(p.model, p.x, p.y)
        assert together.backwards < full.backwards
    for i in range(12):
        alone = attack.run(p.model, p.x[i : i + 1], p.y[i : i + 1])
        assert differing_fields(alone, rows_of(together, torch.tensor([i]))) == []


def test_kappa_is_what_every_point_is_adversarial_by():
    p = mixed_problem(12, (3, 5, 6), curvature=3.0, wrong_every=50)
    x, y = p.x[1:], p.y[1:]
    result = fastadv.cw(fastadv.L2(), kappa=0.5).run(p.model, x, y)
    plain = fastadv.cw(fastadv.L2()).run(p.model, x, y)
    z = p.model(result.x_adv)[result.success]
    wanted = y[result.success][:, None]
    other = z.scatter(1, wanted, -torch.inf).amax(1)
    assert result.success.sum() >= 6 and (other - z.gather(1, wanted)[:, 0] >= 0.5 - 1e-6).all()
    both = result.success & plain.success
    assert (result.distance[both] > plain.distance[both]).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(search_steps=0), "search_steps"),
        (dict(step_size=0.0), "step_size"),
        (dict(final_step_size=-1.0), "final_step_size"),
        (dict(relative_step=0.0), "relative_step"),
        (dict(first_constant=0.0), "first_constant"),
        (dict(settled=1.0), "settled"),
        (dict(kappa=-1.0), "kappa"),
        (dict(variable="sine"), "variable"),
        (dict(variable="tanh", threat=fastadv.L2(bounds=None)), "needs bounds"),
        (dict(threat=fastadv.L1()), "cw takes threat models in l2 and linf only"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fastadv.cw(**(dict(threat=fastadv.L2()) | settings))
