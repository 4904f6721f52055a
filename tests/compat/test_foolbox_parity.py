"""PGD of fastadv.compat.torchattacks against foolbox 3.3.4's LinfPGD, from the same start.

Tolerance as in test_torchattacks_parity.py: 1.2e-7 for all but 1e-4 of the elements in fp32.
"""

import warnings

import pytest
import torch

import fastadv.compat.torchattacks as compat

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports from scipy's old names
    foolbox = pytest.importorskip(
        "foolbox", reason="needs foolbox 3.3.4, eagerpy, GitPython and requests"
    )

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 40


@pytest.mark.parametrize("random_start", [False, True], ids=["from x", "from a random start"])
@pytest.mark.parametrize("model", ["digits", "mnist", "batchnorm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_pgd(model, random_start, dtype, inputs_for, monkeypatch):
    net, x, y, _ = inputs_for(model, dtype)
    ours = compat.PGD(net, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=random_start)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=ALPHA, steps=STEPS, random_start=random_start)
    if random_start:
        start = ours._start(x, torch.arange(len(x)))
        shared = lambda x0, eps: foolbox.attacks.base.ep.astensor(start)  # noqa: E731
        monkeypatch.setattr(attack, "get_random_start", shared)
    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    other = attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPS)
    difference = (ours(x, y) - other).abs()
    if dtype == torch.float64:
        assert float(difference.max()) <= 1e-12
    else:
        assert float((difference > 1.2e-7).double().mean()) <= 1e-4
