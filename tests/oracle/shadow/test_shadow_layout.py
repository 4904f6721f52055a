"""channels_last: the same logits in another layout, or the model as it is with a note."""

import pytest
import torch
import torch.nn.functional as F
from shadow_problems import (
    Functional,
    conv_bn,
    fast_cifar,
    images,
    in_float64,
    input_gradient,
    labels,
    lively,
    normalized_preact,
    relative,
    searching,
    wide,
)
from torch import nn

_LAYOUTS = {
    "conv_bn": (conv_bn, images()),
    "preact": (normalized_preact, images()),
    "wide": (wide, images()),
    "fast_cifar": (fast_cifar, images()),
    "functional": (lambda: lively(Functional()), images()),
}


@pytest.mark.parametrize("given", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", _LAYOUTS)
def test_channels_last_computes_the_same(name, given):
    make, x = _LAYOUTS[name]
    model, x, y = make(), x.contiguous(memory_format=given), labels(x)
    seen = []
    logits64, grad64 = in_float64(model, x, y)
    with searching(model, x, channels_last=True) as search:
        weights = [p for p in search.model.parameters() if p.ndim == 4]
        assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
        assert not search.is_exact and search.notes == ()

        def spied(function):
            def call(x, *args, **kwargs):
                seen.append(x.is_contiguous(memory_format=torch.channels_last))
                return function(x, *args, **kwargs)

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "conv2d", spied(F.conv2d))
            logits, grad = input_gradient(search.forward, x, y)
    assert seen and all(seen)
    assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5


def test_channels_last_leaves_samples_of_other_ranks_alone():
    model = lively(nn.Sequential(nn.Linear(12, 5)))
    x = torch.rand(6, 12)
    with searching(model, x, channels_last=True) as search:
        assert torch.equal(search.forward(x), model(x))


def test_a_model_that_needs_the_plain_layout_keeps_it_with_a_note():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(144, 5)

        def forward(self, x):
            return self.linear(self.conv(x).view(len(x), -1))

    model, x = lively(Viewing()), images()
    with searching(model, x, channels_last=True) as search:
        assert search.is_exact and torch.equal(search.forward(x), model(x))
    (note,) = search.notes
    assert note.startswith("channels_last=True was left out: it failed with RuntimeError: view")
    with searching(model, x, channels_last=True, precision="bf16") as search:
        assert search.precision == "bf16" and not search.channels_last and len(search.notes) == 1
