"""Contract C6: shapes, dtypes, label dtypes, class counts, radii and bounds."""

import pytest
import torch
from small_cases import KEEPS, attack_of, case_of, size_of
from toy_models import (
    NORMS,
    differing_fields,
    mixed_problem,
    rows_of,
    same_bits,
    threat_of,
)

import fastadv

SHAPES = [(), (5,), (3, 4, 5), (2, 3, 2, 4), (1, 2, 3, 2, 2), (1, 1, 1), (1, 3, 3)]


def _with_a_keep(values):
    """(value, norm, keep): each value meets every norm and every way to keep, in turns."""
    return [
        pytest.param(value, norm, KEEPS[(i + k) % 3], id=f"{value}-{norm}")
        for i, value in enumerate(values)
        for k, norm in enumerate(NORMS)
    ]


@pytest.mark.parametrize(("shape", "norm", "keep"), _with_a_keep(SHAPES))
def test_every_shape(shape, norm, keep):
    model, x = case_of(shape)
    # a scalar sample has a diameter of 1 in every norm
    threat = threat_of(norm, 2.0 if size_of(shape) > 4 else 0.4)
    result = attack_of(norm, keep, threat=threat).run(model, x)
    assert result.x_adv.shape == x.shape
    assert result.success.shape == (7,)
    assert (result.distance > 0).any()
    # the shape has no part in the mathematics: the same bits as for rows
    flat = attack_of(norm, keep, threat=threat).run(model, x.reshape(7, -1))
    assert same_bits(flat.x_adv.view(x.shape), result.x_adv)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4), (2, 3, 2, 4)], ids=str)
def test_an_empty_batch(shape, norm, keep):
    model, x = case_of(shape, n=0)
    attack = attack_of(norm, keep, threat=threat_of(norm, 0.4))
    for y in (None, torch.zeros(0, dtype=torch.long)):
        result = attack.run(model, x, y)
        assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype
        for name in ("success", "loss", "distance", "step", "prediction"):
            assert getattr(result, name).shape == (0,), name
        assert (result.forwards, result.backwards) == (0, 0)
        assert attack(model, x, y).shape == x.shape


def test_an_empty_batch_has_the_dtypes_of_a_full_one():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, x = case_of((5,), dtype=dtype)
        full, empty = (attack_of("linf").run(model, rows) for rows in (x, x[:0]))
        for name in ("x_adv", "success", "loss", "distance", "step", "prediction"):
            assert getattr(full, name).dtype == getattr(empty, name).dtype, (dtype, name)


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_of_per_sample_radii(norm):
    model, x = case_of((5,), n=0)
    threat = type(threat_of(norm))(torch.zeros(0))
    assert attack_of(norm, threat=threat).run(model, x).x_adv.shape == (0, 5)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
def test_one_sample(norm, keep):
    model, x = case_of((3, 4, 5))
    attack = attack_of(norm, keep)
    whole = attack.run(model, x)
    one = attack.run(model, x[:1])
    assert differing_fields(one, rows_of(whole, torch.arange(1))) == []


@pytest.mark.parametrize(
    ("dtype", "norm", "keep"), _with_a_keep([torch.float64, torch.float16, torch.bfloat16])
)
def test_every_dtype(dtype, norm, keep):
    model, x = case_of((3, 4, 4), dtype=dtype)
    result = attack_of(norm, keep).run(model, x)
    assert result.x_adv.dtype == dtype
    assert result.success.any()
    assert attack_of(norm, keep)(model, x).dtype == dtype
    assert result.x_adv.isfinite().all() and result.loss.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_images_of_a_float_model(dtype):
    model, x = case_of((3, 4, 4))
    result = attack_of("linf").run(lambda z: model(z.float()), x.to(dtype))
    assert result.success.any() and result.x_adv.dtype == dtype


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.int64], ids=str
)
def test_every_label_dtype(dtype):
    problem, attack = mixed_problem(16), attack_of("linf")
    expected = attack.run(problem.model, problem.x, problem.y)
    got = attack.run(problem.model, problem.x, problem.y.to(dtype))
    assert differing_fields(got, expected) == []
    target = (problem.y + 1) % 5
    aimed = attack.run(problem.model, problem.x, problem.y, target=target)
    got = attack.run(problem.model, problem.x, problem.y, target=target.to(dtype))
    assert differing_fields(got, aimed) == []


@pytest.mark.parametrize("loss", ["ce", "margin", "kl"])
@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_every_number_of_classes(classes, loss):
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(classes, 48, generator=generator)
    x = torch.rand(4, 3, 4, 4, generator=generator)

    def model(z):
        return z.flatten(1) @ weight.t()

    for target in (None,) if loss == "kl" else (None, "random", "least_likely", "second_best"):
        result = attack_of("linf", loss=loss).run(model, x, target=target)
        assert result.success.any() or target is not None
        if target is None:
            assert torch.equal(result.success, result.prediction != result.clean_prediction)


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_at_its_fewest_classes(targeted):
    model, x = case_of((3, 4, 4), classes=4 if targeted else 3)
    result = attack_of("linf", loss="dlr").run(model, x, target="second_best" if targeted else None)
    assert result.success.any()


@pytest.mark.parametrize("keep", KEEPS)
def test_no_labels_means_the_predictions_of_the_model(keep):
    problem = mixed_problem(16)
    with torch.no_grad():
        y = problem.model(problem.x).argmax(1)
    attack = attack_of("linf", keep)
    expected, result = (attack.run(problem.model, problem.x, labels) for labels in (y, None))
    # with keep="last" the given labels save the look at the clean samples
    assert set(differing_fields(result, expected)) <= {"clean_prediction"}
    assert torch.equal(result.clean_prediction, y)


@pytest.mark.parametrize(
    ("bounds", "norm", "keep"), _with_a_keep([(-1.0, 1.0), (0.0, 255.0), (0.2, 0.4), None])
)
def test_other_bounds(bounds, norm, keep):
    lo, hi = bounds or (-3.0, 3.0)
    problem = mixed_problem(16)
    x = lo + (hi - lo) * problem.x

    def model(z):
        return problem.model((z - lo) / (hi - lo))

    threat = threat_of(norm)
    threat = type(threat)(threat.eps * 2 * (hi - lo), bounds=bounds)
    result = attack_of(norm, keep, threat=threat).run(model, x)
    assert result.success.any()
    if bounds is None:
        assert (result.x_adv.amax() > hi) or (result.x_adv.amin() < lo)
    else:
        assert result.x_adv.amin() >= lo and result.x_adv.amax() <= hi
        assert (result.x_adv.amin() == lo) or (result.x_adv.amax() == hi)


@pytest.mark.filterwarnings("ignore:zero_radius")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
def test_per_sample_radii_equal_separate_attacks(norm, keep):
    problem = mixed_problem(6)
    threat = threat_of(norm)
    eps = threat.eps * torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 0.25])
    step = eps / 3
    result = fastadv.pgd(type(threat)(eps), steps=4, step_size=step, keep=keep).run(
        problem.model, problem.x, problem.y
    )
    for i in range(6):
        alone = fastadv.pgd(
            type(threat)(float(eps[i])), steps=4, step_size=float(step[i]), keep=keep
        ).run(
            problem.model, problem.x[i : i + 1], problem.y[i : i + 1], sample_ids=torch.tensor([i])
        )
        assert differing_fields(alone, rows_of(result, torch.tensor([i]))) == [], i


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.float32], ids=str)
def test_radii_of_another_dtype_and_of_no_dimension(kind):
    problem = mixed_problem(6)
    eps = torch.full((6,), 0.0625, dtype=kind)  # exact in every dtype

    def run(radius):
        attack = fastadv.pgd(fastadv.Linf(radius), steps=3, step_size=1 / 64)
        return attack.run(problem.model, problem.x, problem.y)

    expected = run(0.0625)
    for radius in (eps, eps[0]):
        result = run(radius)
        assert differing_fields(result, expected) == []


@pytest.mark.filterwarnings("ignore:zero_radius")
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_radius_of_zero_leaves_x_as_it_is(norm, keep):
    problem = mixed_problem(16)
    threat = type(threat_of(norm))(0.0)
    for attack in (
        fastadv.pgd(threat, steps=3, keep=keep),
        fastadv.pgd(threat, steps=3, step_size=0.1, keep=keep, random_start=False),
    ):
        result = attack.run(problem.model, problem.x, problem.y)
        assert same_bits(result.x_adv, problem.x)
        assert (result.distance == 0).all()
        with torch.no_grad():
            wrong = problem.model(problem.x).argmax(1) != problem.y
        assert torch.equal(result.success, wrong) and wrong.any()


def test_a_model_that_returns_its_input():
    x = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    for keep in KEEPS:
        result = attack_of("linf", keep, threat=fastadv.Linf(0.1)).run(lambda z: z, x)
        assert result.success.any() and not result.success.all()
        assert torch.equal(result.success, result.x_adv.argmax(1) != x.argmax(1))


def test_all_samples_already_wrong():
    problem = mixed_problem(6)
    with torch.no_grad():
        y = (problem.model(problem.x).argmax(1) + 1) % 5
    result = attack_of("linf").run(problem.model, problem.x, y)
    assert result.success.all() and (result.step == 0).all()
    assert same_bits(result.x_adv, problem.x)
    assert result.backwards == 0
