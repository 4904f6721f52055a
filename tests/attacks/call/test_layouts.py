"""Contract C6: memory formats and strides of images, labels, ids and logits."""

import pytest
import torch
from small_cases import KEEPS, attack_of, case_of
from toy_models import NORMS, Quadratic, differing_fields, mixed_problem, same_bits

import fastadv


def _views():
    base = torch.rand(7, 3, 6, 6, generator=torch.Generator().manual_seed(5))
    yield "channels_last", base.contiguous(memory_format=torch.channels_last)
    yield "sliced", base[..., ::2, 1:5]
    yield "strided batch", torch.cat([base, base])[::2]
    yield "sliced channels_last", base.contiguous(memory_format=torch.channels_last)[..., 1:4, :]
    yield "channel slice", torch.cat([base, base], 1)[:, 1:4]
    yield "transposed", base.transpose(1, 3)
    yield "transposed batch", base.permute(1, 0, 2, 3)[:, :3]
    yield "expanded", base[:1].expand(7, 3, 6, 6)
    yield "expanded channels", base[:, :1].expand(7, 3, 6, 6)
    yield "offset", torch.cat([base.flatten(), base.new_zeros(1)])[1:].view(base.shape)
    yield "one channel last", base[:, :1].contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("x", "keep", "batching"),
    [
        # every pair of a layout and a way to keep, each layout in both schedules
        pytest.param(x, keep, ("plain", "continuous")[(i + k) % 2], id=f"{name}-{keep}")
        for i, (name, x) in enumerate(_views())
        for k, keep in enumerate(KEEPS)
    ],
)
def test_every_memory_layout_gives_the_same_bits(x, keep, batching):
    model = Quadratic(x[0].numel(), 4, seed=3)
    dense = x.clone(memory_format=torch.contiguous_format)
    attack = attack_of("linf", keep)
    way = fastadv.Execution(batching=batching, batch_size=3)
    expected = attack.run(model, dense, execution=way)
    result = attack.run(model, x, execution=way)
    assert expected.success.any()
    assert differing_fields(result, expected) == []
    assert same_bits(attack(model, x, execution=way), expected.x_adv)
    assert same_bits(x, dense)


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("norm", NORMS)
def test_channels_last_is_kept(norm, keep, batch_size):
    model, x = case_of((3, 4, 5))
    x = x.contiguous(memory_format=torch.channels_last)
    way = fastadv.Execution(batch_size=batch_size)
    attack = attack_of(norm, keep)
    assert attack.run(model, x, execution=way).x_adv.stride() == x.stride()
    assert attack(model, x, execution=way).stride() == x.stride()


def test_channels_last_3d_is_kept():
    model, x = case_of((2, 3, 2, 4))
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for keep in KEEPS:
        assert attack_of("linf", keep)(model, x).stride() == x.stride(), keep


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_strided_labels_and_ids(dtype):
    problem = mixed_problem(16)
    pairs = torch.stack([problem.y, -problem.y], 1).to(dtype)
    ids = torch.stack([torch.arange(16), torch.arange(16)], 1).to(dtype)
    expected = attack_of("linf").run(problem.model, problem.x, problem.y)
    result = attack_of("linf").run(problem.model, problem.x, pairs[:, 0], sample_ids=ids[:, 0])
    assert differing_fields(result, expected) == []


@pytest.mark.parametrize(
    "view",
    [
        lambda logits: torch.stack([logits, -logits], 2).flatten(1)[:, ::2],
        lambda logits: torch.cat([logits, logits], 1)[:, :4],
        lambda logits: logits.t().contiguous().t(),
        lambda logits: torch.stack([logits, -logits], 1).flatten(0, 1)[::2],
    ],
    ids=["every other class", "slice", "transposed", "every other row"],
)
def test_logits_of_any_strides(view):
    model, x = case_of((3, 4, 4))
    for loss in ("ce", "margin", "dlr", "kl"):
        attack = attack_of("linf", "best", loss=loss)

        def dense(z):
            return view(model(z)).contiguous()

        expected = attack.run(dense, x)
        result = attack.run(lambda z: view(model(z)), x)
        assert differing_fields(result, expected) == [], loss
