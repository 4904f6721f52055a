"""The L-infinity step: the kernel equals its reference and the textbook expression, bit for bit."""

import pytest
import torch

from fastadv import ops

SHAPES = [(1,), (15,), (17,), (1023,), (2, 17), (3 * 32 * 32 * 7,), (3, 3, 8, 8)]


def _case(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    x = draw().to(dtype)
    x_adv = (x + 0.1 * (draw() - 0.5).to(dtype)).clamp(0, 1)
    return x_adv, (draw() - 0.5).to(dtype), x


def _textbook(x_adv, grad, x, step_size, eps, lo=0.0, hi=1.0):
    moved = x_adv + step_size * grad.sign()
    return torch.clamp(torch.min(torch.max(moved, x - eps), x + eps), lo, hi)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_textbook_expression(shape, either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case(shape))
    expected = _textbook(x_adv, grad, x, 0.01, 0.03)
    assert torch.equal(ops.linf_step(x_adv, grad, x, step_size=0.01, eps=0.03), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_place_equals_the_textbook_expression(shape, either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case(shape))
    expected = _textbook(x_adv, grad, x, 0.01, 0.03)
    returned = ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=0.03)
    assert returned is x_adv and torch.equal(x_adv, expected)


def test_per_sample_eps_and_step_size(either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((5, 3, 7)))
    eps = torch.tensor([0.0, 0.01, 0.02, 0.5, 1.0], device=device)
    step = torch.tensor([0.3, 0.001, 0.0, 0.04, -0.02], device=device)
    expected = _textbook(x_adv, grad, x, step.view(5, 1, 1), eps.view(5, 1, 1))
    assert torch.equal(ops.linf_step(x_adv, grad, x, step_size=step, eps=eps), expected)


def test_special_gradients(either_backend, device):
    values = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45]
    grad = torch.tensor([values], device=device)
    x = torch.full_like(grad, 0.5)
    moved = ops.linf_step(x, grad, x, step_size=0.125, eps=0.25)
    expected = [0.5, 0.5, 0.5, 0.625, 0.375, 0.625, 0.375]
    assert moved.tolist() == [expected]


def test_zero_gradient_leaves_the_input_unchanged(either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((4, 9)))
    inside = ops.linf_step(x_adv, torch.zeros_like(grad), x, step_size=0.0, eps=0.03)
    still = ops.linf_step(inside, torch.zeros_like(grad), x, step_size=0.5, eps=0.03)
    assert torch.equal(still, inside)


def test_a_nan_gradient_still_projects_and_clamps(either_backend, device):
    x = torch.tensor([[0.2, 0.99]], device=device)
    x_adv = torch.tensor([[0.5, 1.5]], device=device)
    nan = torch.full_like(x, float("nan"))
    assert ops.linf_step(x_adv, nan, x, step_size=1.0, eps=0.1).tolist() == [
        [float(x[0, 0] + 0.1), 1.0]
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_other_dtypes_compute_in_fp32_or_fp64_and_round_once(dtype, either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((3, 41), dtype))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = _textbook(x_adv.to(wide), grad.to(wide), x.to(wide), 0.007, 0.03).to(dtype)
    assert torch.equal(ops.linf_step(x_adv, grad, x, step_size=0.007, eps=0.03), expected)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0), None])
def test_other_bounds(bounds, either_backend, device):
    x_adv, grad, x = (t.to(device) * 2 - 1 for t in _case((3, 41)))
    lo, hi = bounds or (-float("inf"), float("inf"))
    expected = _textbook(x_adv, grad, x, 0.3, 0.4, lo, hi)
    assert torch.equal(
        ops.linf_step(x_adv, grad, x, step_size=0.3, eps=0.4, bounds=bounds), expected
    )


@pytest.mark.parametrize("in_place", [False, True])
def test_channels_last_sliced_and_expanded_inputs(in_place, either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((2, 3, 4, 6)))
    expected = _textbook(x_adv, grad, x, 0.01, 0.03)

    def check(a, g, b, expected):
        step = ops.linf_step_ if in_place else ops.linf_step
        moved = step(a, g, b, step_size=0.01, eps=0.03)
        assert torch.equal(moved, expected)
        if in_place:
            assert moved is a

    last = [t.contiguous(memory_format=torch.channels_last) for t in (x_adv, grad, x)]
    check(last[0].clone(memory_format=torch.preserve_format), last[1], last[2], expected)
    check(x_adv.clone(), last[1], x, expected)
    check(x_adv.clone()[..., ::2], grad[..., ::2], x[..., ::2], expected[..., ::2])
    row = x[:1].expand(2, 3, 4, 6)
    check(x_adv.clone(), grad, row, _textbook(x_adv, grad, row, 0.01, 0.03))


def test_the_result_keeps_channels_last(either_backend, device):
    x_adv, grad, x = (
        t.to(device).contiguous(memory_format=torch.channels_last) for t in _case((2, 3, 4, 5))
    )
    moved = ops.linf_step(x_adv, grad, x, step_size=0.01, eps=0.03)
    assert moved.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0,), (0, 3, 4, 4), (2, 0)])
def test_empty_inputs(shape, either_backend, device):
    x = torch.zeros(shape, device=device)
    assert ops.linf_step(x, x, x, step_size=0.1, eps=0.1).shape == shape
    assert ops.linf_step_(x, x, x.clone(), step_size=0.1, eps=0.1).shape == shape


def test_momentum_follows_the_accumulated_direction(either_backend, device):
    x_adv, _, x = (t.to(device).double() for t in _case((3, 50)))
    momentum = torch.zeros_like(x)
    expected_m, expected = torch.zeros_like(x), x_adv.clone()
    for seed in range(4):
        grad = _case((3, 50), torch.float64, seed=seed + 1)[1].to(device)
        expected_m = 0.9 * expected_m + grad / grad.abs().mean(1, keepdim=True)
        expected = _textbook(expected, expected_m, x, 0.01, 0.03)
        ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=0.03, momentum=momentum, decay=0.9)
    torch.testing.assert_close(momentum, expected_m, rtol=1e-14, atol=1e-14)
    assert torch.equal(x_adv, expected)


def test_a_zero_gradient_adds_no_momentum_and_freezes_nothing(either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((1, 8)))
    momentum = torch.zeros_like(x)
    ops.linf_step_(x_adv, torch.zeros_like(x), x, step_size=0.01, eps=0.03, momentum=momentum)
    assert momentum.abs().max() == 0
    before = x_adv.clone()
    ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=0.03, momentum=momentum)
    assert not torch.equal(x_adv, before)


@pytest.mark.parametrize("use_momentum", [False, True])
@pytest.mark.parametrize("out_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("in_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_model_input_is_written_in_the_same_pass(
    in_format, out_format, use_momentum, either_backend, device
):
    x_adv, _, x = (t.to(device) for t in _case((2, 3, 5, 7)))
    grad = _case((2, 3, 5, 7), torch.float16, seed=3)[1].to(device)
    mean = torch.tensor([0.1, 0.2, 0.3], device=device)
    std = torch.tensor([0.5, 0.25, 2.0], device=device)
    x_adv = x_adv.contiguous(memory_format=in_format)
    model_input = torch.full_like(grad, float("nan")).contiguous(memory_format=out_format)
    momentum = torch.zeros_like(x_adv) if use_momentum else None
    expected = _textbook(x_adv, grad.float(), x, 0.01, 0.03)
    ops.linf_step_(
        x_adv,
        grad,
        x,
        step_size=0.01,
        eps=0.03,
        momentum=momentum,
        model_input=model_input,
        mean=mean,
        std=std,
    )
    assert torch.equal(x_adv, expected)
    shape = (1, 3, 1, 1)
    normalised = (expected - mean.view(shape)) / std.view(shape)
    assert torch.equal(model_input, normalised.half())


def test_finished_slots_are_left_as_they_are(either_backend, device):
    from fastadv.kernels import slots as columns

    x_adv, grad, x = (t.to(device) for t in _case((4, 1500)))
    slots = torch.zeros(4, columns.WIDTH, dtype=torch.int32, device=device)
    slots[1::2, columns.ACTIVE] = 1
    expected = _textbook(x_adv, grad, x, 0.01, 0.03)
    expected[::2] = x_adv[::2]
    ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=0.03, slots=slots)
    assert torch.equal(x_adv, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_version_counter_grows_once_or_more(requires_grad, either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((2, 9)))
    x_adv.requires_grad_(requires_grad)
    before = x_adv._version
    with torch.no_grad():
        ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=0.03)
    assert x_adv._version > before and x_adv.grad_fn is None


def test_no_graph_is_recorded(either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((2, 9)))
    moved = ops.linf_step(x_adv.requires_grad_(), grad, x, step_size=0.01, eps=0.03)
    assert not moved.requires_grad


def test_works_under_inference_mode(either_backend, device):
    with torch.inference_mode():
        x_adv, grad, x = (t.to(device) for t in _case((2, 9)))
        expected = _textbook(x_adv, grad, x, 0.01, 0.03)
        assert torch.equal(ops.linf_step_(x_adv, grad, x, step_size=0.01, eps=0.03), expected)


def test_opcheck(either_backend, device):
    x_adv, grad, x = (t.to(device) for t in _case((2, 9)))
    functional = (x_adv, grad, x, 0.01, None, 0.03, None, 0.0, 1.0)
    torch.library.opcheck(torch.ops.fastadv.linf_step.default, functional)
    in_place = (*functional, None, None, 0.0, None, None, None, None)
    torch.library.opcheck(torch.ops.fastadv.linf_step_.default, in_place)


def test_compiles_into_one_graph_without_recompiling_for_a_second_batch_size(device):
    def step(x_adv, grad, x):
        return ops.linf_step(x_adv, grad, x, step_size=0.01, eps=0.03) * 1.0

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (4, 6, 8):
        case = [t.to(device) for t in _case((batch, 9))]
        with torch.compiler.set_stance("fail_on_recompile" if batch == 8 else "default"):
            assert torch.equal(compiled(*case), step(*case))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(grad=torch.zeros(2, 3)), r"grad must match x_adv: \(2, 9\)"),
        (dict(x=torch.zeros(2, 9, dtype=torch.float64)), "x must match x_adv"),
        (dict(eps=torch.zeros(3)), r"eps must be a float or a \(2,\) tensor"),
        (dict(step_size=torch.zeros(2, 1)), r"step_size must be a float or a \(2,\) tensor"),
        (dict(bounds=(1.0, 0.0)), "bounds must be"),
    ],
)
def test_bad_arguments_are_named(change, message):
    x_adv, grad, x = _case((2, 9))
    arguments = dict(x_adv=x_adv, grad=grad, x=x, step_size=0.01, eps=0.03) | change
    with pytest.raises(ValueError, match=message):
        ops.linf_step(**arguments)


def test_integer_images_are_refused():
    x = torch.zeros(2, 3, dtype=torch.uint8)
    with pytest.raises(TypeError, match="floating-point"):
        ops.linf_step(x, x, x, step_size=0.1, eps=0.1)
