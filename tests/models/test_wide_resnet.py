import pytest
import torch
from torch import nn

from fastadv.models import build, wide_resnet


def _parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_wrn_28_10_has_as_many_parameters_as_stated_and_finite_logits_of_their_scale():
    model = build("wrn-28-10").eval()
    assert _parameters(model) == 36_479_194
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(x)
    assert logits.shape == (1, 10)
    assert 0 < logits.abs().max() < 100


def test_depth_and_width_set_blocks_and_channels():
    model = wide_resnet(depth=16, width=2)
    groups = [model.get_submodule(name) for name in ("layer1", "layer2", "layer3")]
    assert [len(group) for group in groups] == [2, 2, 2]
    assert [group[1].conv2.out_channels for group in groups] == [32, 64, 128]
    assert [group[0].conv1.stride for group in groups] == [(1, 1), (2, 2), (2, 2)]


def test_parameters_of_other_depths_are_those_of_the_paper():
    # Zagoruyko and Komodakis 2016, table 4: WRN-40-4 8.9M, WRN-16-8 11.0M
    assert round(_parameters(wide_resnet(depth=40, width=4)) / 1e6, 1) == 8.9
    assert round(_parameters(wide_resnet(depth=16, width=8)) / 1e6, 1) == 11.0


def test_convolutions_have_the_variance_of_he_and_biases_are_zero():
    model = wide_resnet(seed=1, depth=10, width=2)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels * layer.weight[0, 0].numel()
            # the sample standard deviation of n uniforms is within 4 / sqrt(5 n) relative (4 sigma)
            relative = layer.weight.std().item() / (2 / fan_out) ** 0.5 - 1
            assert abs(relative) < 4 / (5 * layer.weight.numel()) ** 0.5
    assert not model.linear.bias.any()


def test_dropout_acts_between_the_convolutions_in_train_mode_only():
    model = wide_resnet(depth=10, width=1, dropout=0.5)
    plain = wide_resnet(depth=10, width=1)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5] * 3
    dropped, convolved = [], []
    block = model.get_submodule("layer2")[0]
    block.dropout.register_forward_hook(lambda layer, args, output: dropped.append(output))
    block.conv2.register_forward_pre_hook(lambda layer, args: convolved.append(args[0]))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(model(x), plain(x))
    assert dropped[0] is convolved[0]
    for net in (model, plain):
        net.load_state_dict(wide_resnet(depth=10, width=1).state_dict())
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("depth", [4, 18, 27, -2])
def test_a_depth_that_does_not_divide_is_refused(depth):
    with pytest.raises(ValueError, match=rf"depth must be 6 n \+ 4 .*; got {depth}\."):
        wide_resnet(depth=depth)


def test_a_width_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"width must be at least 1; got 0\."):
        wide_resnet(width=0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_is_no_probability_below_one_is_refused(dropout):
    with pytest.raises(ValueError, match=rf"dropout must be in \[0, 1\); got {dropout}\."):
        wide_resnet(dropout=dropout)
