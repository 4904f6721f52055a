"""Batches of bytes: every pixel of every sample against plain loops, in both backends."""

import math

import pytest
import torch

from fastadv.data import to_unit_interval
from fastadv.kernels.noise import streams
from fastadv.ops import augment_batch, augment_batch_reference, backend, random_start
from fastadv.ops.noise import philox
from fastadv.wrappers import Normalized

SHAPES = [(9, 3, 8, 8), (6, 1, 7, 5), (5, 3, 5, 11), (4, 2, 33, 31)]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def _bytes(shape, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def _index(samples, device="cpu"):
    """Out of order, and one sample twice."""
    return torch.tensor([samples - 1, 0, 2, 0, 1], device=device)


def _word(seed, sample, purpose, draw, element):
    return int(philox.words(seed, torch.tensor([sample]), purpose, draw, 2)[0, element])


def _plain(images, index, *, seed=0, epoch=0, crop=0, padding="zeros", flip=None):
    """One pixel at a time, in python integers: the bytes that augment_batch scales."""
    _, channels, height, width = images.shape
    batch = torch.zeros((len(index), *images.shape[1:]), dtype=torch.uint8)
    for row, sample in enumerate(index.tolist()):
        down = (_word(seed, sample, streams.AUGMENT_CROP, epoch, 0) * (2 * crop + 1) >> 32) - crop
        right = (_word(seed, sample, streams.AUGMENT_CROP, epoch, 1) * (2 * crop + 1) >> 32) - crop
        mirrored = False
        if flip == "random":
            mirrored = _word(seed, sample, streams.AUGMENT_FLIP, epoch, 0) % 2 == 1
        if flip == "alternate":
            mirrored = (_word(seed, sample, streams.AUGMENT_FLIP, 0, 0) + epoch) % 2 == 1
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + down, (width - 1 - x if mirrored else x) + right
                if padding == "reflect":
                    from_y, from_x = _mirror(from_y, height), _mirror(from_x, width)
                if 0 <= from_y < height and 0 <= from_x < width:
                    batch[row, :, y, x] = images[sample, :, from_y, from_x].cpu()
    return batch


def _mirror(position, size):
    if position < 0:
        return -position
    return 2 * (size - 1) - position if position >= size else position


@pytest.mark.parametrize("flip", [None, "random", "alternate"])
@pytest.mark.parametrize("crop, padding", [(0, "zeros"), (4, "zeros"), (4, "reflect")])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_every_pixel_is_the_one_that_plain_loops_choose(
    shape, crop, padding, flip, implementation, device
):
    images, index = _bytes(shape, device), _index(shape[0], device)
    for epoch in (0, 5):
        how = dict(seed=-3, epoch=epoch, crop=crop, padding=padding, flip=flip)
        x, x_start = augment_batch(images, index, **how)
        assert torch.equal(x.cpu(), to_unit_interval(_plain(images, index, **how)))
        assert x_start is None and x.is_contiguous() and x.device == images.device


def test_a_crop_larger_than_the_image_may_leave_only_zeros(implementation, device):
    images, index = _bytes((9, 1, 3, 2), device) | 1, torch.arange(9, device=device)
    x = augment_batch(images, index, crop=20).x
    assert torch.equal(x.cpu(), to_unit_interval(_plain(images, index, crop=20)))
    assert (x.flatten(1) == 0).all(1).any()


def test_without_augmentation_it_is_indexing_and_scaling(implementation, device):
    images, index = _bytes(SHAPES[0], device), _index(9, device)
    assert torch.equal(augment_batch(images, index).x, to_unit_interval(images[index]))


def test_all_256_bytes_are_divided_with_one_rounding(implementation, device):
    images = torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 16, 16)
    x = augment_batch(images, torch.zeros(1, dtype=torch.int64, device=device)).x
    exact = (torch.arange(256, dtype=torch.float64) / 255).float()
    assert torch.equal(x.flatten().cpu(), exact)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtypes_and_layouts_round_the_same_pixels_once(
    shape, dtype, channels_last, implementation, device
):
    images, index = _bytes(shape, device), _index(shape[0], device)
    how = dict(seed=8, epoch=2, crop=4, flip="random")
    expected = to_unit_interval(_plain(images, index, **how)).to(dtype)
    x = augment_batch(images, index, dtype=dtype, channels_last=channels_last, **how).x
    assert x.dtype == dtype and torch.equal(x.cpu(), expected)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert x.stride() == torch.empty(x.shape, memory_format=memory_format).stride()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_normalising_rounds_as_the_model_wrapper_does(dtype, channels_last, implementation, device):
    images, index = _bytes(SHAPES[0], device), _index(9, device)
    how = dict(crop=2, flip="alternate", channels_last=channels_last)
    mean, std = (torch.tensor(value, device=device) for value in (MEAN, STD))
    wrapper = Normalized(torch.nn.Identity(), MEAN, STD).to(device)
    expected = wrapper(augment_batch(images, index, **how).x).to(dtype)
    x = augment_batch(images, index, dtype=dtype, mean=mean, std=std, **how).x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "dtype, bounds",
    [
        (torch.float32, (0.0, 1.0)),
        (torch.float32, None),
        (torch.bfloat16, (0.25, 0.5)),
        (torch.float16, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
def test_the_start_is_random_start_of_the_augmented_batch(
    shape, dtype, channels_last, bounds, implementation, device
):
    images, index = _bytes(shape, device), _index(shape[0], device)
    how = dict(seed=1, epoch=2, crop=3, flip="random", dtype=dtype, channels_last=channels_last)
    x, x_start = augment_batch(
        images, index, start_eps=0.3, start_seed=-9, start_draw=7, bounds=bounds, **how
    )
    assert x_start is not None
    assert torch.equal(x, augment_batch(images, index, **how).x)
    expected = random_start(x, eps=0.3, seed=-9, sample_ids=index, draw=7, bounds=bounds)
    assert torch.equal(x_start, expected)
    assert x_start.dtype == dtype and x_start.stride() == x.stride()
    assert not torch.equal(x_start, x)


def test_a_start_of_radius_zero_is_x(implementation, device):
    images, index = _bytes(SHAPES[0], device), _index(9, device)
    x, x_start = augment_batch(images, index, start_eps=0.0, crop=1)
    assert x_start is not None and torch.equal(x, x_start)


@pytest.mark.parametrize("rows", [[0], [4], [3, 1], [4, 3, 2, 1, 0]], ids=str)
def test_a_sample_is_augmented_alike_in_any_batch(rows, implementation, device):
    images, index = _bytes((5, 3, 9, 9), device), torch.arange(5, device=device)
    how = dict(epoch=4, crop=4, flip="random", start_eps=0.1)
    together, alone = (augment_batch(images, i, **how) for i in (index, index[rows]))
    assert torch.equal(alone.x, together.x[rows])
    assert alone.x_start is not None and together.x_start is not None
    assert torch.equal(alone.x_start, together.x_start[rows])


def test_an_alternating_flip_is_undone_in_the_next_epoch(implementation, device):
    images, index = _bytes((40, 1, 2, 3), device), torch.arange(40, device=device)
    first, second, third = (
        augment_batch(images, index, epoch=epoch, flip="alternate").x for epoch in range(3)
    )
    assert torch.equal(first, third) and torch.equal(first, second.flip(3))
    kept = (first == to_unit_interval(images)).flatten(1).all(1).sum()
    assert 8 < kept < 32  # half of 40 in the first epoch; beyond 4 deviations otherwise


def test_seeds_epochs_and_samples_are_cropped_elsewhere(implementation, device):
    images = _bytes((1, 1, 12, 12), device).expand(64, 1, 12, 12).contiguous()
    index = torch.arange(64, device=device)
    variants = (dict(), dict(seed=1), dict(seed=2**32), dict(epoch=1))
    batches = [augment_batch(images, index, crop=4, **variant).x for variant in variants]
    for i, one in enumerate(batches):
        assert len(one.flatten(1).unique(dim=0)) > 32  # 64 draws of 81 offsets: 44 expected
        for other in batches[:i]:
            assert (one == other).flatten(1).all(1).sum() < 8  # 64 / 81 expected


def test_crops_are_uniform_over_all_offsets():
    words = philox.words(0, torch.arange(8100), streams.AUGMENT_CROP, 0, 2)
    where = ((words * 9) >> 32) @ torch.tensor([9, 1])
    counts = torch.bincount(where, minlength=81)
    assert counts.min() > 50 and counts.max() < 150  # 100 each, 5 deviations
    image = torch.arange(81, dtype=torch.uint8).view(1, 1, 9, 9).expand(8100, 1, 9, 9).contiguous()
    middle = augment_batch_reference(image, torch.arange(8100), crop=4).x[:, 0, 4, 4]
    assert torch.equal((middle * 255).round().long(), where)


# The layout is for ever: [top, left] of the crop with pad 4, and the flips of seven epochs.
GOLDEN_SAMPLES = [0, 1, 2, 59999]
GOLDEN_CROPS = [[4, 5], [1, 3], [2, 2], [5, 7]]
GOLDEN_RANDOM = ["0001000", "0010110", "1011000", "0011101"]
GOLDEN_ALTERNATE = ["0101010", "0101010", "1010101", "0101010"]


def test_golden_crops_and_flips(implementation, device):
    position = torch.arange(81, dtype=torch.uint8, device=device).view(1, 1, 9, 9)
    images, index = position.repeat(60000, 1, 1, 1), torch.tensor(GOLDEN_SAMPLES, device=device)
    middle = augment_batch(images, index, seed=2026, epoch=3, crop=4).x[:, 0, 4, 4]
    where = (middle * 255).round().long()
    assert torch.stack((where // 9, where % 9), 1).tolist() == GOLDEN_CROPS
    for flip, expected in (("random", GOLDEN_RANDOM), ("alternate", GOLDEN_ALTERNATE)):
        corners = [
            augment_batch(images, index, seed=2026, epoch=epoch, flip=flip).x[:, 0, 0, 0] > 0
            for epoch in range(7)
        ]
        flips = ["".join(map(str, row)) for row in torch.stack(corners, 1).int().tolist()]
        assert flips == expected


@pytest.mark.parametrize("shape", [(7, 3, 8, 8), (7, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch, shape, implementation, device):
    images = _bytes(shape, device)
    index = torch.full((batch,), 6, device=device)
    how = dict(crop=1, flip="random")
    x, x_start = augment_batch(images, index, start_eps=0.1, channels_last=True, **how)
    assert x_start is not None and x.shape == x_start.shape == (batch, *shape[1:])
    assert torch.equal(x.cpu(), to_unit_interval(_plain(images, index, **how)))


def test_an_index_may_be_strided(implementation, device):
    images = _bytes((9, 1, 4, 4), device)
    index = torch.arange(9, device=device)[::2]
    assert torch.equal(augment_batch(images, index).x, to_unit_interval(images[::2]))


def test_an_index_outside_of_the_set_is_never_read(device):
    if not backend.triton_is_installed():
        pytest.skip("needs triton, which is installed on Linux only")
    images = _bytes((3, 3, 5, 5), device)
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

    images, index = _bytes((9, 3, 8, 8), device), _index(9, device)
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
    images, index = _bytes((4, 3, 6, 5), device), _index(4, device)
    op = torch.ops.fastadv.augment_batch.default
    mean, std = (torch.tensor(value, device=device) for value in (MEAN, STD))
    rest = (0.0, 1.0, 5, 6)
    plain = (images, index, 1, 2, 0, False, None, torch.float32, False, None, None, None, *rest)
    started = (images, index, 1, 2, 4, True, "random", torch.bfloat16, True, None, None, 0.1, *rest)
    normalised = (images, index, 1, 2, 4, False, None, torch.float16, True, mean, std, None, *rest)
    for arguments in (plain, started, normalised):
        torch.library.opcheck(op, arguments)


def test_nothing_is_written_and_no_generator_is_touched(implementation, device):
    images, index = _bytes(SHAPES[0], device), _index(9, device)
    before, state = images.clone(), torch.get_rng_state()
    augment_batch(images, index, crop=4, flip="random", start_eps=0.1)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)


def test_a_whole_call_compiles_without_a_graph_break(device):
    images, index = _bytes(SHAPES[0], device), _index(9, device)

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
    images, index = _bytes(SHAPES[0], device), _index(9, device)
    how = dict(seed=1, epoch=3, crop=2, padding="reflect", flip="alternate", start_eps=0.1)
    with backend.use_backend("reference"):
        expected = augment_batch(images, index, **how)
    got = augment_batch_reference(images, index, **how)
    assert torch.equal(got.x, expected.x) and torch.equal(got.x_start, expected.x_start)
