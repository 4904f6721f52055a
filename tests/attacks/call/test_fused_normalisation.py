"""Contract C6: a normalisation that is fused into the attack changes no bit."""

import pytest
import torch
from small_cases import attack_of, case_of
from torch import nn
from toy_models import differing_fields, mixed_problem, threat_of

import fastadv


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("norm", "keep", "batching"),
    [
        # every pair of two of them, in either precision
        ("linf", "first_success", "plain"),
        ("linf", "best", "continuous"),
        ("l2", "first_success", "continuous"),
        ("l2", "last", "plain"),
        ("l1", "best", "plain"),
        ("l1", "last", "continuous"),
    ],
)
def test_fused_normalisation_changes_no_bit(dtype, norm, keep, batching):
    class Normalising(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            mean = torch.tensor([0.49, 0.48, 0.45], dtype=torch.float32).to(x.dtype)
            std = torch.tensor([0.25, 0.3, 0.7], dtype=torch.float32).to(x.dtype)
            return self.model((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))

    problem = mixed_problem(24, dtype=dtype)
    plain = Normalising(problem.model)
    fused = fastadv.Normalized(problem.model, mean=(0.49, 0.48, 0.45), std=(0.25, 0.3, 0.7))
    with torch.no_grad():
        y = plain(problem.x).argmax(1)
    y[::5] = (y[::5] + 1) % 5
    attack = attack_of(norm, keep, threat=threat_of(norm, 0.7 if norm != "l1" else 0.3))
    way = fastadv.Execution(batching=batching, batch_size=7)
    expected = attack.run(plain, problem.x, y, execution=way)
    assert expected.success.any() and not expected.success.all()
    assert differing_fields(attack.run(fused, problem.x, y, execution=way), expected) == []
    last = problem.x.contiguous(memory_format=torch.channels_last)
    assert differing_fields(attack.run(fused, last, y, execution=way), expected) == []


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 2, 2)], ids=str)
def test_fused_normalisation_of_other_shapes(shape):
    model, x = case_of(shape)
    fused = fastadv.Normalized(model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = attack_of("linf").run(fused.forward, x)
    assert differing_fields(attack_of("linf").run(fused, x), expected) == []


def test_fused_normalisation_with_momentum_and_eot():
    problem = mixed_problem(24)
    fused = fastadv.Normalized(problem.model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    for attack in (fastadv.mifgsm(threat_of("linf")), attack_of("l2", eot=2)):
        expected = attack.run(fused.forward, problem.x, problem.y)
        assert differing_fields(attack.run(fused, problem.x, problem.y), expected) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_normalisation_in_half_precision(dtype):
    problem = mixed_problem(24, dtype=dtype)
    fused = fastadv.Normalized(problem.model, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = attack_of("linf").run(fused.forward, problem.x, problem.y)
    assert differing_fields(attack_of("linf").run(fused, problem.x, problem.y), expected) == []
