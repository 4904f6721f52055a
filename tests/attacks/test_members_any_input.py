"""Contract C6 for AutoAttack's members: shapes, dtypes, modes, layouts, classes, radii, bounds."""

import contextlib
import functools

import pytest
import torch
from members import GRADIENT_MEMBERS, MEMBERS, member, member_problem, of_one_target, of_steps
from toy_models import NORMS, differing_fields, mixed_problem, rows_of, same_bits, threat_of

import fastadv

_SIDES = [(1, 5, 5), (3, 7, 7), (1, 12, 12), (3, 19, 19), (3, 5, 9), (1, 12, 7)]
_SAMPLES = 12


@functools.cache
def _found(name, norm):
    """What the same images, in whatever way they are given, must lead to."""
    p = member_problem(_SAMPLES)
    result = member(name, norm).run(p.model, p.x, p.y)
    assert result.success.any() and not result.success.all()
    return result


def _few(name):
    return of_steps(name, 6 if name == "square" else 4) | of_one_target(name)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_images_of_every_size(name, norm):
    own = NORMS.index(norm) + MEMBERS.index(name)  # all sizes meet all norms
    for shape in (_SIDES[own % 6], _SIDES[(own + 3) % 6]):
        p = mixed_problem(6, shape, wrong_every=10)
        attack = member(name, norm, scale=4.0, **_few(name))
        result = attack.run(p.model, p.x, p.y)
        assert result.x_adv.shape == p.x.shape
        assert result.success.any(), shape
        assert fastadv.contains(attack.threat, result.x_adv, p.x).all(), shape
        assert torch.equal(result.success, p.model(result.x_adv).argmax(1) != p.y), shape


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRADIENT_MEMBERS)
def test_vectors_and_other_shapes_give_the_bits_of_images(name, norm):
    p, attack = member_problem(_SAMPLES), member(name, norm)
    expected = _found(name, norm)
    for shape in ((-1,), (2, 45) if norm == "linf" else (3, 5, 2, 3)):
        result = attack.run(p.model, p.x.reshape(_SAMPLES, *shape), p.y)
        assert same_bits(result.x_adv.reshape(p.x.shape), expected.x_adv), shape
        assert torch.equal(result.step, expected.step)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRADIENT_MEMBERS)
def test_samples_that_are_numbers(name, norm):
    x = torch.linspace(0.05, 0.95, 12)
    cut = torch.tensor([0.0, 0.3, 0.5, 0.8])

    def model(z):
        return -10 * (z.reshape(-1, 1) - cut).square()

    result = member(name, norm, threat=type(threat_of(norm))(0.1)).run(model, x)
    assert result.x_adv.shape == (12,)
    assert result.success.any() and torch.equal(
        result.success, model(result.x_adv).argmax(1) != result.clean_prediction
    )


@pytest.mark.parametrize("norm", NORMS)
def test_square_refuses_what_is_not_an_image(norm):
    p = mixed_problem(6, (75,))
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        member("square", norm).run(p.model, p.x, p.y)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_square_refuses_small_images_in_l2_and_l1(norm):
    p = mixed_problem(6, (3, 4, 9))
    with pytest.raises(ValueError, match="5 x 5"):
        member("square", norm).run(p.model, p.x, p.y)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype(dtype, name, norm):
    p = member_problem(16, dtype=dtype)
    attack = member(name, norm, scale=1.5, **of_one_target(name))
    result = attack.run(p.model, p.x, p.y)
    assert result.x_adv.dtype == dtype and result.x_adv.isfinite().all()
    assert (result.success & (result.step > 0)).any()
    assert torch.equal(result.success, p.model(result.x_adv).argmax(1) != p.y)
    assert fastadv.contains(attack.threat, result.x_adv, p.x).all()


_PRECISIONS = [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)]


@pytest.mark.parametrize(
    ("name", "norm", "stored", "computed"),
    [
        (name, norm, *_PRECISIONS[(i + k) % 2])
        for i, name in enumerate(MEMBERS)
        for k, norm in enumerate(NORMS)
    ],
)
def test_images_of_another_precision_than_the_logits(name, norm, stored, computed):
    p = member_problem(16, dtype=computed)
    x = p.x.to(stored)

    def model(z):
        return p.model(z.to(computed))

    result = member(name, norm, scale=1.5).run(model, x, p.y)
    assert result.x_adv.dtype == stored and result.success.any()
    assert torch.equal(result.success, model(result.x_adv).argmax(1) != p.y)


_MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize(
    ("name", "norm", "mode"),
    # what is made in inference mode may not be differentiated: in every step of every norm
    [(name, norm, "inference_mode") for name in MEMBERS for norm in NORMS]
    + [(name, NORMS[i % 3], "no_grad") for i, name in enumerate(MEMBERS)]
    + [(name, NORMS[(i + 1) % 3], "autocast") for i, name in enumerate(MEMBERS)],
)
def test_the_mode_around_the_call_changes_no_bit(name, norm, mode):
    p, attack = member_problem(_SAMPLES), member(name, norm)
    expected = _found(name, norm)
    with _MODES[mode]():
        result = attack.run(p.model, p.x.clone(), p.y.clone())
    assert differing_fields(result, expected) == []
    assert not result.x_adv.is_inference()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_channels_last_gives_the_same_verdicts_and_is_kept(name, norm):
    p, attack = member_problem(_SAMPLES), member(name, norm)
    way = fastadv.Execution(batch_size=8)
    expected = _found(name, norm)
    x = p.x.contiguous(memory_format=torch.channels_last)
    result = attack.run(p.model, x, p.y, execution=way)
    assert torch.equal(result.success, expected.success)
    assert result.x_adv.stride() == x.stride()
    if norm == "linf" and name not in ("deepfool", "fab", "fab_t"):  # no sum over elements
        assert same_bits(result.x_adv, expected.x_adv)


@pytest.mark.parametrize("name", MEMBERS)
def test_strided_images_give_the_same_bits(name):
    p, attack = member_problem(_SAMPLES), member(name, "linf")
    expected = _found(name, "linf")
    strided = torch.cat([p.x, p.x], 1)[:, :3]
    assert not strided.is_contiguous()
    assert differing_fields(attack.run(p.model, strided, p.y), expected) == []


_DLR_CLASSES = {"apgd_dlr": 3, "apgd_t": 4, "alma": 3}


@pytest.mark.parametrize("classes", [2, 3, 4, 1000])
@pytest.mark.parametrize("name", MEMBERS)
def test_every_number_of_classes(name, classes):
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(classes, 90, generator=generator)
    x = torch.rand(5, 3, 5, 6, generator=generator)

    def model(z):
        return z.flatten(1) @ weight.t()

    slow = {"square": 6, "ddn": 6, "alma": 20, "cw": 12, "sigma_zero": 40, "pdgd": 12, "pdpgd": 12}
    few = of_steps(name, slow.get(name, 2 if classes > 4 else 4))
    attack = member(name, "linf", scale=4.0, **(few | of_one_target(name)))
    refused = classes < _DLR_CLASSES.get(name, 0)
    says = pytest.raises(ValueError, match="use loss='margin'|use fastadv.ddn")
    with says if refused else contextlib.nullcontext():
        result = attack.run(model, x)
        assert result.success.any()
        assert torch.equal(result.success, result.prediction != result.clean_prediction)


@pytest.mark.parametrize("loss", ["margin", "difference"])
def test_the_margin_loss_aims_with_two_classes(loss):
    p = member_problem(20, classes=2)
    attack = member("apgd_t", "linf", loss=loss)
    result = attack.run(p.model, p.x, p.y)
    assert (result.step > 0).any()
    # both aim at the only other class
    other = member("apgd_t", "linf", loss="margin" if loss == "difference" else "difference")
    assert torch.equal(other.run(p.model, p.x, p.y).success, result.success)


@pytest.mark.parametrize("name", MEMBERS)
def test_labels_of_int32(name):
    p, attack = member_problem(_SAMPLES), member(name, "linf")
    expected = _found(name, "linf")
    assert differing_fields(attack.run(p.model, p.x, p.y.int()), expected) == []


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_no_sample_and_one_sample(name, norm):
    p, attack = member_problem(_SAMPLES), member(name, norm)
    way = fastadv.Execution(batching="plain" if norm == "l2" else "continuous")
    none = attack.run(p.model, p.x[:0], p.y[:0], execution=way)
    assert none.x_adv.shape == (0, 3, 5, 6) and (none.forwards, none.backwards) == (0, 0)
    one = attack.run(p.model, p.x[:1], p.y[:1], execution=way)
    assert differing_fields(one, rows_of(_found(name, norm), torch.arange(1))) == []


_BOUNDS = [(-1.0, 1.0), (0.0, 255.0), None]


@pytest.mark.parametrize(
    ("name", "norm", "bounds"),
    [
        (name, norm, _BOUNDS[(i + k) % 3])
        for i, name in enumerate(MEMBERS)
        for k, norm in enumerate(NORMS)
    ],
)
def test_other_bounds(name, norm, bounds):
    lo, hi = bounds or (-3.0, 3.0)
    p = member_problem(16)
    x = lo + (hi - lo) * p.x

    def model(z):
        return p.model((z - lo) / (hi - lo))

    eps = member(name, norm, scale=1.5).threat.eps * (hi - lo)
    attack = member(name, norm, threat=type(threat_of(norm))(eps, bounds=bounds))
    result = attack.run(model, x, p.y)
    assert (result.success & (result.step > 0)).any()
    assert fastadv.contains(attack.threat, result.x_adv, x).all()
    if bounds is not None:
        assert result.x_adv.amin() >= lo and result.x_adv.amax() <= hi


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_per_sample_radii_equal_separate_attacks(name, norm):
    p = member_problem(4, wrong_every=10)
    eps = member(name, norm).threat.eps * torch.tensor([0.0, 0.5, 1.0, 2.0])
    kind = type(threat_of(norm))
    together = member(name, norm, threat=kind(eps)).run(p.model, p.x, p.y)
    for i in range(1, 4):  # the first is classified wrongly
        alone = member(name, norm, threat=kind(float(eps[i]))).run(
            p.model, p.x[i : i + 1], p.y[i : i + 1], sample_ids=torch.tensor([i])
        )
        assert differing_fields(alone, rows_of(together, torch.tensor([i]))) == [], i


@pytest.mark.filterwarnings("ignore:zero_radius")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_radius_of_zero_leaves_x_as_it_is(name, norm):
    p = member_problem(12)
    result = member(name, norm, threat=type(threat_of(norm))(0.0)).run(p.model, p.x, p.y)
    assert same_bits(result.x_adv, p.x)
    assert torch.equal(result.success, result.clean_prediction != p.y)
