"""D. What objectives refuse: labels they cannot judge, parameters, a call that was forgotten."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from toy_models import Quadratic

import fastadv
from fastadv import Objective, objectives, training

LINF = fastadv.Linf(0.05)
X = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class _Outputs(torch.nn.Module):
    """As many outputs as `shape` has, differentiable in x."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.Size(self.shape).numel()
        z = (x.flatten(1) * self.weight).sum(1, keepdim=True)
        return (z * torch.linspace(-1, 1.5, count)).reshape(len(x), *self.shape)


PIXELS = torch.zeros(4, 4, 4, dtype=torch.long)
VOID = PIXELS.clone()
VOID[0, 0, 0] = 255
UNKNOWN = PIXELS - 1
IN_WORDS = [
    (objectives.weighted((1.0, 2.0)), (2,), torch.full((4,), 0.7), TypeError, "float32: give y.lo"),
    (
        objectives.weighted((1.0, 2.0)),
        (2,),
        torch.tensor([0, 1, 2, 0]),
        ValueError,
        r"weighted must lie in \[0, 2\), as there are weights; got values from 0 to 2",
    ),
    (
        objectives.weighted((1.0, 2.0)),
        (2,),
        torch.tensor([0, 1, -1, 0]),
        ValueError,
        "got values from -1 to 1",
    ),
    *(
        (objective, shape, torch.full((4, *shape), value), ValueError, rf"be 0 or 1; got {text}$")
        for value, text in ((-1, "-1"), (2, "2"), (0.3, "0.3"), (torch.nan, "nan"))
        for objective, shape in ((objectives.binary(), (1,)), (objectives.multilabel(), (3,)))
    ),
    (
        objectives.soft(),
        (2,),
        torch.tensor([[0.5, 0.5], [1.25, -0.25]] * 2),
        ValueError,
        "sum to 1; got a row with the least -0.25 and the sum 1$",
    ),
    (objectives.soft(), (2,), torch.ones(4, 2), ValueError, "the least 1 and the sum 2$"),
    (objectives.soft(), (2,), torch.full((4, 2), torch.nan), ValueError, "the sum nan$"),
    (
        objectives.segmentation(),
        (3, 4, 4),
        PIXELS.float(),
        TypeError,
        "segmentation must hold integers, classes; got torch.float32: give y.long",
    ),
    (
        objectives.segmentation(),
        (3, 4, 4),
        UNKNOWN,
        ValueError,
        "or ignore_index=-100; got -1. Where -1 marks .* give ignore_index=-1",
    ),
    (
        objectives.segmentation(),
        (3, 4, 4),
        VOID,
        ValueError,
        r"\[0, 3\), the classes of the model; got 255. .*segmentation\(ignore_index=255\)",
    ),
]


@pytest.mark.parametrize(("objective", "shape", "y", "error", "text"), IN_WORDS)
def test_labels_that_cannot_be_judged_are_refused_wherever_y_is_first_seen(
    objective, shape, y, error, text
):
    model = _Outputs(*shape)
    for keep in ("first_success", "last"):
        attack = fastadv.pgd(LINF, steps=2, loss=objective, keep=keep)
        with pytest.raises(error, match=text):
            attack.run(model, X, y)
    with pytest.raises(error, match=text):
        fastadv.evaluate(model, (X, y), fastadv.pgd(LINF, steps=2, loss=objective))
    for method in (training.FastAT, training.FreeAT):
        with pytest.raises(error, match=text):
            list(method(LINF, loss=objective)(model, X, y))


@pytest.mark.parametrize(
    ("objective", "shape", "y"),
    [
        (objectives.weighted((1.0, 2.0)), (2,), torch.tensor([0, 1, 0, 1], dtype=torch.uint8)),
        (objectives.binary(), (1,), torch.tensor([0.0, 1.0, 1.0, 0.0])),
        (objectives.multilabel(), (3,), torch.ones(4, 3, dtype=torch.bool)),
        # what is not attacked is not looked at
        (objectives.multilabel(labels=(0,)), (3,), torch.tensor([[1, -1, 9]] * 4)),
        (objectives.soft(), (3,), torch.tensor([[0.2, 0.3, 0.5]] * 4, dtype=torch.bfloat16)),
        (objectives.soft(), (3,), torch.tensor([[0, 1, 0]] * 4)),
        (objectives.segmentation(ignore_index=255), (3, 4, 4), VOID),
        (objectives.segmentation(ignore_index=255), (3, 4, 4), VOID.to(torch.uint8)),
        (objectives.segmentation(ignore_index=-1), (3, 4, 4), UNKNOWN),
    ],
)
@pytest.mark.filterwarnings("ignore:zero_gradient")  # where no pixel counts
def test_labels_that_can_be_judged_are_taken(objective, shape, y):
    result = fastadv.pgd(LINF, steps=2, loss=objective).run(_Outputs(*shape), X, y)
    assert result.score is not None and bool(result.score.isfinite().all())


def test_pixels_of_later_batches_name_the_remedy_too():
    step = training.FastAT(LINF, loss=objectives.segmentation())
    model = _Outputs(3, 4, 4)
    list(step(model, X, PIXELS))
    with pytest.raises(ValueError, match=r"255 .* of 3 classes. .*segmentation\(ignore_index=255"):
        list(step(model, X, VOID))


def test_a_check_of_ones_own_is_asked_once_a_call():
    seen = []

    def check(y, scale):
        seen.append((tuple(y.shape), scale))
        return int(y.max())

    objective = Objective(
        lambda z, y, scale: z[:, 0] * scale, parameters={"scale": 2.0}, check=check
    )
    attack = fastadv.pgd(LINF, steps=3, loss=objective, keep="last")
    attack(_Outputs(3), X, torch.tensor([0, 2, 1, 0]))
    assert seen == [((4,), 2.0)]
    with pytest.raises(ValueError, match=r"y must lie in \[0, 3\), the classes .*; got 3$"):
        attack(_Outputs(3), X, torch.tensor([0, 3, 1, 0]))
    assert "check=test_a_check_of_ones_own" in repr(objective)
    assert objective != dataclasses.replace(objective, check=None)
    with pytest.raises(TypeError, match=r"check must be a function of \(y\); got 3"):
        Objective(len, check=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        ([True, False, True], TypeError, "not a mask: give the indices; got .True, False, True"),
        (torch.tensor([True, False]), TypeError, "not a mask: give the indices"),
        (np.array([True, False]), TypeError, "not a mask: give the indices"),
        ([1.7], TypeError, r"labels must be integers, indices; got \[1.7\]"),
        ("12", TypeError, r"labels must be indices, as in labels=\(3,\), or None; got '12'"),
        (1, TypeError, r"labels must be indices, as in labels=\(3,\), or None; got 1"),
        (torch.tensor(1), TypeError, "labels must be indices"),
        ([], ValueError, "labels must name one label at least"),
    ],
)
def test_multilabel_takes_indices_alone(labels, error, text):
    with pytest.raises(error, match=text):
        objectives.multilabel(labels=labels)


def test_multilabel_takes_indices_of_any_integer_kind():
    expected = objectives.multilabel(labels=(0, 2))
    for labels in ([0, 2], range(0, 3, 2), torch.tensor([0, 2]), np.array([0, 2])):
        assert objectives.multilabel(labels=labels) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: objectives.regression(tolerance=torch.ones(2)), "tolerance must be a float; got"),
        (lambda: objectives.regression(tolerance="1"), "tolerance must be a float; got '1'"),  # type: ignore[arg-type]
        (lambda: objectives.regression(tolerance=None), "tolerance must be a float; got None"),  # type: ignore[arg-type]
        (lambda: objectives.segmentation(fraction=None), "fraction must be a float; got None"),  # type: ignore[arg-type]
        (lambda: objectives.segmentation(ignore_index=None), "must be an integer; got None"),  # type: ignore[arg-type]
        (lambda: objectives.segmentation(ignore_index=2.5), "must be an integer; got 2.5"),  # type: ignore[arg-type]
    ],
)
def test_parameters_of_another_type_are_named(make, text):
    with pytest.raises(TypeError, match=text):
        make()


def _scaled(output, y, scale=1.0):
    return scale * output[:, 0]


def test_parameters_are_a_copy_that_nobody_changes():
    given = {"scale": 2.0}
    objective = Objective(_scaled, parameters=given)
    given["scale"] = 9.0
    assert objective.parameters == {"scale": 2.0}
    with pytest.raises(TypeError, match="does not support item assignment"):
        objective.parameters["scale"] = 9.0  # type: ignore[index]
    same = Objective(_scaled, parameters={"scale": 2.0})
    for other in (
        same,
        pickle.loads(pickle.dumps(objective)),
        copy.deepcopy(objective),
        dataclasses.replace(objective),
    ):
        assert other == objective and hash(other) == hash(objective)
        assert repr(other) == repr(objective)
        assert other.losses(torch.ones(2, 1), X).tolist() == [2, 2]
    assert dataclasses.asdict(objective)["parameters"] == {"scale": 2.0}


@pytest.mark.parametrize(
    "make",
    [fastadv.fgsm, fastadv.pgd, fastadv.apgd, fastadv.square, training.FastAT, training.FreeAT],
)
def test_a_ready_made_one_must_be_called(make):
    text = r"binary must be called: loss=fastadv.objectives.binary\(\)$"
    with pytest.raises(TypeError, match=text):
        make(LINF, loss=objectives.binary)
    with pytest.raises(TypeError, match=r"called: loss=fastadv.objectives.regression\(...\)$"):
        make(LINF, loss=objectives.regression)


def test_errors_of_logits_are_right_for_those_that_take_no_loss():
    y = torch.zeros(4, dtype=torch.long)
    for shape, text in (
        ((1,), r"judged by fastadv.objectives.binary\(\), which fastadv.pgd and others take as"),
        ((3, 2), "judged by a fastadv.Objective, which fastadv.pgd and others take as loss=$"),
    ):
        with pytest.raises(ValueError, match=text):
            fastadv.pgd(LINF, steps=1)(_Outputs(*shape), X, y)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (fastadv.pgd, "give it success=, or use keep='last' or 'best'$"),
        (fastadv.apgd, "give it success=, or use keep='best'$"),
        (fastadv.square, "give it success=$"),
    ],
)
def test_the_keep_that_is_advised_is_one_that_the_attack_takes(make, remedy):
    with pytest.raises(ValueError, match=remedy):
        make(LINF, loss=Objective(_scaled))


class _Squashed(torch.nn.Module):
    """Confident logits of a quadratic behind a sigmoid."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.inner = Quadratic(48, max(outputs, 2), seed=2)
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x)[:, : self.outputs]
        return (40 * (z - z.detach().median())).sigmoid()


@pytest.mark.parametrize("keep", ["first_success", "last"])
@pytest.mark.parametrize(
    ("objective", "outputs", "y"),
    [
        (objectives.binary(), 1, torch.tensor([0, 1, 0, 1])),
        (objectives.multilabel(), 3, torch.tensor([[0, 1, 1]] * 4)),
        (objectives.soft(), 3, torch.full((4, 3), 1 / 3)),
        (objectives.weighted((1.0, 1.0, 1.0)), 3, torch.tensor([0, 1, 2, 1])),
    ],
)
@pytest.mark.filterwarnings("ignore::fastadv.AttackWarning")
def test_a_sigmoid_before_an_objective_of_logits_is_warned_of(objective, outputs, y, keep):
    model = _Squashed(outputs)
    attack = fastadv.pgd(LINF, steps=2, loss=objective, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="squashed: "):
        attack.run(model, X, y)
    with pytest.warns(fastadv.AttackWarning, match="squashed: "):
        list(training.FastAT(LINF, loss=objective)(model, X, y))


@pytest.mark.filterwarnings("error::fastadv.AttackWarning")
def test_regression_and_objectives_of_ones_own_are_not_judged_by_their_outputs():
    model = _Squashed(3)
    for objective in (objectives.regression(tolerance=1.0), Objective(_scaled, is_large)):
        training.FastAT(LINF, loss=objective)
        assert not objective.expects_logits
        with torch.no_grad():
            y = model(X) + 0.1
        fastadv.pgd(LINF, steps=1, keep="best", loss=objective)(model, X, y)


def is_large(output, y, scale=1.0):
    return output[:, 0] > 2
