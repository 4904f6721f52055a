import torch
from torch.nn import functional as F

from fastadv.models import preact_resnet18
from fastadv.models.preact_resnet import PreActBlock


def test_it_has_as_many_parameters_as_stated():
    assert sum(p.numel() for p in preact_resnet18().parameters()) == 11_172_170


def test_its_keys_are_those_of_the_fast_at_checkpoints():
    keys = set(preact_resnet18().state_dict())
    for key in ("conv1", "layer1.0.bn1", "layer1.1.conv2", "layer2.0.shortcut.0", "bn", "linear"):
        assert f"{key}.weight" in keys
    assert len({key.split(".")[0] for key in keys}) == 7
    assert sum(key.endswith("shortcut.0.weight") for key in keys) == 3


def test_groups_halve_the_image_three_times():
    model = preact_resnet18().eval()
    shapes = []
    for group in ("layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(group).register_forward_hook(
            lambda module, args, output: shapes.append(tuple(output.shape[1:]))
        )
    model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_logits_are_linear_in_the_mean_of_the_normalised_and_rectified_last_group():
    model = preact_resnet18(seed=1).eval()
    last = []
    model.get_submodule("layer4").register_forward_hook(
        lambda module, args, output: last.append(output)
    )
    with torch.no_grad():
        logits = model(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        features = (last[0] / (1 + 1e-5) ** 0.5).relu().mean((2, 3))  # the statistics are fresh
        expected = features @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(logits, expected)


def test_a_block_is_the_formula_of_its_docstring():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    for outputs, stride in ((3, 1), (5, 1), (5, 2)):
        block = PreActBlock(3, outputs, stride=stride).double().eval()
        with torch.no_grad():
            for weight in block.parameters():
                weight.uniform_(-1, 1, generator=generator)
        w = block.state_dict()

        def normalised(value, which, w=w):
            weight, bias = w[f"{which}.weight"], w[f"{which}.bias"]
            scaled = value * weight[:, None, None] / (1 + 1e-5) ** 0.5 + bias[:, None, None]
            return scaled.relu()

        hidden = normalised(x, "bn1")
        expected = F.conv2d(hidden, w["conv1.weight"], stride=stride, padding=1)
        expected = F.conv2d(normalised(expected, "bn2"), w["conv2.weight"], padding=1)
        if "shortcut.0.weight" in w:
            expected = expected + F.conv2d(hidden, w["shortcut.0.weight"], stride=stride)
        else:
            expected = expected + x
        assert (block(x) - expected).abs().max() < 1e-12
