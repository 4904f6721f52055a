"""Calls of augment_batch: indices, launches, compilation, and errors that name the argument."""

import math

import pytest
import torch
from augment_problems import MEAN, SHAPES, STD, index_of, plain, random_bytes

from fastadv.data import to_unit_interval
from fastadv.ops import augment_batch, augment_batch_reference, backend


@pytest.mark.parametrize("shape", [(7, 3, 8, 8), (7, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch, shape, implementation, device):
    images = random_bytes(shape, device)
    index = torch.full((batch,), 6, device=device)
    how = dict(crop=1, flip="random")
    x, x_start = augment_batch(images, index, start_eps=0.1, channels_last=True, **how)
    assert x_start is not None and x.shape == x_start.shape == (batch, *shape[1:])
    assert torch.equal(x.cpu(), to_unit_interval(plain(images, index, **how)))


def test_an_index_may_be_strided(implementation, device):
    images = random_bytes((9, 1, 4, 4), device)
    index = torch.arange(9, device=device)[::2]
    assert torch.equal(augment_batch(images, index).x, to_unit_interval(images[::2]))


def test_an_index_outside_of_the_set_is_never_read(device):
    if not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    images = random_bytes((3, 3, 5, 5), device)
    index = torch.tensor([1, 3, -1, 2**40, 0], device=device)
    with backend.use_backend("triton"):
        x, x_start = augment_batch(images, index, crop=2, flip="random", start_eps=0.1)
    assert x_start is not None
    for batch in (x, x_start):
        assert batch.isnan().flatten(1).all(1).tolist() == [False, True, True, True, False]
        assert not batch[[0, 4]].isnan().any()
    if device.type == "cpu":
        with pytest.raises(IndexError, match="out of range"):
            augment_batch_reference(images, index)


def test_one_launch_and_no_other_computation_a_call(count_launches, device):
    from fastadv.ops.augment import batch as augment

    images, index = random_bytes((9, 3, 8, 8), device), index_of(9, device)
    operators = []

    class Operators(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            operators.append(str(func))
            return func(*args, **(kwargs or {}))

    full = (images, index, 0, 1, 4, False, "random", torch.bfloat16, True, None, None, 0.1, 0.0)
    with backend.use_backend("triton"), count_launches() as launches:
        augment_batch(images, index, crop=4, flip="random", start_eps=0.1)
        with Operators():
            augment_batch(images, index, crop=4, flip="random", start_eps=0.1)
    assert launches == ["augment_kernel"] * 2
    assert operators == ["fastadv.augment_batch.default"]
    operators.clear()
    with pytest.MonkeyPatch.context() as patch, Operators():
        patch.setattr(
            "fastadv.kernels.augment.augment.launch_augment", lambda *args, **kwargs: None
        )
        augment._launch_augment(*full, 1.0, 5, 6)
    assert set(operators) <= {
        "aten.empty.memory_format",
        "aten.empty_like.default",
        "aten.new_empty.default",
    }


def test_opcheck(implementation, device):
    images, index = random_bytes((4, 3, 6, 5), device), index_of(4, device)
    op = torch.ops.fastadv.augment_batch.default
    mean, std = (torch.tensor(value, device=device) for value in (MEAN, STD))
    rest = (0.0, 1.0, 5, 6)
    plain = (images, index, 1, 2, 0, False, None, torch.float32, False, None, None, None, *rest)
    started = (images, index, 1, 2, 4, True, "random", torch.bfloat16, True, None, None, 0.1, *rest)
    normalised = (images, index, 1, 2, 4, False, None, torch.float16, True, mean, std, None, *rest)
    for arguments in (plain, started, normalised):
        torch.library.opcheck(op, arguments)


def test_nothing_is_written_and_no_generator_is_touched(implementation, device):
    images, index = random_bytes(SHAPES[0], device), index_of(9, device)
    before, state = images.clone(), torch.get_rng_state()
    augment_batch(images, index, crop=4, flip="random", start_eps=0.1)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_a_whole_call_compiles_without_a_graph_break(device):
    images, index = random_bytes(SHAPES[0], device), index_of(9, device)

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(images, index):
        return augment_batch(images, index, crop=4, flip="random", start_eps=0.1, seed=-1)

    expected = augment_batch(images, index, crop=4, flip="random", start_eps=0.1, seed=-1)
    got = compiled(images, index)
    assert torch.equal(got.x, expected.x) and torch.equal(got.x_start, expected.x_start)


ZERO, ONES = torch.zeros(4, 3, 5, 7, dtype=torch.uint8), torch.ones(3)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(images=torch.zeros(4, 3, 5, 5)), TypeError, "images must be uint8; got .*float32"),
        (dict(images=ZERO[0]), ValueError, r"images must be contiguous \(N, C, H, W\)"),
        (dict(images=ZERO.movedim(3, 1)), ValueError, "images must be contiguous.*once"),
        (dict(index=torch.zeros(2)), ValueError, r"index must be a \(B,\) int64 tensor.*float32"),
        (dict(index=torch.arange(2)[:, None]), ValueError, r"index must be .* got \(2, 1\)"),
        (dict(epoch=-1), ValueError, r"epoch must lie in \[0, 2\^24\); got -1"),
        (dict(start_draw=2**24), ValueError, r"start_draw must lie in \[0, 2\^24\); got 16777216"),
        (dict(crop=-1), ValueError, "crop must be 0 or more.*got -1"),
        (dict(crop=5, padding="reflect"), ValueError, r"below height and width.*got 5 .*\(5, 7\)"),
        (dict(padding="edge"), ValueError, r"padding must be one of \('zeros', .*; got 'edge'"),
        (dict(flip=True), ValueError, r"flip must be None or one of .*; got True"),
        (dict(dtype=torch.float64), ValueError, "dtype must be one of .*; got torch.float64"),
        (dict(mean=ONES), ValueError, "mean and std must be given together"),
        (dict(mean=ONES, std=ONES[:1]), ValueError, r"std must be a \(3,\) tensor.*; got \(1,\)"),
        (dict(mean=ONES, std=ONES, start_eps=0.1), ValueError, "in pixel units.*Normalized"),
        (dict(start_eps=-0.1), ValueError, "start_eps must not be negative; got -0.1"),
        (dict(start_eps=math.nan), ValueError, "start_eps must not be negative; got nan"),
        (dict(start_eps=0.1, bounds=(1.0, 0.0)), ValueError, "bounds must be .* lo < hi"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [augment_batch, augment_batch_reference])
def test_wrong_arguments_are_errors(change, error, message, function):
    arguments = dict(images=ZERO, index=torch.arange(2))
    arguments |= change
    with pytest.raises(error, match=message):
        function(arguments.pop("images"), arguments.pop("index"), **arguments)


def test_the_reference_has_the_signature_of_the_op(device):
    images, index = random_bytes(SHAPES[0], device), index_of(9, device)
    how = dict(seed=1, epoch=3, crop=2, padding="reflect", flip="alternate", start_eps=0.1)
    with backend.use_backend("reference"):
        expected = augment_batch(images, index, **how)
    got = augment_batch_reference(images, index, **how)
    assert torch.equal(got.x, expected.x) and torch.equal(got.x_start, expected.x_start)
