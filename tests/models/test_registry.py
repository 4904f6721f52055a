import pytest
import torch

from fastadv.models import build, digits_net, fast_cifar_net, mnist_conv_net, mnist_net, names
from fastadv.models import preact_resnet18 as preact

_SMALL = {
    "digits": digits_net,
    "mnist": mnist_net,
    "mnist-conv": mnist_conv_net,
    "fast-cifar": fast_cifar_net,
    "preact-resnet18": preact,
}


def test_names_are_those_of_the_documentation():
    assert names() == (
        "digits",
        "mnist",
        "mnist-conv",
        "preact-resnet18",
        "wrn-28-10",
        "fast-cifar",
    )


@pytest.mark.parametrize("name", _SMALL)
def test_build_gives_what_the_constructor_gives(name):
    built, expected = build(name, seed=3, classes=4), _SMALL[name](3, classes=4)
    assert type(built) is type(expected)
    state = built.state_dict()
    assert list(state) == list(expected.state_dict())
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())


def test_an_unknown_name_is_refused_with_the_choices():
    choices = "digits, mnist, mnist-conv, preact-resnet18, wrn-28-10, fast-cifar"
    with pytest.raises(ValueError, match=rf"name must be one of {choices}; got 'resnet'\."):
        build("resnet")
