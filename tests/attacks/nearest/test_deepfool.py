"""DeepFool: the peers' points, closed forms, what is returned, and how many passes it takes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from golden.tiny_model import TinyModel
from toy_models import Counting, differing_fields, mixed_problem, rows_of

import fastadv

FOLDER = Path(__file__).parents[2] / "golden"
KINDS = {"linf": fastadv.Linf, "l2": fastadv.L2}
BOTH = pytest.mark.parametrize("norm", KINDS)
_DUAL = {"linf": 1, "l2": 2}


def _attack(norm, *eps, bounds=(0.0, 1.0), **more):
    return fastadv.deepfool(KINDS[norm](*eps, bounds=bounds), **more)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@BOTH
def test_every_result_is_the_peers(norm, dtype):
    with np.load(FOLDER / "autoattack_model.npz") as given:
        model, x = TinyModel(given).to(dtype), torch.from_numpy(given["x"]).to(dtype)
        y = torch.from_numpy(given["y"])
    with np.load(FOLDER / f"nearest/deepfool_{norm}.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    attack = _attack(norm, at_bounds="ignored", steps=100)
    result = attack.run(model, x, y)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(result.distance, stored["distance"], rtol=0, atol=tolerance)
    shown = result.x_adv[stored["shown"]].double()
    torch.testing.assert_close(shown, stored["adv"], rtol=0, atol=tolerance)
    # a sample is in as many of their passes as it has points
    points = [int((stored["rows"] > k).sum()) for k in range(len(x))]
    assert sorted((result.step + 1).tolist(), reverse=True) == points


@BOTH
def test_foolbox_goes_the_same_way_without_overshoot(norm):
    foolbox = pytest.importorskip("foolbox", reason="needs the optional peer foolbox")
    problem = mixed_problem(12, (1, 3, 4), dtype=torch.float64, wrong_every=100, curvature=3.0)
    x = 0.3 + 0.4 * problem.x
    y = problem.model(x).argmax(1)
    make = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}
    peer = make[norm](steps=20, candidates=5, overshoot=0.0, loss="logits")
    theirs, *_ = peer(
        foolbox.PyTorchModel(problem.model.eval(), bounds=(0, 1)), x, y, epsilons=None
    )
    result = _attack(norm, steps=20, overshoot=0.0).run(problem.model, x, y)
    assert result.success.all()
    # theirs adds 1e-8 to the norm of the gradient
    assert (result.x_adv - theirs).abs().max() < 1e-7


@pytest.mark.parametrize("dims", [(8,), (5, 7, 7)])
@BOTH
def test_linear_models_are_left_by_the_nearest_face(norm, dims):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, math.prod(dims), generator=generator, dtype=torch.float64)
    x = torch.randn(9, *dims, generator=generator, dtype=torch.float64)

    def model(x):
        return x.flatten(1) @ weight.T

    logits = model(x)
    y = logits.argmax(1)
    w = weight[None] - weight[y][:, None]
    gap = (logits.gather(1, y[:, None]) - logits) / w.norm(p=_DUAL[norm], dim=2)
    closed = gap.scatter(1, y[:, None], torch.inf).amin(1)
    attack = _attack(norm, bounds=None, overshoot=0.0, slack=1e-9)
    result = attack.run(model, x, y)
    assert result.success.all() and (result.step == 1).all()
    torch.testing.assert_close(result.distance, closed, rtol=0, atol=2e-9)


@BOTH
def test_the_same_bits_alone_and_in_any_batch(norm):
    p = mixed_problem(12, (3, 5, 6), curvature=3.0)
    attack = _attack(norm, steps=8)
    together = attack.run(p.model, p.x, p.y, execution=fastadv.Execution(batching="plain"))
    assert together.success.all() and (together.step > 1).any()
    wrong = together.clean_prediction != p.y
    assert wrong.any() and (together.distance[wrong] == 0).all()
    for size in (1, 5):
        other = attack.run(p.model, p.x, p.y, execution=fastadv.Execution(batch_size=size))
        assert differing_fields(other, together) == []
    alone = attack.run(p.model, p.x[4:5], p.y[4:5])
    assert differing_fields(alone, rows_of(together, torch.tensor([4]))) == []


class _Unvectorised(torch.autograd.Function):
    """A function whose backward looks at values, as no vectorised one can."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        assert float(grads[0].abs().max()) >= 0
        return grads[0]


@BOTH
def test_a_model_that_cannot_be_vectorised_gives_the_same_points(norm):
    p = mixed_problem(12, (3, 5, 6), curvature=3.0)
    attack, way = _attack(norm, steps=8), fastadv.Execution(batching="plain")
    at_once = attack.run(p.model, p.x, p.y, execution=way)
    one_by_one = attack.run(lambda x: p.model(_Unvectorised.apply(x)), p.x, p.y, execution=way)
    assert differing_fields(one_by_one, at_once) == []
    counting = Counting(p.model)
    counted = attack.run(counting, p.x, p.y, execution=way)
    assert differing_fields(counted, at_once) == []
    # each class but the label is a backward pass, however they are made
    for result in (at_once, one_by_one, counted):
        assert (result.forwards, result.backwards) == (counting.forwards, counting.backwards)
    found = at_once.step > 0
    assert torch.equal(at_once.best_at[found], 2 + 5 * at_once.step[found])


@BOTH
def test_a_radius_says_only_what_is_a_success(norm):
    p = mixed_problem(16, (3, 5, 6), curvature=3.0)
    free = _attack(norm).run(p.model, p.x, p.y)
    eps = float(free.distance.median())
    result = _attack(norm, eps).run(p.model, p.x, p.y)
    near = free.distance <= eps
    assert torch.equal(result.success, near) and not near.all()
    assert torch.equal(result.x_adv[near], free.x_adv[near])
    assert torch.equal(result.x_adv[~near], p.x[~near])
    kept = _attack(norm, eps, keep="best").run(p.model, p.x, p.y)
    assert torch.equal(kept.x_adv, free.x_adv) and torch.equal(kept.success, near)


def _saturated():
    """Half of the elements at a bound, which the gradient of the nearer class points out of."""
    p = mixed_problem(24, (1, 6, 6), curvature=0.0)
    x = (p.x - 0.5).sign().clamp(min=0).where(p.x.frac().mul(7).frac() > 0.5, p.x)
    return p.model, x, p.model(x).argmax(1)


@BOTH
def test_slack_crosses_the_boundary_where_peers_stall_below_it(norm):
    model, x, y = _saturated()
    as_torchattacks = dict(slack=0.0, overshoot=0.0, at_bounds="ignored", steps=30)
    stalled = _attack(norm, **as_torchattacks).run(model, x, y)
    ours = _attack(norm, steps=30).run(model, x, y)
    assert ours.success.all() and not stalled.success.all()
    minded = _attack(norm, steps=30, overshoot=0.0).run(model, x, y)
    ignored = _attack(norm, steps=30, overshoot=0.0, at_bounds="ignored").run(model, x, y)
    assert minded.step.sum() < ignored.step.sum()  # no step is cut by the bounds alone


def test_a_failure_is_x_and_infinitely_far():
    def model(x):  # flat, and right, everywhere
        return torch.stack([0 * x.sum(1) + 1, 0 * x.sum(1)], 1)

    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    with pytest.warns(fastadv.AttackWarning, match="gradient"):
        result = _attack("l2").run(model, x, torch.tensor([0, 0, 1]))
    assert torch.equal(result.x_adv, x) and result.success.tolist() == [False, False, True]
    assert result.distance.tolist() == [math.inf, math.inf, 0] and result.step.tolist() == [
        -1,
        -1,
        0,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fastadv.deepfool(fastadv.L1()),
            "deepfool takes threat models in linf and l2 only",
        ),
        (lambda: fastadv.deepfool(fastadv.L0()), "deepfool is not defined in L0"),
        (lambda: _attack("l2", overshoot=-0.1), "overshoot must not be negative"),
        (lambda: _attack("l2", slack=-1.0), "slack must not be negative"),
        (lambda: _attack("l2", at_bounds="left"), "at_bounds must be one of"),
        (lambda: _attack("l2", steps=0), "steps must be an integer of at least 1"),
        (lambda: _attack("l2", keep="last"), "keep must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_targets_are_refused():
    p = mixed_problem(4)
    with pytest.raises(ValueError, match="deepfool goes to the nearest class and takes no target="):
        _attack("l2").run(p.model, p.x, target=(p.y + 1) % 5)
