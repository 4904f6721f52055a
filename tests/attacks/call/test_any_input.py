"""Contract C6: shapes, dtypes, memory formats, label dtypes, class counts, radii and bounds."""

import pytest
import torch
from torch import nn
from toy_models import (
    NORMS,
    Quadratic,
    differing_fields,
    mixed_problem,
    rows_of,
    same_bits,
    threat_of,
)

import fastadv

KEEPS = ("first_success", "best", "last")
SHAPES = [(), (5,), (3, 4, 5), (2, 3, 2, 4), (1, 2, 3, 2, 2), (1, 1, 1), (1, 3, 3)]


def _size(shape):
    return int(torch.tensor(shape).prod()) if shape else 1


def _case(shape, n=7, dtype=torch.float32, classes=4):
    model = Quadratic(_size(shape), classes, seed=3, dtype=dtype)
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(4)).to(dtype)
    return model, x


def _attack(norm, keep="first_success", **more):
    threat = more.pop("threat", None) or threat_of(norm, 2.0)
    options = dict(restarts=1 if keep == "last" else 2) | more
    return fastadv.pgd(threat, steps=4, keep=keep, **options)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape, norm, keep):
    model, x = _case(shape)
    # a scalar sample has a diameter of 1 in every norm
    threat = threat_of(norm, 2.0 if _size(shape) > 4 else 0.4)
    result = _attack(norm, keep, threat=threat).run(model, x)
    assert result.x_adv.shape == x.shape
    assert result.success.shape == (7,)
    assert (result.distance > 0).any()
    # the shape has no part in the mathematics: the same bits as for rows
    flat = _attack(norm, keep, threat=threat).run(model, x.reshape(7, -1))
    assert same_bits(flat.x_adv.view(x.shape), result.x_adv)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4), (2, 3, 2, 4)], ids=str)
def test_an_empty_batch(shape, norm, keep):
    model, x = _case(shape, n=0)
    attack = _attack(norm, keep, threat=threat_of(norm, 0.4))
    for y in (None, torch.zeros(0, dtype=torch.long)):
        result = attack.run(model, x, y)
        assert result.x_adv.shape == x.shape and result.x_adv.dtype == x.dtype
        for name in ("success", "loss", "distance", "step", "prediction"):
            assert getattr(result, name).shape == (0,), name
        assert (result.forwards, result.backwards) == (0, 0)
        assert attack(model, x, y).shape == x.shape


def test_an_empty_batch_has_the_dtypes_of_a_full_one():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model, x = _case((5,), dtype=dtype)
        full, empty = (_attack("linf").run(model, rows) for rows in (x, x[:0]))
        for name in ("x_adv", "success", "loss", "distance", "step", "prediction"):
            assert getattr(full, name).dtype == getattr(empty, name).dtype, (dtype, name)


@pytest.mark.parametrize("norm", NORMS)
def test_an_empty_batch_of_per_sample_radii(norm):
    model, x = _case((5,), n=0)
    threat = type(threat_of(norm))(torch.zeros(0))
    assert _attack(norm, threat=threat).run(model, x).x_adv.shape == (0, 5)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
def test_one_sample(norm, keep):
    model, x = _case((3, 4, 5))
    attack = _attack(norm, keep)
    whole = attack.run(model, x)
    one = attack.run(model, x[:1])
    assert differing_fields(one, rows_of(whole, torch.arange(1))) == []


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype(dtype, norm, keep):
    model, x = _case((3, 4, 4), dtype=dtype)
    result = _attack(norm, keep).run(model, x)
    assert result.x_adv.dtype == dtype
    assert result.success.any()
    assert _attack(norm, keep)(model, x).dtype == dtype
    assert result.x_adv.isfinite().all() and result.loss.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_images_of_a_float_model(dtype):
    model, x = _case((3, 4, 4))
    result = _attack("linf").run(lambda z: model(z.float()), x.to(dtype))
    assert result.success.any() and result.x_adv.dtype == dtype


def _views():
    base = torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    yield "channels_last", base.contiguous(memory_format=torch.channels_last)
    yield "sliced", base[..., ::2, 1:5]
    yield "strided batch", torch.cat([base, base])[::2]
    yield "sliced channels_last", base.contiguous(memory_format=torch.channels_last)[..., 1:4, :]
    yield "channel slice", torch.cat([base, base], 1)[:, 1:4]
    yield "transposed", base.transpose(1, 3)
    yield "transposed batch", base.permute(1, 0, 2, 3)[:, :3]
    yield "expanded", base[:1].expand(7, 3, 6, 6)
    yield "expanded channels", base[:, :1].expand(7, 3, 6, 6)
    yield "offset", torch.cat([base.flatten(), base.new_zeros(1)])[1:].view(base.shape)
    yield "one channel last", base[:, :1].contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("execution", ["plain", "continuous"])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize(
    ("name", "x"), list(_views()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_memory_layout_gives_the_same_bits(name, x, keep, execution):
    model = Quadratic(x[0].numel(), 4, seed=3)
    dense = x.clone(memory_format=torch.contiguous_format)
    attack = _attack("linf", keep)
    way = fastadv.Execution(batching=execution, batch_size=3)
    expected = attack.run(model, dense, execution=way)
    result = attack.run(model, x, execution=way)
    assert expected.success.any()
    assert differing_fields(result, expected) == []
    assert same_bits(attack(model, x, execution=way), expected.x_adv)
    assert same_bits(x, dense)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
def test_channels_last_is_kept(norm, keep, batch_size):
    model, x = _case((3, 4, 5))
    x = x.contiguous(memory_format=torch.channels_last)
    way = fastadv.Execution(batch_size=batch_size)
    attack = _attack(norm, keep)
    assert attack.run(model, x, execution=way).x_adv.stride() == x.stride()
    assert attack(model, x, execution=way).stride() == x.stride()


def test_channels_last_3d_is_kept():
    model, x = _case((2, 3, 2, 4))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for keep in KEEPS:
        assert _attack("linf", keep)(model, x).stride() == x.stride(), keep


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.int64], ids=str
)
def test_every_label_dtype(dtype):
    problem = mixed_problem(16)
    expected = _attack("linf").run(problem.model, problem.x, problem.y)
    assert (
        differing_fields(
            _attack("linf").run(problem.model, problem.x, problem.y.to(dtype)), expected
        )
        == []
    )
    target = (problem.y + 1) % 5
    aimed = _attack("linf").run(problem.model, problem.x, problem.y, target=target)
    assert (
        differing_fields(
            _attack("linf").run(problem.model, problem.x, problem.y, target=target.to(dtype)), aimed
        )
        == []
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_strided_labels_and_ids(dtype):
    problem = mixed_problem(16)
    pairs = torch.stack([problem.y, -problem.y], 1).to(dtype)
    ids = torch.stack([torch.arange(16), torch.arange(16)], 1).to(dtype)
    expected = _attack("linf").run(problem.model, problem.x, problem.y)
    result = _attack("linf").run(problem.model, problem.x, pairs[:, 0], sample_ids=ids[:, 0])
    assert differing_fields(result, expected) == []


@pytest.mark.parametrize("loss", ["ce", "margin", "kl"])
@pytest.mark.parametrize("classes", [2, 3, 1000])
def test_every_number_of_classes(classes, loss):
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(classes, 48, generator=generator)
    x = torch.rand(4, 3, 4, 4, generator=generator)

    def model(z):
        return z.flatten(1) @ weight.t()

    for target in (None,) if loss == "kl" else (None, "random", "least_likely", "second_best"):
        result = _attack("linf", loss=loss).run(model, x, target=target)
        assert result.success.any() or target is not None
        if target is None:
            assert torch.equal(result.success, result.prediction != result.clean_prediction)


@pytest.mark.parametrize("targeted", [False, True])
def test_dlr_at_its_fewest_classes(targeted):
    model, x = _case((3, 4, 4), classes=4 if targeted else 3)
    result = _attack("linf", loss="dlr").run(model, x, target="second_best" if targeted else None)
    assert result.success.any()


@pytest.mark.parametrize("keep", KEEPS)
def test_no_labels_means_the_predictions_of_the_model(keep):
    problem = mixed_problem(16)
    with torch.no_grad():
        y = problem.model(problem.x).argmax(1)
    attack = _attack("linf", keep)
    expected, result = (attack.run(problem.model, problem.x, labels) for labels in (y, None))
    # with keep="last" the given labels save the look at the clean samples
    assert set(differing_fields(result, expected)) <= {"clean_prediction"}
    assert torch.equal(result.clean_prediction, y)


@pytest.mark.parametrize("batching", ["plain", "continuous"])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_normalisation_changes_no_bit(dtype, norm, keep, batching):
    class Normalising(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            mean = torch.tensor([0.49, 0.48, 0.45], dtype=torch.float32).to(x.dtype)
            std = torch.tensor([0.25, 0.3, 0.7], dtype=torch.float32).to(x.dtype)
            return self.model((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))

    problem = mixed_problem(24, dtype=dtype)
    plain = Normalising(problem.model)
    fused = fastadv.Normalized(problem.model, mean=(0.49, 0.48, 0.45), std=(0.25, 0.3, 0.7))
    with torch.no_grad():
        y = plain(problem.x).argmax(1)
    y[::5] = (y[::5] + 1) % 5
    attack = _attack(norm, keep, threat=threat_of(norm, 0.7 if norm != "l1" else 0.3))
    way = fastadv.Execution(batching=batching, batch_size=7)
    expected = attack.run(plain, problem.x, y, execution=way)
    assert expected.success.any() and not expected.success.all()
    assert differing_fields(attack.run(fused, problem.x, y, execution=way), expected) == []
    last = problem.x.contiguous(memory_format=torch.channels_last)
    assert differing_fields(attack.run(fused, last, y, execution=way), expected) == []


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 2, 2)], ids=str)
def test_fused_normalisation_of_other_shapes(shape):
    model, x = _case(shape)
    fused = fastadv.Normalized(model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert (
        differing_fields(_attack("linf").run(fused, x), _attack("linf").run(fused.forward, x)) == []
    )


def test_fused_normalisation_with_momentum_and_eot():
    problem = mixed_problem(24)
    fused = fastadv.Normalized(problem.model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    for attack in (fastadv.mifgsm(threat_of("linf")), _attack("l2", eot=2)):
        expected = attack.run(fused.forward, problem.x, problem.y)
        assert differing_fields(attack.run(fused, problem.x, problem.y), expected) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_normalisation_in_half_precision(dtype):
    problem = mixed_problem(24, dtype=dtype)
    fused = fastadv.Normalized(problem.model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = _attack("linf").run(fused.forward, problem.x, problem.y)
    assert differing_fields(_attack("linf").run(fused, problem.x, problem.y), expected) == []


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), (0.2, 0.4), None], ids=str)
def test_other_bounds(bounds, norm, keep):
    lo, hi = bounds or (-3.0, 3.0)
    problem = mixed_problem(16)
    x = lo + (hi - lo) * problem.x

    def model(z):
        return problem.model((z - lo) / (hi - lo))

    threat = threat_of(norm)
    threat = type(threat)(threat.eps * 2 * (hi - lo), bounds=bounds)
    result = _attack(norm, keep, threat=threat).run(model, x)
    assert result.success.any()
    if bounds is None:
        assert (result.x_adv.amax() > hi) or (result.x_adv.amin() < lo)
    else:
        assert result.x_adv.amin() >= lo and result.x_adv.amax() <= hi
        assert (result.x_adv.amin() == lo) or (result.x_adv.amax() == hi)


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
        result = _attack("linf", keep, threat=fastadv.Linf(0.1)).run(lambda z: z, x)
        assert result.success.any() and not result.success.all()
        assert torch.equal(result.success, result.x_adv.argmax(1) != x.argmax(1))


@pytest.mark.parametrize(
    "view",
    [
        lambda logits: torch.stack([logits, -logits], 2).flatten(1)[:, ::2],
        lambda logits: torch.cat([logits, logits], 1)[:, :4],
        lambda logits: logits.t().contiguous().t(),
        lambda logits: torch.stack([logits, -logits], 1).flatten(0, 1)[::2],
    ],
    ids=["every other class", "slice", "transposed", "every other row"],
)
def test_logits_of_any_strides(view):
    model, x = _case((3, 4, 4))
    for loss in ("ce", "margin", "dlr", "kl"):
        attack = _attack("linf", "best", loss=loss)

        def dense(z):
            return view(model(z)).contiguous()

        expected = attack.run(dense, x)
        result = attack.run(lambda z: view(model(z)), x)
        assert differing_fields(result, expected) == [], loss


def test_all_samples_already_wrong():
    problem = mixed_problem(6)
    with torch.no_grad():
        y = (problem.model(problem.x).argmax(1) + 1) % 5
    result = _attack("linf").run(problem.model, problem.x, y)
    assert result.success.all() and (result.step == 0).all()
    assert same_bits(result.x_adv, problem.x)
    assert result.backwards == 0
