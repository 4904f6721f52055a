"""D. The ready-made objectives, by values worked out by hand: loss, success, score, gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastadv import objectives
from fastadv.objective import Objective

LN2, LN3 = math.log(2), math.log(3)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def _judged(objective: Objective, output: torch.Tensor, y: torch.Tensor):
    """(loss, success, score) as lists, and the gradient of the summed loss."""
    leaf = output.clone().requires_grad_()
    loss = objective.losses(leaf, y)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    success = objective.verdict(output, y)
    assert success.shape == (len(output), 2) and torch.equal(success.sum(1), success.amax(1))
    score = objective.scores(output, y)
    assert score is not None and loss.shape == score.shape == output.shape[:1]
    return loss.tolist(), success.argmax(1).bool().tolist(), score.tolist(), grad


def _near(values: list[float], dtype: torch.dtype = torch.float32):
    """Within 4 roundings of the output's own precision: BCE and CE are a few operations long."""
    return pytest.approx(values, rel=4 * torch.finfo(dtype).eps, abs=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("shapes", [((4,), (4,)), ((4, 1), (4,)), ((4,), (4, 1)), ((4, 1), (4, 1))])
def test_binary(dtype, kind, shapes):
    """BCE(z, 1) = ln(1 + e^-z), BCE(z, 0) = ln(1 + e^z): with z = ln 3, ln 4/3 and ln 4. z = 0 says
    class 0."""
    z = torch.tensor([LN3, LN3, -LN3, 0.0], dtype=dtype).reshape(shapes[0])
    y = torch.tensor([1, 0, 1, 0]).to(kind).reshape(shapes[1])
    loss, success, score, grad = _judged(objectives.binary(), z, y)
    assert loss == _near([math.log(4 / 3), math.log(4), math.log(4), LN2], dtype)
    assert success == [False, True, True, False]
    assert score == [1, 0, 0, 1]
    # sigmoid(z) - y
    assert grad.shape == z.shape
    assert grad.flatten().tolist() == _near([-0.25, 0.75, -0.75, 0.5], dtype)


@pytest.mark.parametrize(
    ("z", "y"),
    [((4, 2), (4,)), ((4, 1, 1), (4,)), ((4, 1), (4, 2)), ((4,), (4, 1, 1))],
)
def test_binary_takes_one_logit_and_one_label(z, y):
    with pytest.raises(ValueError, match=r"binary takes one logit and one label a sample; got \("):
        objectives.binary().losses(torch.zeros(z), torch.zeros(y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("objective", [objectives.binary(), objectives.multilabel()], ids=str)
def test_a_confident_model_has_a_gradient(objective, dtype):
    """Of torch's own BCE it is exactly 0 from 17 on in float32: an attack would not move."""
    z = torch.tensor([[20.0], [-20.0], [60.0], [-60.0]], dtype=dtype)
    y = torch.tensor([[1], [0], [1], [0]])
    _, _, _, grad = _judged(objective, z, y)
    signs = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    wanted = signs * torch.tensor([-20.0, -20, -60, -60], dtype=torch.float64).sigmoid()
    assert grad.flatten().tolist() == pytest.approx(
        wanted.tolist(), rel=4 * torch.finfo(dtype).eps, abs=0
    )
    _, _, _, grad = _judged(objective, -z, y)
    assert grad.flatten().tolist() == _near(signs.tolist(), torch.bfloat16)  # e^-20 less


Z = [[LN3, -LN3, 0.0], [LN3, LN3, LN3]]
LABELS = [[1, 0, 0], [1, 1, 0]]
BCE = [[math.log(4 / 3), math.log(4 / 3), LN2], [math.log(4 / 3), math.log(4 / 3), math.log(4)]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.bool, torch.int16, torch.float64])
def test_multilabel(dtype, kind):
    z, y = torch.tensor(Z, dtype=dtype), torch.tensor(LABELS).to(kind)
    loss, success, score, grad = _judged(objectives.multilabel(), z, y)
    assert loss == _near([sum(row) / 3 for row in BCE], dtype)
    assert success == [False, True]
    assert score == _near([1, 2 / 3])
    assert grad.tolist()[1] == _near([-0.25 / 3, -0.25 / 3, 0.75 / 3], dtype)


def test_multilabel_looks_at_the_given_labels_alone():
    z, y = torch.tensor(Z), torch.tensor(LABELS)
    loss, success, score, grad = _judged(objectives.multilabel(labels=[0, 1]), z, y)
    assert loss == _near([sum(row[:2]) / 2 for row in BCE])
    assert success == [False, False] and score == [1, 1]
    assert grad[:, 2].tolist() == [0, 0]
    loss, success, score, _ = _judged(objectives.multilabel(labels=(-1,)), z, y)
    assert loss == _near([LN2, math.log(4)]) and success == [False, True] and score == [1, 0]


def test_multilabel_errors():
    with pytest.raises(ValueError, match="labels must name one label at least"):
        objectives.multilabel(labels=())
    with pytest.raises(ValueError, match=r"labels must be among the 3 of the model; got \(3,\)"):
        objectives.multilabel(labels=(3,)).losses(torch.zeros(2, 3), torch.zeros(2, 3))
    for y in (torch.zeros(2), torch.zeros(2, 4)):
        with pytest.raises(ValueError, match=r"multilabel takes \(B, L\) logits and labels alike"):
            objectives.multilabel().losses(torch.zeros(2, 3), y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_regression(dtype):
    """Powers of two: exact in every precision. Off by exactly the tolerance is no success."""
    output = torch.tensor([[1.0, 2.0], [1.0, -1.0], [0.0, 0.25]], dtype=dtype)
    y = torch.tensor([[0.5, 2.0], [1.0, 1.0], [0.0, 0.0]], dtype=dtype)
    loss, success, score, grad = _judged(objectives.regression(tolerance=0.5), output, y)
    assert loss == [0.125, 2.0, 0.03125]
    assert success == [False, True, False]
    assert score == [0.25, 1.0, 0.125]
    assert grad.tolist() == [[0.5, 0.0], [0.0, -2.0], [0.0, 0.25]]  # 2 (f - y) / 2


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((3, 1), (3,)), ((3, 1, 1), (3, 1, 1))])
def test_regression_takes_a_column_for_a_vector(shapes):
    output = torch.tensor([1.0, 2.0, 3.0]).reshape(shapes[0])
    y = torch.tensor([1.0, 1.0, 1.0]).reshape(shapes[1])
    loss, success, score, _ = _judged(objectives.regression(tolerance=1.5), output, y)
    assert (loss, success, score) == ([0, 1, 4], [False, False, True], [0, 1, 2])


def test_regression_errors():
    for tolerance in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="tolerance must be finite and not negative; got"):
            objectives.regression(tolerance=tolerance)
    with pytest.raises(ValueError, match=r"of one shape; got \(3, 2\) and \(3,\)"):
        objectives.regression(tolerance=1.0).losses(torch.zeros(3, 2), torch.zeros(3))


# two classes, four pixels: the first is right where its label is 0
PIXELS = torch.tensor([[LN3] * 4, [0.0] * 4], dtype=torch.float64).reshape(1, 2, 2, 2)
RIGHT, WRONG = math.log(4 / 3), math.log(4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.int64, torch.int16])
def test_segmentation(dtype, kind):
    """Of four pixels 4, 1 and 0 are right: at fraction=0.25 one may be."""
    y = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).reshape(3, 2, 2).to(kind)
    output = PIXELS.expand(3, -1, -1, -1).to(dtype)
    objective = objectives.segmentation(fraction=0.25)
    loss, success, score, grad = _judged(objective, output, y)
    assert loss == _near([RIGHT, (RIGHT + 3 * WRONG) / 4, WRONG], dtype)
    assert success == [False, True, True]
    assert score == [1, 0.25, 0]
    # (softmax - onehot) / 4: 3/4 and 1/4 of the classes
    assert grad[1, 0].flatten().tolist() == _near([-1 / 16, 3 / 16, 3 / 16, 3 / 16], dtype)
    _, success, _, _ = _judged(objectives.segmentation(fraction=0.2), output, y)
    assert success == [False, False, True]


@pytest.mark.parametrize("ignore", [-100, 255, 1])
def test_segmentation_leaves_ignored_pixels_out(ignore):
    """With three of four ignored one decides; where none is valid nothing is gained or claimed."""
    y = torch.tensor([[0, ignore, ignore, ignore], [ignore] * 4]).reshape(2, 2, 2)
    objective = objectives.segmentation(fraction=0, ignore_index=ignore)
    output = PIXELS.expand(2, -1, -1, -1)
    loss, success, score, grad = _judged(objective, output, y)
    assert loss == _near([RIGHT, 0]) and success == [False, False] and score == [1, 1]
    assert grad[0, 0].flatten().tolist() == _near([-0.25, 0, 0, 0])
    assert not grad[1].any()
    _, success, score, _ = _judged(objective, output.flip(1), y)
    assert success == [True, False] and score == [0, 1]


def test_segmentation_takes_any_number_of_axes():
    """Of sequences and volumes: torch's own mean over valid pixels, a sample at a time."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((5,), (2, 3, 2)):
        output = torch.randn((4, 3, *shape), generator=generator, dtype=torch.float64)
        y = torch.randint(3, (4, *shape), generator=generator)
        y[..., 0] = -100
        loss, *_ = _judged(objectives.segmentation(), output, y)
        own = [F.cross_entropy(z[None], t[None]) for z, t in zip(output, y, strict=True)]
        assert loss == _near([float(value) for value in own], torch.float64)


def test_segmentation_errors():
    for fraction in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\); got"):
            objectives.segmentation(fraction=fraction)
    for y in (torch.zeros(1, dtype=torch.long), torch.zeros(1, 2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"segmentation takes \(B, C, H, W\) logits and"):
            objectives.segmentation().losses(PIXELS, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_soft(dtype):
    """softmax(ln 3, 0) = (3/4, 1/4)."""
    output = torch.tensor([[LN3, 0.0], [LN3, 0.0]], dtype=dtype)
    y = torch.tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)
    loss, success, score, grad = _judged(objectives.soft(), output, y)
    mixed = [
        0.75 * math.log(4 / 3) + 0.25 * math.log(4),
        0.25 * math.log(4 / 3) + 0.75 * math.log(4),
    ]
    assert loss == _near(mixed, dtype)
    assert success == [False, True] and score == [1, 0]
    assert grad.flatten().tolist() == _near([0, 0, 0.5, -0.5], dtype)


def test_soft_with_one_hot_labels_is_cross_entropy():
    output = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 4
    one_hot = F.one_hot(labels, 4)
    loss = objectives.soft().losses(output, one_hot)
    assert loss.tolist() == _near(F.cross_entropy(output, labels, reduction="none").tolist())
    with pytest.raises(ValueError, match=r"soft takes \(B, C\) logits and probabilities alike"):
        objectives.soft().losses(output, labels)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.int64, torch.int16])
def test_weighted(dtype, kind):
    """torch's cross_entropy(weight=) of each sample, which without a mean is not normalised."""
    output = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output, y = output.to(dtype), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.tensor([1.0, 0.0, 4.0])
    loss, success, score, grad = _judged(objectives.weighted(weights), output, y.to(kind))
    own = F.cross_entropy(output, y, weight=weights.to(dtype), reduction="none")
    assert loss == own.tolist()
    wrong = output.argmax(1) != y
    assert success == wrong.tolist() and score == (~wrong).float().tolist()
    assert True in success and False in success
    # the step of a sample is not smaller for those beside it: w (softmax - onehot)
    share = output.double().softmax(1) - F.one_hot(y, 3)
    assert grad.flatten().tolist() == _near((share * weights[y][:, None]).flatten().tolist(), dtype)


def test_weighted_errors():
    for weights in ([1.0, -1.0], [[1.0]], [1.0, math.inf], 1.0):
        with pytest.raises(ValueError, match=r"class_weights must be \(C,\) finite and not neg"):
            objectives.weighted(weights)  # type: ignore[arg-type]
    objective = objectives.weighted((1.0, 2.0))
    with pytest.raises(ValueError, match=r"weighted takes \(B, 2\) logits, as there are weights"):
        objective.losses(torch.zeros(2, 3), torch.zeros(2))


def test_weights_are_kept_apart_from_the_tensor_that_was_given():
    given = torch.ones(2)
    objective = objectives.weighted(given)
    given.fill_(7)
    assert objective == objectives.weighted((1.0, 1.0))


MADE = {
    "fastadv.objectives.binary()": objectives.binary(),
    "fastadv.objectives.multilabel()": objectives.multilabel(),
    "fastadv.objectives.multilabel(labels=(1, 3))": objectives.multilabel(labels=[1, 3]),
    "fastadv.objectives.regression(tolerance=0.5)": objectives.regression(tolerance=0.5),
    "fastadv.objectives.segmentation(fraction=0.1, ignore_index=-100)": objectives.segmentation(),
    "fastadv.objectives.segmentation(fraction=0.0, ignore_index=255)": objectives.segmentation(
        fraction=0, ignore_index=255
    ),
    "fastadv.objectives.soft()": objectives.soft(),
    "fastadv.objectives.weighted(class_weights=torch.tensor([1.0, 5.0], dtype=torch.float32))": (
        objectives.weighted((1, 5))
    ),
}


@pytest.mark.parametrize("text", MADE)
def test_repr_can_be_pasted_back(text):
    import fastadv

    objective = MADE[text]
    assert repr(objective) == text
    pasted = eval(text, {"fastadv": fastadv, "torch": torch})
    assert pasted == objective and hash(pasted) == hash(objective)
    others = [other for name, other in MADE.items() if name != text]
    assert objective not in others
