"""D. `Objective`: what it takes, how it is compared and written, what it says of its functions."""

import dataclasses

import pytest
import torch

import fastadv
from fastadv import Objective


def far(output, y):
    return (output - y).square().mean(1)


def is_far(output, y):
    return far(output, y) > 1


def near(output, y, scale=1.0):
    return -scale * far(output, y)


OUTPUT, Y = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2)


def test_an_objective_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Objective(far).name = "far"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(loss="mse"), TypeError, r"loss must be a function of \(output, y\); got 'mse'"),
        (dict(loss=None), TypeError, r"loss must be a function of \(output, y\); got None"),
        (dict(loss=far, success=True), TypeError, "success must be a function"),
        (dict(loss=far, score=0.5), TypeError, "score must be a function"),
        (dict(loss=far, name=""), ValueError, "name must be a text or None; got ''"),
        (dict(loss=far, name=3), ValueError, "name must be a text or None; got 3"),
        (dict(loss=far, parameters=[1]), TypeError, r"parameters must be a dict; got \[1\]"),
    ],
)
def test_what_is_no_objective_is_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        Objective(**arguments)


def test_functions_name_and_parameters_make_two_objectives_equal():
    one = Objective(near, is_far, name="near", parameters={"scale": 2.0})
    assert one == Objective(near, is_far, name="near", parameters={"scale": 2.0})
    assert hash(one) == hash(Objective(near, is_far, name="near", parameters={"scale": 3.0}))
    others = [
        Objective(far, is_far, name="near", parameters={"scale": 2.0}),
        Objective(near, name="near", parameters={"scale": 2.0}),
        Objective(near, is_far, far, name="near", parameters={"scale": 2.0}),
        Objective(near, is_far, parameters={"scale": 2.0}),
        Objective(near, is_far, name="near"),
        Objective(near, is_far, name="near", parameters={"scale": 3.0}),
        near,
    ]
    assert one not in others
    weight = torch.ones(2)
    held = [Objective(far, parameters={"w": rows}) for rows in (weight, weight.clone(), 0 * weight)]
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize(
    ("objective", "text"),
    [
        (Objective(far), "fastadv.Objective(far)"),
        (Objective(far, is_far), "fastadv.Objective(far, success=is_far)"),
        (
            Objective(near, is_far, far, name="ours", parameters={"scale": 0.5}),
            "fastadv.Objective(near, success=is_far, score=far, name='ours', "
            "parameters={'scale': 0.5})",
        ),
        (
            Objective(near, parameters={"scale": torch.tensor([1.0])}),
            "fastadv.Objective(near, parameters={'scale': torch.tensor([1.0], "
            "dtype=torch.float32)})",
        ),
    ],
)
def test_repr_can_be_pasted_where_the_functions_are_known(objective, text):
    assert repr(objective) == text
    names = {"fastadv": fastadv, "torch": torch, "far": far, "near": near, "is_far": is_far}
    assert eval(text, names) == objective


def test_the_repr_of_an_attack_holds_its_objective():
    attack = fastadv.pgd(fastadv.Linf(0.1), loss=fastadv.objectives.regression(tolerance=0.5))
    assert "loss=fastadv.objectives.regression(tolerance=0.5)" in repr(attack)
    assert eval(repr(attack), {"fastadv": fastadv}) == attack


def test_parameters_reach_all_three():
    def scaled(output, y, factor):
        return factor * output[:, 0]

    def over(output, y, factor):
        return output[:, 0] > factor

    objective = Objective(scaled, over, scaled, parameters={"factor": 0.5})
    assert objective.losses(OUTPUT, Y).tolist() == [0, 1]
    assert objective.verdict(OUTPUT, Y).tolist() == [[1, 0], [0, 1]]
    assert objective.scores(OUTPUT, Y).tolist() == [0, 1]  # type: ignore[union-attr]


def test_without_success_nothing_is_one_and_without_score_there_is_none():
    assert Objective(far).verdict(OUTPUT, Y).tolist() == [[1, 0], [1, 0]]
    assert Objective(far).scores(OUTPUT, Y) is None


def test_an_output_with_nan_is_no_success():
    """argmax(1) of NaN is no class; the verdict says NaN, which every reader of logits refuses."""
    output = torch.tensor([[torch.nan, 9.0], [9.0, 9.0]])
    verdict = Objective(far, lambda output, y: torch.ones(len(output), dtype=torch.bool)).verdict
    assert verdict(output, Y).isnan().tolist() == [[True, True], [False, False]]
    image = output.reshape(2, 1, 2, 1)
    assert verdict(image, Y).isnan().any(1).tolist() == [True, False]


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda output, y: output.mean(), r"\(\)"),
        (lambda output, y: output, r"\(2, 2\)"),
        (lambda output, y: output[:1, 0], r"\(1,\)"),
        (lambda output, y: [0.0, 0.0], "list"),
    ],
)
@pytest.mark.parametrize("what", ["losses", "verdict", "scores"])
def test_one_value_a_sample_is_asked_for(value, got, what):
    objective = Objective(value, value, value, name="odd")
    name = {"losses": "loss", "verdict": "success", "scores": "score"}[what]
    with pytest.raises(
        ValueError,
        match=f"{name} of fastadv.Objective.*'odd'.* must give one value"
        f" a sample, \\(2,\\); got {got}",
    ):
        getattr(objective, what)(OUTPUT, Y)


def test_success_must_be_bool():
    with pytest.raises(TypeError, match=r"success must give \(B,\) bool; got torch.float32"):
        Objective(far, far).verdict(OUTPUT, Y)
