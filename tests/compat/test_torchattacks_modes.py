"""Targeted modes of fastadv.compat.torchattacks."""

import pickle

import pytest
import torch

import fastadv.compat.torchattacks as compat
from fastadv.attacks.call import targets

TARGETED = ["FGSM", "FFGSM", "RFGSM", "BIM", "PGD", "PGDL2", "EOTPGD", "MIFGSM"]


@pytest.fixture
def chosen(monkeypatch) -> list[torch.Tensor]:
    """The targets of every call, as the mode gives them."""
    seen = []
    original = compat.Attack._targets

    def spy(self, *arguments):
        seen.append(original(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(compat.Attack, "_targets", spy)
    return seen


@pytest.mark.parametrize("name", TARGETED)
def test_every_targeted_mode_comes_nearer_to_its_target(name, net, digits, chosen):
    x, y = digits
    for choose in (
        lambda atk: atk.set_mode_targeted_by_label(quiet=True),
        lambda atk: atk.set_mode_targeted_random(quiet=True),
        lambda atk: atk.set_mode_targeted_least_likely(quiet=True),
        lambda atk: atk.set_mode_targeted_by_function(lambda x, y: (y + 1) % 10, quiet=True),
    ):
        atk = getattr(compat, name)(net)
        choose(atk)
        x_adv = atk(x, (y + 3) % 10)
        rows = torch.arange(len(y))
        with torch.no_grad():
            gain = (net(x_adv).log_softmax(1) - net(x).log_softmax(1))[rows, chosen[-1]]
        assert float(gain.mean()) > 0.1


def test_labels_are_the_targets_in_label_mode(net, digits, chosen):
    x, y = digits
    atk = compat.PGD(net)
    atk.set_mode_targeted_by_label(quiet=True)
    atk(x, (y + 3) % 10)
    assert torch.equal(chosen[-1], (y + 3) % 10)
    with pytest.raises(ValueError, match="labels are the targets"):
        atk(x)


def test_a_function_sees_clean_images_in_unit_range_and_the_labels(net, digits, chosen):
    x, y = digits
    atk = compat.PGD(net.train())
    atk.set_normalization_used(mean=[0.3], std=[0.2])
    seen = {}

    def shift(images, labels):
        seen["images"], seen["training"] = images, net.training
        return (labels + 7) % 10

    atk.set_mode_targeted_by_function(shift, quiet=True)
    atk(atk.normalize(x), y)
    torch.testing.assert_close(seen["images"], x)
    assert seen["training"] is False and net.training
    assert torch.equal(chosen[-1], (y + 7) % 10)


@pytest.mark.parametrize("kth", [1, 2, 9])
def test_least_likely_is_the_kth_smallest_logit_among_the_other_classes(kth, net, digits, chosen):
    x, y = digits
    labels = net(x).argmin(1)  # so that the smallest logit is the label's
    atk = compat.FGSM(net)
    atk.set_mode_targeted_least_likely(kth, quiet=True)
    atk(x, labels)
    order = net(x).argsort(1)
    expected = torch.stack(
        [row[row != label][kth - 1] for row, label in zip(order, labels, strict=True)]
    )
    assert torch.equal(chosen[-1], expected)


def test_kth_min_is_checked(net, digits):
    atk = compat.FGSM(net)
    with pytest.raises(ValueError, match="kth_min must be at least 1; got 0"):
        atk.set_mode_targeted_least_likely(0)
    atk.set_mode_targeted_least_likely(10, quiet=True)
    with pytest.raises(ValueError, match="kth_min must be below 10"):
        atk(*digits)


def test_random_targets_are_uniform_over_the_other_classes_and_new_in_each_call(net, chosen):
    x, y = (
        torch.rand(450, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.full((450,), 4),
    )
    atk = compat.FGSM(net)
    atk.set_mode_targeted_random(quiet=True)
    atk(x, y)
    counts = chosen[-1].bincount(minlength=10)
    assert counts[4] == 0
    assert float(((counts[counts > 0] - 50.0) ** 2 / 50).sum()) < 20.1  # chi square, 8 d.o.f., 1 %
    atk(x, y)
    assert not torch.equal(chosen[0], chosen[1])
    again = compat.FGSM(net)
    again.set_mode_targeted_random(quiet=True)
    again(x, y)
    assert torch.equal(chosen[0], chosen[2])


def test_missing_labels_mean_the_predictions_of_the_model(net, digits, chosen):
    x = digits[0]
    for mode in ("set_mode_targeted_random", "set_mode_targeted_least_likely"):
        for labels in (None, net(x).argmax(1)):
            atk = compat.FGSM(net)
            getattr(atk, mode)(quiet=True)
            atk(x, labels)
        assert torch.equal(chosen[-1], chosen[-2])


@pytest.mark.parametrize(
    "mode, get",
    [
        ("set_mode_targeted_random", "get_random_target_label"),
        ("set_mode_targeted_least_likely", "get_least_likely_label"),
    ],
)
@pytest.mark.parametrize("with_labels", [True, False])
def test_targets_can_be_asked_for_before_the_call(mode, get, with_labels, net, digits, chosen):
    x, labels = digits[0], (digits[1] + 1) % 10 if with_labels else None
    atk = compat.FGSM(net.train())
    atk.set_normalization_used(mean=[0.3], std=[0.2])
    asked = getattr(atk, get)(atk.normalize(x), labels)  # in any mode, and drawing nothing
    assert asked.shape == (len(x),) and net.training
    getattr(atk, mode)(quiet=True)
    for _ in range(2):
        asked = getattr(atk, get)(atk.normalize(x), labels)
        atk(atk.normalize(x), labels)
        assert torch.equal(asked, chosen[-1])


def test_the_least_likely_label_follows_kth_min(net, digits):
    x, y = digits
    atk = compat.FGSM(net)
    first = atk.get_least_likely_label(x, y)
    atk.set_mode_targeted_least_likely(9, quiet=True)
    likeliest = net(x).masked_fill(torch.nn.functional.one_hot(y, 10).bool(), -torch.inf).argmax(1)
    assert torch.equal(atk.get_least_likely_label(x, y), likeliest)
    assert not torch.equal(first, likeliest)


@pytest.mark.parametrize("get", ["get_random_target_label", "get_least_likely_label"])
def test_no_images_have_no_targets(get, net, digits):
    target = getattr(compat.FGSM(net), get)(digits[0][:0])
    assert target.shape == (0,) and target.dtype == torch.int64


def test_default_mode_is_restored(net, digits):
    x, y = digits
    expected = compat.FGSM(net)(x, y)
    atk = compat.FGSM(net)
    atk.set_mode_targeted_by_label(quiet=True)
    assert (atk.get_mode(), atk.targeted) == ("targeted(label)", True)
    assert not torch.equal(atk(x, (y + 1) % 10), expected)
    atk.set_mode_default()
    assert (atk.get_mode(), atk.attack_mode, atk.targeted) == ("default", "default", False)
    assert torch.equal(atk(x, y), expected)


def test_modes_are_announced_unless_quiet(net, capsys):
    atk = compat.FGSM(net)
    atk.set_mode_targeted_random()
    assert "targeted(random)" in capsys.readouterr().out
    atk.set_mode_targeted_least_likely(quiet=True)
    assert capsys.readouterr().out == ""
    assert atk.get_mode() == "targeted(least-likely)"


def test_a_target_function_must_be_callable(net):
    with pytest.raises(TypeError, match="target_map_function must be callable"):
        compat.FGSM(net).set_mode_targeted_by_function(None)  # type: ignore[arg-type]


def test_targets_out_of_range_are_refused(net, digits):
    atk = compat.PGD(net)
    atk.set_mode_targeted_by_function(lambda x, y: y + 10, quiet=True)
    with pytest.raises(ValueError, match=r"outside \[0, 10\)"):
        atk(*digits)


def test_choosing_targets_leaves_training_flags_alone_after_an_error(net, digits, monkeypatch):
    net.train()
    net[0].eval()
    monkeypatch.setattr(targets, "choose", lambda *_, **__: 1 / 0)
    atk = compat.PGD(net)
    atk.set_mode_targeted_random(quiet=True)
    with pytest.raises(ZeroDivisionError):
        atk(*digits)
    assert net.training and not net[0].training and net[2].training


def test_labels_out_of_range_are_refused_in_targeted_modes(net, digits):
    x, y = digits
    for mode in ("set_mode_targeted_random", "set_mode_targeted_least_likely"):
        atk = compat.PGD(net)
        getattr(atk, mode)(quiet=True)
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 10\)"):
            atk(x, y + 5)


def test_attacks_can_be_pickled(net, digits):
    atk = compat.PGD(net)
    atk.set_mode_targeted_least_likely(2, quiet=True)
    copied = pickle.loads(pickle.dumps(atk))
    assert repr(copied) == repr(atk)
    assert torch.equal(copied(*digits), atk(*digits))
