"""Every op: its reference dispatches to nothing; reference, CPU paths and kernel agree."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv.ops import backend, compiled, registry
from fastadv.selfcheck.recording import calls_of_attacks, copied

OPS = sorted(registry.implementations())
WITH_CPU_PATH = [name for name in OPS if registry.implementations()[name].cpu is not None]
WITH_LOOPS = [name for name in OPS if registry.implementations()[name].compiled is not None]
needs_loops = pytest.mark.skipif(bool(compiled.why_not()), reason=compiled.why_not())
# whose CPU path adds up a sample's elements in another order; the others equal the reference
CPU_ADDS_UP = ("fab_step_", "fab_nearest_", "hyperplane_projection")


class Forbidden(TorchDispatchMode):
    """Refuses our ops."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.namespace != "fastadv", f"the reference calls {func}"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def calls():
    return calls_of_attacks((3, 8, 8))


def test_every_op_is_looked_at(calls):
    assert sorted(calls) == OPS


@pytest.mark.parametrize("name", OPS)
def test_a_reference_dispatches_to_nothing(name, calls, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the reference asks what to run")

    for module, functions in (
        (registry, ("takes_cpu_path", "choose")),
        (backend, ("runs_triton", "runs_compiled", "explain", "is_reference_chosen")),
    ):
        for function in functions:
            monkeypatch.setattr(module, function, refuse)
    with torch.no_grad(), Forbidden():
        registry.implementations()[name].reference(*copied(calls[name][0]))


def results(implementation, arguments):
    """What an implementation returns and every tensor that it was given, written or not."""
    arguments = copied(arguments)
    # a GPU divides by zero without a word
    with torch.no_grad(), np.errstate(divide="ignore", invalid="ignore"):
        returned = implementation(*arguments)
    returned = returned if isinstance(returned, tuple) else (returned,)
    return [value for value in (*returned, *arguments) if isinstance(value, torch.Tensor)]


def assert_agree(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance and 1e-6, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", WITH_CPU_PATH)
def test_the_cpu_path_agrees_with_the_reference(name, calls):
    run = registry.implementations()[name]
    for arguments in calls[name]:
        expected = results(run.reference, arguments)
        tolerance = run.trial.tolerance_of(arguments) if name in CPU_ADDS_UP else 0.0
        assert_agree(results(run.cpu, arguments), expected, tolerance)


@needs_loops
@pytest.mark.parametrize("name", WITH_LOOPS)
def test_compiled_loops_agree_with_the_reference(name, calls):
    run = registry.implementations()[name]
    for arguments in calls[name]:
        expected = results(run.reference, arguments)
        assert_agree(results(run.compiled, arguments), expected, run.trial.tolerance_of(arguments))


@needs_loops
@pytest.mark.parametrize("name", WITH_LOOPS)
def test_loops_take_what_attacks_give_them(name, calls):
    run = registry.loops_of(registry.implementations()[name].module, name)
    assert [run(*copied(one)) is NotImplemented for one in calls[name]].count(False) > 0


@pytest.mark.skipif(not backend.triton_is_installed(), reason="needs triton, on Linux only")
@pytest.mark.skipif(not backend.interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", OPS)
def test_the_kernel_agrees_with_the_reference(name, calls):
    run = registry.implementations()[name]
    for arguments in calls[name]:
        expected = results(run.reference, arguments)
        tolerance = run.trial.tolerance_of(arguments)
        assert_agree(results(run.launch, arguments), expected, tolerance)


@pytest.mark.parametrize("name", sorted({*WITH_CPU_PATH, *WITH_LOOPS}))
def test_a_cpu_path_bumps_the_versions_of_what_it_may_write(name, calls):
    overload = getattr(torch.ops.fastadv, name).default
    arguments = copied(calls[name][0])
    before = [a._version if isinstance(a, torch.Tensor) else 0 for a in arguments]
    overload(*arguments)
    for argument, value, version in zip(overload._schema.arguments, arguments, before, strict=True):
        if isinstance(value, torch.Tensor):
            written = argument.alias_info is not None and argument.alias_info.is_write
            assert (value._version > version) == written, argument.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_which_tensors_take_a_cpu_path(dtype):
    x = torch.zeros(2, dtype=dtype)
    usual = dtype in (torch.float32, torch.float64)
    assert registry.takes_cpu_path(x) == usual and registry.takes_cpu_path(x, None)
    assert not registry.takes_cpu_path(torch.nn.Parameter(x), None)
    assert not registry.takes_cpu_path(x.to("meta"), None)
    with backend.use_backend("reference"):
        assert not registry.takes_cpu_path(x, None)
