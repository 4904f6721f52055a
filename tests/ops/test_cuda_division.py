"""No reference leaves a division by a host number to aten, whose rule on CUDA is another one."""

import pytest
import torch
from cuda_division import DivisionAsOnCuda
from test_implementations import OPS, assert_agree, results

import fastadv
from fastadv.ops import backend, registry
from fastadv.ops.noise import start
from fastadv.ops.square.start import square_start
from fastadv.selfcheck.recording import calls_of_attacks

# in L1, L2 and Square some sums and means divide by the size of a sample: 105 has no exact inverse
SHAPE = (3, 5, 7)


@pytest.fixture(scope="module")
def calls():
    return calls_of_attacks(SHAPE)


def test_a_number_becomes_a_reciprocal():
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    exact, product = x / 1.5, x * (torch.ones(()) / 1.5)
    assert 0.2 < (exact != product).double().mean() < 0.5
    with DivisionAsOnCuda() as mode:
        assert torch.equal(x / 1.5, product)
        assert torch.equal(x / x.new_full((), 1.5), exact)
        assert torch.equal(x.clone().div_(1.5), product)
        assert torch.equal(torch.div(x, 1.5, out=torch.empty_like(x)), product)
        assert torch.equal(1.5 / x, x.reciprocal() * 1.5)
    assert mode.by_numbers == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_float32(dtype):
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    with DivisionAsOnCuda():
        got = x / 1.5
    assert got.dtype == dtype and torch.equal(got, (x.float() * (torch.ones(()) / 1.5)).to(dtype))


def test_numbers_that_are_copied_to_the_device_are_refused():
    with DivisionAsOnCuda(), pytest.raises(AssertionError, match="new_full"):
        torch.rand(2) / torch.tensor(1.5)
    with DivisionAsOnCuda(), pytest.raises(AssertionError, match="what does CUDA do"):
        torch.rand(2).mean()


def smoothed_cross_entropy(batch=4, classes=7):
    """Arguments of the loss head with label smoothing, which no attack asks for."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(batch, classes, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    out = torch.empty(batch), torch.empty_like(logits), torch.empty(batch, dtype=torch.int64)
    state = (torch.empty(batch, dtype=torch.bool), None, None)
    rules = ("cross_entropy", 0.1, 0, 0, False, 0, False)
    return (logits, labels, None, None, *out, *state, *rules)


def with_momentum(name, arguments):
    """The step's arguments with momentum, whose mean divides by the sample's size."""
    overload = getattr(torch.ops.fastadv, name).default
    call = dict(zip((a.name for a in overload._schema.arguments), arguments, strict=True))
    call |= dict(momentum=torch.full_like(call["x_adv"], 0.25), decay=0.5)
    return tuple(call.values())


def arguments_of(name, calls):
    yield from calls[name]
    if name == "loss_head_":
        yield smoothed_cross_entropy()
    if name in ("linf_step_", "l2_step_", "l1_step_"):
        yield with_momentum(name, calls[name][0])


@pytest.mark.parametrize("name", OPS)
def test_a_reference_gives_the_same_bits(name, calls):
    reference = registry.implementations()[name].reference
    for arguments in arguments_of(name, calls):
        expected = results(reference, arguments)
        with DivisionAsOnCuda() as mode:
            got = results(reference, arguments)
        assert mode.by_numbers == 0, "rounding.divided divides on every device"
        assert_agree(got, expected, 0.0)


@pytest.mark.skipif(not backend.triton_is_installed(), reason="needs triton, on Linux only")
@pytest.mark.skipif(not backend.interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", ["apgd_l1_check_", "apgd_linf_step_", "augment_batch"])
def test_the_kernel_is_the_reference_as_cuda_divides(name, calls):
    run = registry.implementations()[name]
    for arguments in calls[name]:
        with DivisionAsOnCuda():
            expected = results(run.reference, arguments)
        assert_agree(results(run.launch, arguments), expected, run.trial.tolerance_of(arguments))


@pytest.mark.parametrize("kind", start.KINDS)
def test_starts(kind):
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    expected = start.random_start_reference(x, eps=0.3, seed=1, kind=kind, scale=0.1)
    with DivisionAsOnCuda() as mode:
        assert torch.equal(
            start.random_start_reference(x, eps=0.3, seed=1, kind=kind, scale=0.1), expected
        )
    assert mode.by_numbers == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_of_square(norm):
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    with backend.use_backend("reference"):
        expected = square_start(x, eps=0.3, norm=norm, seed=1)
        with DivisionAsOnCuda() as mode:
            assert torch.equal(square_start(x, eps=0.3, norm=norm, seed=1), expected)
    assert mode.by_numbers == 0


def test_references_of_the_public_names():
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    for step in (
        fastadv.ops.linf_step_reference,
        fastadv.ops.l2_step_reference,
        fastadv.ops.l1_step_reference,
    ):
        expected = step(x, grad, x, step_size=0.3, eps=0.5)
        with DivisionAsOnCuda() as mode:
            assert torch.equal(step(x, grad, x, step_size=0.3, eps=0.5), expected)
        assert mode.by_numbers == 0
