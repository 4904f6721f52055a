"""FAB's ops driven by a model: minimal distances of linear models; bad arguments."""

import pytest
import torch
from fab_oracle import exact_projection

from fastadv.kernels import slots as columns
from fastadv.ops.fab.step import fab_nearest_, fab_step_

NORM = {"linf": float("inf"), "l2": 2, "l1": 1}


def arguments(x, labels):
    """The state of a freshly loaded batch."""
    batch = len(x)
    slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=x.device)
    slots[:, columns.SUCCESS_STEP] = -1
    slots[:, columns.ACTIVE] = 1
    return dict(
        labels=labels,
        distance=torch.full((batch,), torch.inf, device=x.device),
        pulled_back=torch.zeros(batch, dtype=torch.bool, device=x.device),
        slots=slots,
        eps=torch.full((batch,), 1e-3, device=x.device),
    )


def attack(x, labels, weight, bias, norm, steps):
    """(closest, state) of the untargeted attack on logits = x @ weight.T + bias."""
    x_adv, closest, state = x.clone(), x.clone(), arguments(x, labels)
    rows = torch.arange(len(x), device=x.device)
    while state["slots"][:, columns.ACTIVE].any():
        logits = x_adv @ weight.T + bias
        grad, difference = torch.zeros_like(x), torch.full((len(x),), torch.nan, device=x.device)
        ratio = torch.full((len(x),), torch.inf, device=x.device)
        for candidate in range(len(weight)):
            fab_nearest_(
                grad,
                difference,
                ratio,
                weight[candidate] - weight[labels],
                logits[:, candidate] - logits[rows, labels],
                labels,
                candidate,
                norm=norm,
            )
        fab_step_(
            x_adv,
            closest,
            grad,
            x,
            difference=difference,
            prediction=logits.argmax(1),
            norm=norm,
            steps=steps,
            stop_early=False,
            **state,
        )
    return closest, state


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_models_are_beaten_at_the_minimal_distance(norm, implementation, device):
    generator = torch.Generator().manual_seed(0)
    x = 0.4 + 0.2 * torch.rand(6, 60, generator=generator).to(device)
    # the nearest class is chosen without the box, which matters in L1: one class but the label
    weight = 0.3 * torch.randn(2 if norm == "l1" else 4, 60, generator=generator).to(device)
    bias = -x.mean(0) @ weight.T
    logits = x.double() @ weight.double().T + bias.double()
    labels = logits.argmax(1)
    closest, state = attack(x, labels, weight, bias, norm, steps=8)
    rows = torch.arange(len(x), device=device)
    distances = []
    for candidate in range(len(weight)):
        w = (weight[candidate] - weight[labels]).double()
        d = exact_projection(x, w, logits[:, candidate] - logits[rows, labels], norm)
        d[labels == candidate] = torch.inf
        distances.append(torch.linalg.vector_norm(d, NORM[norm], dim=1))
    minimal = torch.stack(distances).min(0).values
    assert (state["distance"].double() >= minimal * (1 - 1e-5)).all()
    # eta = 1.05 and beta = 0.9 leave an overshoot that shrinks by half or more a round
    assert (state["distance"].double() <= minimal * 1.01).all()
    found = torch.linalg.vector_norm(closest.double() - x.double(), NORM[norm], dim=1)
    torch.testing.assert_close(found.float(), state["distance"], rtol=1e-5, atol=0)
    assert ((closest @ weight.T + bias).argmax(1) != labels).all()
    assert (state["slots"][:, columns.STEP] == 8).all()


def bad_call(**change):
    x = torch.rand(2, 5)
    state = arguments(x, torch.zeros(2, dtype=torch.int64))
    state |= dict(difference=torch.zeros(2), prediction=torch.zeros(2, dtype=torch.int64))
    state |= dict(norm="linf", steps=3, stop_early=True)
    tensors = dict(x_adv=x.clone(), closest=x.clone(), grad=x.clone(), x=x)
    for name, value in change.items():
        (tensors if name in tensors else state)[name] = value
    fab_step_(*tensors.values(), **state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(norm="l0"), "norm must be one of"),
        (dict(grad=torch.zeros(2, 6)), "grad must match x_adv"),
        (dict(closest=torch.zeros(2, 10)[:, ::2]), "closest must be dense"),
        (dict(closest=torch.zeros(2, 5).double()), "closest must match x_adv"),
        (dict(distance=torch.zeros(2).double()), r"distance must be \(2,\) torch.float32"),
        (dict(pulled_back=torch.zeros(2)), r"pulled_back must be \(2,\) torch.bool"),
        (dict(prediction=torch.zeros(3).long()), r"prediction must be \(2,\) torch.int64"),
        (dict(eps=torch.zeros(4)[::2]), "eps must be contiguous"),
        (dict(slots=torch.zeros(2, 4, dtype=torch.int32)), r"slots must be \(2, 5\) int32"),
        (dict(bounds=(1.0, 0.0)), "bounds must be"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(change, message):
    bad_call()
    with pytest.raises(ValueError, match=message):
        bad_call(**change)
