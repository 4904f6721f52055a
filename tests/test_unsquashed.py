"""`fastadv.Unsquashed`: logits exactly where the squashing comes last, else by a finite inverse."""

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastadv
from fastadv.data import load_digits
from fastadv.models import digits_net

KINDS = ("sigmoid", "tanh", "softmax")
LAYERS = {"sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(), "softmax": nn.Softmax(dim=1)}


class Gated(nn.Module):
    """Its layer is no Sequential's, not the last one registered, and is called on the way too."""

    def __init__(self, kind: str, net: nn.Module) -> None:
        super().__init__()
        self.act = LAYERS[kind]
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.act(x.flatten(1))
        return self.act(self.net(x))


def _functional(kind: str, net: nn.Module):
    return {
        "sigmoid": lambda x: torch.sigmoid(net(x)),
        "tanh": lambda x: net(x).tanh(),
        "softmax": lambda x: F.softmax(net(x), -1),
    }[kind]


FORMS = {
    "sequential": lambda kind, net: nn.Sequential(net, LAYERS[kind]),
    "nested": lambda kind, net: nn.Sequential(nn.Identity(), nn.Sequential(net, LAYERS[kind])),
    "module": Gated,
    "function": _functional,
    "normalised": lambda kind, net: fastadv.Normalized(nn.Sequential(net, LAYERS[kind]), [0], [1]),
}


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits("test")
    return x[:64], y[:64]


@pytest.fixture(scope="module")
def net():
    return digits_net(weights="standard").eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_b_unsquashed_is_exact_where_the_squashing_comes_last(kind, form, net, digits):
    x = digits[0][:8].clone().requires_grad_()
    model = fastadv.Unsquashed(FORMS[form](kind, net), kind)
    logits, expected = model(x), net(x)
    assert torch.equal(logits, expected)
    gradients = [torch.autograd.grad(z.square().sum(), x)[0] for z in (logits, expected)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_b_unsquashed_inverts_outputs_that_something_follows(kind, dtype):
    """By formula, in float64; the error of p is that of its dtype, the inverse's slope times it."""
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)[None].repeat(2, 1)
    p = LAYERS[kind](z).to(dtype)
    model = fastadv.Unsquashed(lambda x: x * 1, kind)
    got = model(p)
    assert got.dtype == dtype
    q = p.double()
    expected = {"sigmoid": q.log() - (1 - q).log(), "tanh": q.atanh(), "softmax": q.log()}[kind]
    slope = {"sigmoid": 1 / (q * (1 - q)), "tanh": 1 / (1 - q * q), "softmax": 1 / q}[kind]
    unit = torch.finfo(dtype).eps
    limit = 4 * unit * (1 + expected.abs())
    if dtype in (torch.float64, torch.float32):  # computed in it: p is rounded once more
        limit += unit * slope
    assert bool(((got.double() - expected).abs() <= limit).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_b_unsquashed_is_finite_and_in_order_at_the_ends(kind, dtype):
    low = -1.0 if kind == "tanh" else 0.0
    p = torch.tensor([[low, 0.25, 0.5, 1.0]], dtype=dtype, requires_grad=True)
    model = fastadv.Unsquashed(lambda x: x * 1, kind)
    z = model(p)
    assert bool(z.isfinite().all()) and bool((z.diff() > 0).all())
    z.sum().backward()
    assert p.grad is not None and p.grad[0, 0] == p.grad[0, 3] == 0
    assert bool((p.grad[0, 1:3] > 0).all())
    highest = {"sigmoid": 1 / torch.finfo(dtype).eps, "tanh": 1 / torch.finfo(dtype).eps}
    if kind in highest:  # within ln 4 of log(1 / eps), of which atanh is half
        share = 0.5 if kind == "tanh" else 1.0
        assert z[0, 3].item() == pytest.approx(share * math.log(highest[kind]), abs=1.5)


@pytest.mark.parametrize("kind", KINDS)
def test_b_unsquashed_keeps_the_order_of_classes(kind, net, digits):
    squashed = nn.Sequential(net, LAYERS[kind])
    behind = fastadv.Unsquashed(lambda x: squashed(x) * 1, kind)(digits[0])
    p = squashed(digits[0])
    top = p.amax(1, keepdim=True)
    unique = (p == top).sum(1) == 1  # others were rounded together by the squashing
    assert int(unique.sum()) > 8
    assert torch.equal(behind.argmax(1)[unique], p.argmax(1)[unique])


def test_b_unsquashed_refuses_what_it_cannot_undo(net, digits):
    with pytest.raises(ValueError, match="kind must be one of .*'sigmoid'.*got 'relu'"):
        fastadv.Unsquashed(net, "relu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be callable"):
        fastadv.Unsquashed(3, "tanh")  # type: ignore[arg-type]
    for kind, ends in (("sigmoid", r"\[0, 1\]"), ("tanh", r"\[-1, 1\]"), ("softmax", r"\[0, 1\]")):
        model = fastadv.Unsquashed(net, kind)
        with pytest.raises(ValueError, match=f"undoes outputs in {ends}; .* if these are logits"):
            fastadv.fgsm(fastadv.Linf(0.1))(model, *digits)


@pytest.mark.parametrize("dim", [0, -2])
def test_b_a_softmax_over_samples_is_not_taken_for_one_over_classes(dim):
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    p = z.softmax(dim)
    got = fastadv.Unsquashed(lambda x: torch.softmax(x, dim), "softmax")(z)
    torch.testing.assert_close(got, p.log())


def test_b_unsquashed_leaves_the_model_as_it_is(net, digits):
    squashed = nn.Sequential(net, nn.Sigmoid()).train()
    before = {name: dict(vars(module)) for name, module in squashed.named_modules()}
    model = fastadv.Unsquashed(squashed, "sigmoid")
    assert model.training and model.model is squashed
    model(digits[0])
    assert {name: dict(vars(module)) for name, module in squashed.named_modules()} == before
    squashed.eval()
    function = fastadv.Unsquashed(lambda x: squashed(x), "sigmoid")
    assert not function.training
    assert {id(p) for p in function.parameters()} == {id(p) for p in net.parameters()}
    assert repr(model).splitlines()[1].strip() == "kind='sigmoid'"


def test_b_unsquashed_serves_threads_at_once(net, digits):
    model = fastadv.Unsquashed(nn.Sequential(net, nn.Tanh()), "tanh")
    found: dict[int, torch.Tensor] = {}

    def ask(first: int) -> None:
        for _ in range(20):
            found[first] = model(digits[0][first : first + 4]).detach()

    threads = [threading.Thread(target=ask, args=(first,)) for first in (0, 4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for first, logits in found.items():
        assert torch.equal(logits, net(digits[0][first : first + 4]))
