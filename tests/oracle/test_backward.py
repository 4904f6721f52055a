"""The backward pass to the input gives the bits of torch.autograd.grad, and refuses the same."""

import subprocess
import sys

import pytest
import torch

from fastadv.models import digits_net
from fastadv.oracle import backward


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("retain", [True, False])
def test_it_is_that_of_torch(monkeypatch, is_there, retain):
    if not is_there:  # torch may rename it
        monkeypatch.setattr(backward, "_RUN", None)
    generator = torch.Generator().manual_seed(0)
    model, x = digits_net(seed=0).eval(), torch.rand(4, 1, 8, 8, generator=generator)
    leaf = x.requires_grad_()
    weights = torch.rand(4, 10, generator=generator)
    (expected,) = torch.autograd.grad(model(leaf), leaf, weights)
    output = model(leaf)
    found = backward.input_gradient(output, leaf, weights, retain_graph=retain)
    assert torch.equal(found, expected) and leaf.grad is None
    if retain:
        again = backward.input_gradient(output.sum(), leaf, None)
        assert torch.equal(again, torch.autograd.grad(model(leaf).sum(), leaf)[0])
    else:
        with pytest.raises(RuntimeError, match="second time"):
            backward.input_gradient(output, leaf, weights)
    other = torch.ones(2, requires_grad=True)
    assert backward.input_gradient(2 * other, leaf, torch.ones(2)) is None


def test_a_first_call_imports_no_sympy():
    code = """
import sys, torch, fastadv
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
x = torch.rand(2, 1, 2, 2)
before = "sympy" in sys.modules
fastadv.pgd(fastadv.Linf(0.1), steps=2)(model, x)
print(before, "sympy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after
