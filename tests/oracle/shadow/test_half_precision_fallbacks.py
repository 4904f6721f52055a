"""Where half precision will not do: the model as it is, with a note that says why."""

import pytest
import torch
from shadow_problems import Head, conv_bn, images, lively, searching
from torch import nn


def test_fp16_that_overflows_falls_back_to_the_model_with_a_note():
    model, x = conv_bn(), images()
    with torch.no_grad():
        model[0].weight.mul_(1e6)
        model[1].running_var.mul_(1e12)
    with searching(model, x, precision="fp16") as search:
        assert search.is_exact and search.model is model and search.scale == 1.0
        assert torch.equal(search.forward(x), model(x))
    (note,) = search.notes
    assert "precision='fp16' was left out" in note and "differ from the model's by inf" in note
    with searching(model, x, precision="bf16") as search:
        assert not search.is_exact and search.notes == ()


class _Cancelling(nn.Module):
    """Features around 300 whose differences decide: bf16 has steps of 2 there."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = Head(8)

    def forward(self, x):
        return self.head(self.conv(x) * 1.0 + 300.0 - 300.0)


@pytest.mark.parametrize("asked", [{}, {"channels_last": True}, {"fold_batchnorm": True}])
def test_logits_off_by_a_quarter_of_their_spread_fall_back_with_a_note(asked):
    model, x = lively(_Cancelling()), images()
    with torch.no_grad():
        model.conv.weight.mul_(0.1)
    with searching(model, x, precision="bf16", **asked) as search:
        assert search.precision == "fp32" and search.scale == 1.0
        assert search.channels_last == ("channels_last" in asked)
        torch.testing.assert_close(search.forward(x), model(x))
    assert any(
        "precision='bf16' was left out: logits" in n and "a quarter of their spread" in n
        for n in search.notes
    )
    model.conv.weight.data.mul_(100)
    with searching(model, x, precision="bf16", **asked) as search:
        assert search.precision == "bf16"


def test_a_model_that_autocast_breaks_falls_back_with_its_error():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), Head(4)

        def forward(self, x):
            hidden = self.conv(x)
            return self.head(
                torch.zeros_like(hidden, dtype=torch.float32).index_add(
                    0, torch.arange(len(x)), hidden
                )
            )

    model, x = lively(Strict()), images()
    with searching(model, x, precision="bf16") as search:
        assert search.is_exact and torch.equal(search.forward(x), model(x))
    assert "was left out: it failed with RuntimeError: " in search.notes[0]


def test_an_error_on_the_way_back_is_found_before_the_attack():
    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.weight = weight
            return x @ weight

        @staticmethod
        def backward(ctx, *grads):
            assert grads[0].dtype == torch.float32, "float32 only"
            return grads[0] @ ctx.weight.t().float(), None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.out = nn.Parameter(torch.empty(192, 8)), nn.Linear(8, 5)

        def forward(self, x):
            return self.out(torch.tanh(Sum.apply(x.flatten(1), self.weight)))

    model, x = lively(Net()), images()
    with searching(model, x, precision="bf16") as search:
        assert search.is_exact
    assert "AssertionError: float32 only" in search.notes[0]


def test_out_of_memory_is_not_taken_for_a_reason():
    class Full(nn.Linear):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x.flatten(1))

    with pytest.raises(torch.OutOfMemoryError), searching(Full(192, 5), images(), precision="bf16"):
        pass


def test_float64_samples_are_searched_as_they_are():
    model, x = conv_bn().double(), images().double()
    with searching(model, x, precision="bf16") as search:
        assert search.is_exact and search.model is model
    assert search.notes == (
        "precision='bf16' was left out: x is torch.float64, and autocast casts float32 only",
    )


@pytest.mark.parametrize("precision", ["fp8", "", None, "float16"])
def test_an_unknown_precision_is_refused(precision):
    model, x = conv_bn(), images()
    with pytest.raises(ValueError, match=r"precision must be one of \['fp32', 'bf16', 'fp16'\]"):
        with searching(model, x, precision=precision):
            pass


def test_masked_classes_are_no_reason_to_fall_back():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv_bn()

        def forward(self, x):
            return self.net(x).masked_fill(torch.arange(5) == 2, -torch.inf)

    model, x = Masked().eval(), images()
    with searching(model, x, precision="bf16") as search:
        assert search.precision == "bf16" and search.notes == ()
