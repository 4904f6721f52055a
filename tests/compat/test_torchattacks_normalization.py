"""set_normalization_used: normalised images in and out, eps in [0, 1] units, misuse caught."""

import warnings

import pytest
import torch
from torch import nn

import fastadv
import fastadv.compat.torchattacks as compat

ALL = ["FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "PGDL2", "EOTPGD", "TPGD", "MIFGSM"]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


@pytest.fixture
def images(digits) -> torch.Tensor:
    return digits[0].repeat(1, 3, 1, 1)


def normalised(x: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, dtype=x.dtype).view(1, -1, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


@pytest.mark.parametrize("name", ALL)
def test_normalised_images_give_the_normalised_result_of_the_wrapped_model(
    name, nets, images, digits
):
    net, y = nets["batchnorm"].double(), digits[1]
    x = images.double()
    atk = getattr(compat, name)(net)
    atk.set_normalization_used(mean=MEAN, std=STD)
    wrapped = getattr(compat, name)(fastadv.Normalized(net, MEAN, STD))
    x_adv = wrapped(x, y)
    # mean and std are float32: so is the difference between x and what the attack makes of it
    out = atk(atk.normalize(x), y)
    torch.testing.assert_close(atk.inverse_normalize(out), x_adv, atol=1e-12, rtol=0)
    assert bool(fastadv.contains(atk.threat(), atk.inverse_normalize(out), x).all())


def test_what_the_round_trip_leaves_outside_the_bounds_is_clamped(nets, images, digits):
    atk, inside = (compat.PGD(nets["batchnorm"], steps=1) for _ in range(2))
    for each in (atk, inside):
        each.set_normalization_used(MEAN, STD)
    off = images.clone()
    off[images == 1] += 2**-23
    off[images == 0] -= 2**-24
    x_adv = atk.inverse_normalize(atk(normalised(off), digits[1]))
    torch.testing.assert_close(
        x_adv, inside.inverse_normalize(inside(normalised(images), digits[1])), atol=1e-6, rtol=0
    )


def test_doubles_that_were_normalised_in_float32_are_accepted(nets, images, digits):
    atk = compat.PGD(nets["batchnorm"].double(), steps=1)
    atk.set_normalization_used(MEAN, STD)
    x = normalised(images).double()
    assert float(atk.inverse_normalize(x).min()) < 0, "else nothing is tested"
    assert atk(x, digits[1]).dtype == torch.float64


def test_images_normalised_twice_are_refused(nets, images, digits):
    atk = compat.PGD(nets["batchnorm"])
    atk.set_normalization_used(mean=MEAN, std=STD)
    with pytest.raises(ValueError, match=r"inputs \* std \+ mean must lie in \[0, 1\]"):
        atk(normalised(normalised(images)), digits[1])


def test_images_that_look_unnormalised_are_warned_of(nets, images, digits):
    atk = compat.PGD(nets["batchnorm"], steps=1)
    atk.set_normalization_used(mean=MEAN, std=STD)
    with pytest.warns(UserWarning, match="expects normalised inputs"):
        atk(images, digits[1])
    atk.set_normalization_used(mean=(0, 0, 0), std=(1, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atk(images, digits[1])


def test_a_model_that_normalises_itself_is_refused(nets):
    wrapped = fastadv.Normalized(nets["batchnorm"], MEAN, STD)
    with pytest.raises(ValueError, match="would normalise its inputs twice"):
        compat.PGD(wrapped).set_normalization_used(MEAN, STD)
    atk = compat.PGD(nets["batchnorm"])
    atk.set_normalization_used(MEAN, STD)
    with pytest.raises(ValueError, match="would normalise its inputs twice"):
        atk.set_model(wrapped)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5, 0.5), (0.5,)), ((0.5,), (0.0,)), (0.5, 0.5), ((0.5,), (-1.0,))]
)
def test_mean_and_std_are_checked(mean, std, net):
    with pytest.raises(ValueError, match="one float a channel, std > 0"):
        compat.PGD(net).set_normalization_used(mean, std)


def test_the_number_of_channels_is_checked(net, digits):
    atk = compat.PGD(net)
    atk.set_normalization_used(MEAN, STD)
    with pytest.raises(ValueError, match="was given 3 channels"):
        atk(*digits)


def test_one_mean_serves_every_channel(nets, images, digits):
    one, three = compat.FGSM(nets["batchnorm"]), compat.FGSM(nets["batchnorm"])
    one.set_normalization_used([0.5], [0.25])
    three.set_normalization_used([0.5] * 3, [0.25] * 3)
    x = (images - 0.5) / 0.25
    assert torch.equal(one(x, digits[1]), three(x, digits[1]))


def test_normalising_before_it_is_set_up_is_an_error(net, digits):
    with pytest.raises(ValueError, match="set_normalization_used"):
        compat.PGD(net).normalize(digits[0])


def test_logits_are_those_of_the_given_inputs(nets, images):
    net = nets["batchnorm"]
    atk = compat.PGD(net)
    atk.set_normalization_used(MEAN, STD)
    assert torch.equal(atk.get_logits(normalised(images)), net(normalised(images)))
    assert list(atk.normalization_used) == ["mean", "std"]
    assert atk.normalization_used["mean"].shape == (1, 3, 1, 1)


@pytest.mark.filterwarnings("ignore:squashed")  # what it returns are pixels
def test_models_without_parameters_are_normalised_too(digits):
    atk = compat.PGD(nn.Flatten(), random_start=False, steps=2)
    atk.set_normalization_used([0.5], [0.5])
    x, y = digits
    pixels = atk.inverse_normalize(atk(2 * x - 1, y))
    expected = compat.PGD(nn.Flatten(), random_start=False, steps=2)
    torch.testing.assert_close(pixels, expected(x, y))
