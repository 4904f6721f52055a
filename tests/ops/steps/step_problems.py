"""Problems of the L1 and L2 steps, and what a result is measured by."""

import torch

BOUNDS = (0.0, 1.0)
# the unit roundoff of each dtype
ROUNDOFF = {
    torch.float64: 2**-53,
    torch.float32: 2**-24,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8,
}


def images(device, *shape, dtype=torch.float32, seed=0, near=0.1):
    """(x_adv, grad, x): x in [0, 1], x_adv near it, a gradient of unit variance."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    x_adv = (x + near * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    grad = torch.randn(shape, generator=generator, dtype=torch.float64)
    return tuple(t.to(device, dtype) for t in (x_adv, grad, x))


def error(got, exact):
    assert got.isfinite().all()
    return float((got.double() - exact).abs().max())


def assert_as_good_as_eager(got, eager, exact):
    """Contract C1: at most twice the eager error, and one unit in the last place of the dtype."""
    ulp = torch.finfo(got.dtype).eps * float(exact.abs().max())
    assert error(got, exact) <= 2 * error(eager, exact) + ulp


def assert_within(x_adv, x, eps, bounds=BOUNDS, *, p):
    """Contract C3, in float64; without bounds the largest value stands for max(|lo|, |hi|)."""
    largest = max(map(abs, bounds)) if bounds else float(x_adv.abs().max())
    distance = (x_adv.double() - x.double()).flatten(1).norm(p, dim=1)
    radius = torch.as_tensor(eps, dtype=torch.float64, device=x.device)
    slack = ROUNDOFF[x.dtype] * x[0].numel() ** (1 / p) * largest
    assert (distance <= radius * (1 + 1e-6) + slack).all()
    if bounds:
        assert ((x_adv >= bounds[0]) & (x_adv <= bounds[1])).all()
