import pytest
import torch
from torch.nn import functional as F

from fastadv.data import load_digits
from fastadv.models import DigitsNet, digits_net

_EPS = 0.15  # of [0, 1]: 2.4 of the 16 grey levels


def _train(model, *, eps: float, seed: int = 0, epochs: int = 30) -> None:
    """Adam, batches of 64; with eps > 0 Fast-AT: one step of 1.25 eps from a uniform start."""
    x, y = load_digits("train")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(64):
            x_adv, labels = x[chosen], y[chosen]
            if eps:
                start = x_adv + (2 * torch.rand(x_adv.shape, generator=generator) - 1) * eps
                start = start.clamp(0, 1).requires_grad_()
                (grad,) = torch.autograd.grad(F.cross_entropy(model(start), labels), start)
                x_adv = _project(start.detach() + 1.25 * eps * grad.sign(), x_adv, eps)
            loss = F.cross_entropy(model(x_adv), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _project(x_adv, x, eps):
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0, 1)


def _accuracy(model, *, eps: float) -> float:
    """On the 360 test images; with eps > 0 under PGD, 20 steps of eps/5, no random start."""
    x, y = load_digits("test")
    x_adv = x
    for _ in range(20 if eps else 0):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        x_adv = _project(x_adv.detach() + eps / 5 * grad.sign(), x, eps)
    return (model(x_adv).argmax(1) == y).float().mean().item()


@pytest.fixture(scope="module")
def standard() -> DigitsNet:
    model = digits_net(seed=1)
    _train(model, eps=0)
    return model


def test_it_has_as_many_parameters_as_stated():
    assert sum(p.numel() for p in digits_net().parameters()) == 38_282


def test_width_sets_the_channels():
    assert digits_net(width=5)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert [digits_net(width=5)[k].out_channels for k in (0, 2)] == [5, 10]


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"width must be at least 1; got 0\."):
        digits_net(width=0)


def test_a_name_in_the_place_of_the_seed_is_refused():
    with pytest.raises(ValueError, match="weights='standard'"):
        digits_net("standard")


def test_channels_last_gives_the_same_logits():
    x = load_digits("test")[0][:16]
    model = digits_net().double()  # fp64: any layout agrees to rounding, 1e-12 is far above it
    expected = model(x.double())
    got = model.to(memory_format=torch.channels_last)(
        x.double().to(memory_format=torch.channels_last)
    )
    assert (got - expected).abs().max() < 1e-12


def test_standard_training_reaches_97_percent(standard):
    assert _accuracy(standard, eps=0) > 0.97  # 97.5 to 99.2 % over seeds 0 to 5


def test_fast_at_makes_it_robust_where_standard_training_does_not(standard):
    robust = digits_net(seed=1)
    _train(robust, eps=_EPS)
    assert _accuracy(robust, eps=0) > 0.96  # 98.1 to 99.2 % over seeds 0 to 5
    assert _accuracy(robust, eps=_EPS) > 0.6  # 70.6 to 74.4 %
    assert _accuracy(standard, eps=_EPS) < 0.3  # 11.4 to 18.1 %
