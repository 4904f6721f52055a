"""fastadv.compat.torchattacks without torchattacks: calls, randomness, and what is left alone."""

import pytest
import torch
from linear_model import LABELS, WEIGHT, Linear
from torch import nn

import fastadv
import fastadv.compat.torchattacks as compat

ALL = ["FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "PGDL2", "EOTPGD", "TPGD", "MIFGSM"]
RANDOM_START = ["FFGSM", "RFGSM", "PGD", "PGDL2", "EOTPGD", "TPGD"]
ITERATED = ["RFGSM", "BIM", "PGD", "PGDL2", "EOTPGD", "TPGD", "MIFGSM"]


def test_forward_is_the_call(flat):
    for labels in (LABELS, None):
        expected = compat.PGD(Linear())(flat, labels)
        assert torch.equal(compat.PGD(Linear()).forward(flat, labels), expected)
        assert torch.equal(compat.PGD(Linear()).forward(images=flat, labels=labels), expected)


def test_get_logits_ignores_labels(flat):
    atk = compat.PGD(Linear())
    assert torch.equal(atk.get_logits(flat, LABELS), Linear()(flat))


@pytest.mark.parametrize("name", ITERATED)
def test_no_steps_return_the_start(name, net, digits):
    x, y = digits
    atk = getattr(compat, name)(net)
    atk.steps = 0
    start = atk(x, y)
    assert torch.equal(start, x) == (name not in RANDOM_START)
    assert float((start - x).abs().max()) <= max(float(atk.eps), 0.006) + 1e-7


@pytest.mark.parametrize("name", ALL)
def test_returned_images_lie_in_the_ball_and_differ_from_the_clean_ones(name, net, digits):
    x, y = digits
    atk = getattr(compat, name)(net)
    x_adv = atk(x, y)
    assert bool(fastadv.contains(atk.threat(), x_adv, x).all())
    assert not torch.equal(x_adv, x)
    assert not x_adv.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_attributes_changed_after_construction_take_effect(name, net, digits):
    x, y = digits
    changes = {"eps": 0.02, "alpha": 0.003, "steps": 3, "decay": 0.5, "eot_iter": 3}
    changes |= {"random_start": False, "eps_for_division": 0.1}
    atk, defaults = getattr(compat, name)(net), getattr(compat, name)(net)
    known = {key: value for key, value in changes.items() if hasattr(atk, key)}
    for key, value in known.items():
        setattr(atk, key, value)
    x_adv = atk(x, y)
    assert torch.equal(x_adv, getattr(compat, name)(net, **known)(x, y))
    assert not torch.equal(x_adv, defaults(x, y))


def test_a_radius_for_each_sample_is_kept(net, digits):
    x, y = digits
    eps = torch.linspace(0, 0.1, len(x))
    x_adv = compat.PGD(net, eps=eps)(x, y)
    distance = (x_adv - x).flatten(1).abs().amax(1)
    assert bool((distance <= eps + 1e-7).all()) and float(distance[-1]) > 0.09


@pytest.mark.parametrize("name", RANDOM_START)
def test_two_calls_differ_and_a_fresh_object_repeats_them(name, net, digits):
    x, y = digits
    atk, again = getattr(compat, name)(net), getattr(compat, name)(net)
    for each in (atk, again):
        if hasattr(each, "steps"):
            each.steps = 1
    first, second = atk(x, y), atk(x, y)
    assert not torch.equal(first, second)
    assert torch.equal(again(x, y), first) and torch.equal(again(x, y), second)
    other = getattr(compat, name)(net, seed=1)
    assert not torch.equal(other(x, y), first)


@pytest.mark.parametrize("name", ALL)
def test_results_do_not_depend_on_how_images_are_batched(name, net, digits):
    x, y = digits
    net, x = net.double(), x.double()  # the model's own rounding depends on the batch
    # torchattacks adds eps_for_division to the norm of the gradient of a mean over the batch
    options = {"eps_for_division": 0.0} if name == "PGDL2" else {}
    whole = getattr(compat, name)(net, **options)(x, y)
    atk = getattr(compat, name)(net, **options)
    parts = torch.cat([atk(x[:5], y[:5]), atk(x[5:7], y[5:7]), atk(x[7:], y[7:])])
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=0)


class Noisy(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x + 0.3 * torch.randn_like(x))


def test_a_random_model_is_drawn_anew_in_each_call_and_reproducibly(net, digits):
    atk, again = (compat.EOTPGD(Noisy(net), steps=2, random_start=False) for _ in range(2))
    first, second = atk(*digits), atk(*digits)
    assert not torch.equal(first, second)
    assert torch.equal(again(*digits), first) and torch.equal(again(*digits), second)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fails", [False, True])
def test_model_and_generators_are_left_as_they_were(name, fails, nets, digits):
    net = nets["batchnorm"].train()
    net[1].eval()  # frozen by the user
    net[0].weight.requires_grad_(False)
    x, y = digits[0].repeat(1, 3, 1, 1), digits[1]
    modes = [m.training for m in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [p.requires_grad for p in net.parameters()]
    generator = torch.get_rng_state()
    if fails:
        handle = net[6].register_forward_hook(_raise)
        with pytest.raises(RuntimeError, match="by the test"):
            getattr(compat, name)(net)(x, y)
        handle.remove()
    else:
        getattr(compat, name)(net)(x, y)
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()


def _raise(*_: object) -> None:
    raise RuntimeError("raised by the test")


def test_tpgd_ignores_labels_and_has_no_targeted_mode(net, digits):
    x, y = digits
    assert torch.equal(compat.TPGD(net)(x), compat.TPGD(net)(x, y))
    atk = compat.TPGD(net)
    assert atk.supported_mode == ["default"]
    with pytest.raises(ValueError, match="TPGD has no targeted mode"):
        atk.set_mode_targeted_by_label()


def test_labels_of_any_integer_type_or_none_give_the_same_images(net, digits):
    x, y = digits
    x, y = x[net(x).argmax(1) == y], y[net(x).argmax(1) == y]
    expected = compat.PGD(net)(x, y)
    for labels in (y.int(), y.short(), y.to(torch.uint8), None):
        assert torch.equal(compat.PGD(net)(x, labels), expected)


def test_models_without_parameters_are_attacked_where_the_images_are(flat):
    atk = compat.PGD(lambda x: x.flatten(1) @ WEIGHT.T, random_start=False)
    assert atk.device is None
    expected = compat.PGD(Linear(), random_start=False)(flat, LABELS)
    assert torch.equal(atk(flat, LABELS), expected)
    atk.set_device("cpu")
    assert atk.device == torch.device("cpu")
    assert torch.equal(atk(flat, LABELS), expected)


def test_images_and_labels_are_moved_to_the_model(device, net, digits):
    x, y = digits
    x_adv = compat.PGD(net.to(device), steps=2)(x, y)
    assert x_adv.device.type == device.type


def test_set_model_attacks_the_new_model(net, nets, digits):
    x, y = digits
    atk = compat.FGSM(net)
    old = atk(x, y)
    other = fastadv.BPDA(lambda x: x)  # only its name matters
    atk.set_model(other)
    assert atk.model_name == "BPDA" and atk.device == torch.device("cpu")
    atk.set_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    assert not torch.equal(atk(x, y), old)


def test_an_empty_batch_comes_back_empty(net, digits):
    for name in ALL:
        x_adv = getattr(compat, name)(net)(digits[0][:0], digits[1][:0])
        assert x_adv.shape == (0, 1, 8, 8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_around_the_call(mode, net, digits):
    expected = compat.PGD(net)(*digits)
    with mode():
        atk = compat.PGD(net)
        assert torch.equal(atk(*[t.clone() for t in digits]), expected)


def test_only_eval_mode_is_offered(net):
    atk = compat.PGD(net)
    atk.set_model_training_mode(False, False, False)
    for name in ("model_training", "batchnorm_training", "dropout_training"):
        with pytest.raises(NotImplementedError, match="eval mode"):
            atk.set_model_training_mode(**{name: True})


def test_repr_lists_the_settings_as_torchattacks_does(net):
    atk = compat.PGD(net, eps=0.25, alpha=0.5, steps=3)
    assert repr(atk) == (
        "PGD(model_name=DigitsNet, device=cpu, attack_mode=default, targeted=False, "
        "normalization_used=False, eps=0.25, alpha=0.5, steps=3, random_start=True)"
    )
    atk.set_normalization_used(mean=[0.5], std=[0.5])
    atk.set_mode_targeted_by_label(quiet=True)
    assert "attack_mode=targeted(label), targeted=True, normalization_used=True" in repr(atk)


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        (torch.full((2, 1, 8, 8), 1.5), ValueError, r"inputs must lie in \[0, 1\].*set_normal"),
        (torch.full((2, 1, 8, 8), float("nan")), ValueError, "NaN"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), TypeError, "floating-point"),
        ([1.0, 2.0], TypeError, "torch.Tensor"),
    ],
)
def test_images_that_cannot_be_attacked_are_refused(images, error, match, net):
    with pytest.raises(error, match=match):
        compat.PGD(net)(images, torch.zeros(2, dtype=torch.int64))


def test_labels_out_of_range_are_refused(net, digits):
    with pytest.raises(ValueError, match=r"outside \[0, 10\)"):
        compat.PGD(net)(digits[0], digits[1] + 5)


def test_a_rounding_beyond_the_bounds_is_clamped(net, digits):
    x, y = digits
    off = x.clone()
    off[x == 1] += 2**-23
    off[x == 0] -= 2**-25
    assert torch.equal(compat.PGD(net)(off, y), compat.PGD(net)(x, y))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_images_keep_their_dtype(name, dtype, net, digits):
    x, y = digits
    x_adv = getattr(compat, name)(net.to(dtype))(x.to(dtype), y)
    assert x_adv.dtype == dtype
