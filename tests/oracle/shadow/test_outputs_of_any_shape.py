"""Shadows of models that are no classifiers: outputs of any shape (B, ...) are compared."""

import pytest
import torch
from shadow_problems import searching
from torch import nn

from fastadv.oracle.shadow.agreement import First

SHAPES = [(), (1,), (3,), (3, 2, 2), (2, 3, 2, 2)]


class Shaped(nn.Module):
    """(B, *shape) outputs, in half precision with `error` in all of them."""

    def __init__(self, shape, error=0.0, offset=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.shape, self.error, self.offset = shape, error, offset
        self.layer = nn.Linear(6, max(1, torch.Size(shape).numel()))

    def forward(self, x):
        output = self.layer(x).float() + self.offset
        if torch.is_autocast_enabled("cpu"):
            output = output + self.error
        return output.reshape(len(x), *self.shape)


X = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shadow_in_half_precision_is_found_and_a_wrong_one_refused(shape):
    with searching(Shaped(shape), X, precision="bf16") as search, torch.no_grad():
        assert search.notes == () and search.precision == "bf16"
        assert search.forward(X).shape == (20, *shape)
    with searching(Shaped(shape, error=3.0), X, precision="bf16") as search:
        (note,) = search.notes
    assert "precision='bf16' was left out: logits at the first batch differ" in note


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_shadow_in_float32_is_held_to_roundings(shape):
    model = Shaped(shape).eval()
    with torch.no_grad():
        first = First(model, X, model(X))
        assert first.refuses(model, "fp32") == ""
        assert "differ from the model's by 0.01" in first.refuses(lambda x: model(x) + 0.01, "fp32")
        assert "not (20" in first.refuses(lambda x: model(x)[:, None], "fp32")


def test_single_numbers_are_held_to_their_differences():
    """Of outputs near 1000 that differ by 1, being off by 4 is not a small error."""
    with searching(Shaped((1,), offset=1000.0, error=4.0), X, precision="bf16") as search:
        assert len(search.notes) == 1
    with searching(Shaped((1,), offset=1000.0), X, precision="bf16") as search:
        assert search.notes == ()


def test_a_single_number_of_a_single_sample_is_held_to_its_size():
    one = X[:1]
    with searching(Shaped((1,)), one, precision="bf16") as search:
        assert search.notes == ()
    with searching(Shaped((1,), error=3.0), one, precision="bf16") as search:
        assert len(search.notes) == 1
