"""Every op: its reference dispatches to nothing; reference, CPU path and kernel agree."""

import numpy as np
import pytest
import torch
from members import MEMBERS, member
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import fastadv
from fastadv.ops import backend, registry
from fastadv.ops.fab.projection import hyperplane_projection

OPS = sorted(registry.implementations())
WITH_CPU_PATH = [name for name in OPS if registry.implementations()[name].cpu is not None]
# whose CPU path adds up a sample's elements in another order; the others equal the reference
CPU_ADDS_UP = ("fab_step_", "fab_nearest_", "hyperplane_projection")
KEPT = (1, 2, 4, 8, 12)  # which calls of an op are looked at: first steps, checks, late ones
KEPT_AGAIN = (4,)  # and of one that has been looked at in another norm


class Recorded(TorchDispatchMode):
    """Copies of the arguments of calls of our ops, by the op's name."""

    def __init__(self):
        super().__init__()
        self.calls = {}
        self.norm = ""
        self.seen = {}  # how many calls by the op's name and the norm

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastadv":
            name = func._schema.name.removeprefix("fastadv::")
            number = self.seen[name, self.norm] = self.seen.get((name, self.norm), 0) + 1
            is_again = any(op == name and norm != self.norm for op, norm in self.seen)
            if number in (KEPT_AGAIN if is_again else KEPT):
                self.calls.setdefault(name, []).append(copied(args))
        return func(*args, **(kwargs or {}))


class Forbidden(TorchDispatchMode):
    """Refuses our ops."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.namespace != "fastadv", f"the reference calls {func}"
        return func(*args, **(kwargs or {}))


def copied(arguments):
    def copy(value):
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone(memory_format=torch.preserve_format)

    return tree_map(copy, tuple(arguments))


def network(size):
    torch.manual_seed(0)
    layers = torch.nn.Flatten(), torch.nn.Linear(size, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
    return torch.nn.Sequential(*layers)


def attacks():
    threats = fastadv.Linf(0.03), fastadv.L2(0.3), fastadv.L1(2.0)
    for threat in threats:
        yield fastadv.pgd(threat, steps=3, keep="last")
        yield fastadv.pgd(threat, steps=3, keep="best")
        for name in MEMBERS:
            yield member(name, threat.norm, threat=threat)


def calls_of_attacks(shape):
    """Arguments that attacks give the ops, in mid-attack, and of ops that none of them calls."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, *shape, generator=generator)
    model = network(x[0].numel())
    y = model(x).argmax(1)
    grad = torch.randn(x.shape, generator=generator)
    with Recorded() as recorded:
        for attack in attacks():
            recorded.norm = attack.threat.norm
            attack(model, x, y)
        fastadv.ops.linf_step(x + 0.01, grad, x, step_size=0.01, eps=0.02)
        fastadv.ops.project_l1(x + 0.01 * grad, x, eps=1.0)
        for norm in ("linf", "l2", "l1"):
            w = grad.flatten(1)
            b = (w * x.flatten(1)).sum(1) + 0.5
            hyperplane_projection(x.flatten(1), w, b, norm=norm)
        images = (255 * x).to(torch.uint8)
        fastadv.ops.augment_batch(images, torch.arange(4), crop=2, flip="random", start_eps=0.1)
    return recorded.calls


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
        (backend, ("runs_triton", "explain", "is_reference_chosen")),
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


@pytest.mark.skipif(not backend.triton_is_installed(), reason="needs triton, on Linux only")
@pytest.mark.skipif(not backend.interpreting(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("name", OPS)
def test_the_kernel_agrees_with_the_reference(name, calls):
    run = registry.implementations()[name]
    for arguments in calls[name]:
        expected = results(run.reference, arguments)
        tolerance = run.trial.tolerance_of(arguments)
        assert_agree(results(run.launch, arguments), expected, tolerance)


@pytest.mark.parametrize("name", WITH_CPU_PATH)
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
