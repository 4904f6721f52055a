"""DeepFool's step: its rules one by one, against the formula in float64."""

import math

import numpy as np
import pytest
import torch

from fastadv.kernels import slots as columns
from fastadv.ops.nearest.deepfool import deepfool_step_

NORM = {"linf": math.inf, "l2": 2}
_DUAL = {"linf": 1, "l2": 2}
LABELS = [0, 1, 2, 0, 1]
SHAPES = [(15,), (3, 5, 7), (2, 16), (5000,)]


def _problem(device, *shape, dtype=torch.float32):
    """Rows: moves, adversarial and near, adversarial and far, at rest, unknown."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, *shape, generator=generator, dtype=torch.float64)
    x_adv = (x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x, x_adv, grad = (t.to(device, dtype) for t in (x, x_adv, grad))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    slots = torch.zeros(5, columns.WIDTH, dtype=torch.int32, device=device)
    slots[:, columns.ACTIVE] = torch.tensor([1, 1, 1, 0, 1])
    slots[:, columns.SUCCESS_STEP] = -1
    slots[:, columns.STEP] = 3
    eps = torch.full((5,), 1e9, device=device, dtype=wide)
    eps[2] = 1e-3
    return dict(
        x_adv=x_adv,
        closest=x.clone(),
        grad=grad,
        x=x,
        difference=torch.tensor([-0.3, 0.2, 0.2, -0.1, math.nan], device=device, dtype=wide),
        prediction=torch.tensor([0, 2, 1, 0, 2], device=device),
        labels=torch.tensor(LABELS, device=device),
        distance=torch.full((5,), torch.inf, device=device, dtype=wide),
        slots=slots,
        eps=eps,
    )


def _exact(state, row, norm, *, overshoot=0.02, slack=1e-4, minds=True, bounds=(0.0, 1.0)):
    x_adv, w = (state[name][row].double() for name in ("x_adv", "grad"))
    w = w.nan_to_num(0.0, posinf=0.0, neginf=0.0)
    if minds:
        w = w.masked_fill(((w > 0) & (x_adv >= bounds[1])) | ((w < 0) & (x_adv <= bounds[0])), 0.0)
    length = w.norm(p=_DUAL[norm])
    if length == 0:
        return x_adv
    difference = state["difference"][row].double().nan_to_num(0.0).abs()
    reach = (difference / length + slack) * (1 + overshoot)
    u = w.sign() * reach if norm == "linf" else w / length * reach
    return (x_adv + u).clamp(*bounds)


def _run(state, norm, **more):
    given = {name: value.clone() for name, value in state.items()}
    steps = more.pop("steps", 9)
    images = [given.pop(name) for name in ("x_adv", "closest", "grad", "x")]
    deepfool_step_(*images, **given, norm=norm, steps=steps, **more)
    return dict(zip(("x_adv", "closest", "grad", "x"), images, strict=True)) | given


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORM)
def test_every_row_follows_its_rule(norm, shape, dtype, implementation, device):
    before = _problem(device, *shape, dtype=dtype)
    after = _run(before, norm)
    tolerance = {torch.float64: 1e-14, torch.float32: 3e-7, torch.bfloat16: 5e-3}[dtype]
    for row in (0, 4):  # an unknown difference moves by the slack
        exact = _exact(before, row, norm)
        assert (after["x_adv"][row].double() - exact).abs().max() <= tolerance
    for row in (1, 2, 3):
        assert torch.equal(after["x_adv"][row], before["x_adv"][row])
    kept = [torch.equal(after["closest"][row], before["x_adv"][row]) for row in range(5)]
    assert kept == [False, True, True, False, False]
    away = before["x_adv"].double() - before["x"].double()
    length = away.flatten(1).norm(p=NORM[norm], dim=1)
    assert torch.allclose(after["distance"][1:3].double(), length[1:3], rtol=1e-6)
    assert after["distance"].isinf().tolist() == [True, False, False, True, True]
    slots = after["slots"]
    assert slots[:, columns.ACTIVE].tolist() == [1, 0, 0, 0, 1]
    assert slots[:, columns.STEP].tolist() == [4, 3, 3, 3, 4]
    assert slots[:, columns.SUCCESS_STEP].tolist() == [-1, 3, -1, -1, -1]
    assert slots[1:3, columns.NEAREST_STEP].tolist() == [3, 3]
    assert (slots[:, columns.FAULT] != 0).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("norm", NORM)
def test_settings_and_bounds(norm, implementation, device):
    before = _problem(device, 40)
    for more in (
        dict(overshoot=0.0, slack=0.0),
        dict(overshoot=1.0, slack=0.05),
        dict(minds_bounds=False),
        dict(bounds=(-1.0, 2.0)),
    ):
        after = _run(before, norm, **more)
        if "minds_bounds" in more:
            more = dict(minds=False)
        assert (after["x_adv"][0].double() - _exact(before, 0, norm, **more)).abs().max() < 3e-7


@pytest.mark.parametrize("norm", NORM)
def test_the_last_point_ends_a_row(norm, implementation, device):
    before = _problem(device, 40)
    after = _run(before, norm, steps=4)
    assert (after["slots"][:, columns.ACTIVE] == 0).all()
    assert torch.equal(after["x_adv"], before["x_adv"])


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("norm", NORM)
def test_gradients_of_any_size_give_finite_points(norm, size, implementation, device):
    before = _problem(device, 40)
    before["grad"] = before["grad"].sign() * size
    before["grad"][0, ::5] = math.nan
    with np.errstate(over="ignore"):  # a GPU overflows without a word
        after = _run(before, norm)
    assert after["x_adv"].isfinite().all()
    if size in (0.0, 3e38):  # nothing to follow; so steep that the slack is all of the way
        assert (after["x_adv"][0].double() - _exact(before, 0, norm)).abs().max() < 3e-7


@pytest.mark.parametrize("norm", NORM)
def test_rows_have_the_bits_that_they_have_alone(norm, implementation, device):
    before = _problem(device, 3, 5, 7)
    after = _run(before, norm)
    for row in range(5):
        alone = _run({name: value[row : row + 1] for name, value in before.items()}, norm)
        assert torch.equal(alone["x_adv"][0], after["x_adv"][row])


def test_what_does_not_fit_is_refused():
    state = _problem("cpu", 6)
    for change, message in (
        (dict(norm="l1"), "norm must be one of"),
        (dict(slots=state["slots"][:, :2]), "slots must be"),
        (dict(distance=state["distance"][:2]), "distance must be"),
        (dict(grad=state["grad"][:2]), "grad must match"),
    ):
        given = state | change
        norm = given.pop("norm", "l2")
        with pytest.raises(ValueError, match=message):
            _run(given, norm)
