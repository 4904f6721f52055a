"""A kernel's first call on a device is compared with its reference, which takes over where it must.

Kernels run in Triton's interpreter, on CPU tensors that count as those of a GPU.
"""

import warnings

import pytest
import torch

import fastadv
from fastadv import ops
from fastadv.diagnostics import ExecutionWarning
from fastadv.ops import backend, registry, trial
from fastadv.ops.steps.select import select_rows_
from fastadv.selfcheck.recording import copied

CPU = torch.device("cpu")
pytestmark = [
    pytest.mark.skipif(not backend.triton_is_installed(), reason="needs triton, on Linux only"),
    pytest.mark.skipif(not backend.interpreting(), reason="needs TRITON_INTERPRET=1"),
]


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """A process that has called no op, where "auto" chooses kernels for CPU tensors."""
    monkeypatch.setattr(backend, "_TRITON_DEVICES", ("cuda", "cpu"))
    trials = [one.trial for one in registry.implementations().values()]
    before = [(set(one.passed), dict(one.failed)) for one in trials]
    forget(trials)
    with ops.use_backend("auto"):
        yield
    forget(trials)
    for one, (passed, failed) in zip(trials, before, strict=True):
        one.passed.update(passed)
        one.failed.update(failed)


def forget(trials):
    for one in trials:  # in place: the op looks into this set
        one.passed.clear()
        one.failed.clear()


@pytest.fixture
def kernel(monkeypatch):
    """Puts another launch of linf_step in its place; the batch sizes that it was launched on."""
    module = registry.kernels("steps.linf")
    original = module.launch_linf_step
    launched = []

    def plant(launch=None):
        def noted(out, *arguments, **layout):
            launched.append(len(out))
            (launch or original)(out, *arguments, **layout)

        monkeypatch.setattr(module, "launch_linf_step", noted)
        return launched

    return plant


def too_far(out, *_, **__):
    out.add_(0.25)


def broken(*_, **__):
    raise LookupError("no such\n  instruction")


def images(batch=20):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, 3, 4, 5, generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    return (x + 0.01).clamp_(0, 1), grad, x


def step_(x_adv, grad, x, **more):
    return ops.linf_step_(x_adv, grad, x, step_size=0.02, eps=0.03, **more)


def expected_of(x_adv, grad, x):
    return ops.linf_step_reference(x_adv, grad, x, step_size=0.02, eps=0.03)


def test_a_good_kernel_is_tried_once_on_eight_rows(kernel):
    launched = kernel()
    call = images()
    expected = expected_of(*call)
    assert torch.equal(step_(*call), expected)
    assert launched == [8, 20]
    expected = expected_of(*call)
    assert torch.equal(step_(*call), expected)
    assert launched == [8, 20, 20]


def test_a_small_batch_is_tried_whole_and_an_empty_one_not_at_all(kernel):
    launched = kernel()
    step_(*images(0))
    step_(*images(3))
    assert launched == [0, 3, 3]


def test_a_kernel_that_has_passed_costs_a_look_into_a_set(kernel, monkeypatch):
    step_(*images())
    monkeypatch.setattr(trial.Trial, "trusts", None)
    step_(*images())


@pytest.mark.parametrize(
    "launch, said",
    [(too_far, r"differs .* by 0\.2\d+ in x_adv, where 0 is allowed"), (broken, "LookupError: no")],
)
def test_the_reference_takes_the_place_of_a_kernel_that_fails(kernel, launch, said):
    launched = kernel(launch)
    call = images()
    expected = expected_of(*call)
    with pytest.warns(ExecutionWarning, match=f"kernel of linf_step_ on cpu .*{said}") as warned:
        got = step_(*call)
    assert got is call[0] and torch.equal(got, expected)
    (one,) = warned
    assert one.filename == __file__
    assert f"torch {torch.__version__}, triton 3." in str(one.message)
    assert launched == [8]
    expected = expected_of(*call)
    assert torch.equal(step_(*call), expected)  # a warning would be an error
    assert launched == [8]


def test_ops_are_judged_one_by_one(kernel):
    launched = kernel(broken)
    with pytest.warns(ExecutionWarning):
        step_(*images())
    x_adv, _, x = images()
    select_rows_(x_adv, x, torch.ones(len(x), dtype=torch.int32))
    assert torch.equal(x_adv, x) and launched == [8]
    tried = {name: one.trial for name, one in registry.implementations().items()}
    assert [name for name, one in tried.items() if CPU in one.passed] == ["select_rows_"]
    assert registry.fallen_back(CPU) == ("linf_step_",)


def test_it_is_remembered_where_the_warning_is_an_error(kernel):
    launched = kernel(broken)
    call = images()
    before = copied(call)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ExecutionWarning):
            step_(*call)
        assert all(map(torch.equal, call, before))
        step_(*call)
    assert launched == [8]


@pytest.mark.parametrize("launch, error", [(too_far, RuntimeError), (broken, LookupError)])
def test_who_insists_on_triton_is_told(kernel, launch, error):
    kernel(launch)
    call = images()
    before = copied(call)
    with ops.use_backend("triton"):
        for _ in range(2):
            with pytest.raises(error):
                step_(*call)
    assert all(map(torch.equal, call, before))
    with pytest.warns(ExecutionWarning):
        step_(*call)
    with ops.use_backend("triton"), pytest.raises(error):
        step_(*call)


@pytest.mark.parametrize("launch", [None, too_far, broken])
def test_nothing_else_is_touched(kernel, launch, count_launches):
    kernel(launch)
    call = images()
    before, versions = copied(call), [one._version for one in call]
    random = torch.get_rng_state()
    with count_launches() as launches, warnings.catch_warnings():
        warnings.simplefilter("ignore", ExecutionWarning)
        step_(*call)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(call[0], expected_of(*before))
    assert all(map(torch.equal, call[1:], before[1:]))
    assert [one._version > v for one, v in zip(call, versions, strict=True)] == [True, False, False]
    assert launches == ([] if launch else ["linf_step_kernel"])


def test_tensors_of_inference_mode(kernel):
    launched = kernel()
    with torch.inference_mode():
        call = images()
        expected = expected_of(*call)
        assert torch.equal(step_(*call), expected)
    assert launched == [8, 20]


@pytest.mark.parametrize(
    "place, questions",
    [
        (torch.cuda, ("is_initialized", "is_current_stream_capturing")),
        (torch.compiler, ("is_compiling",)),
    ],
)
def test_a_trial_waits_for_an_eager_call(kernel, monkeypatch, place, questions):
    launched = kernel(too_far)
    with monkeypatch.context() as recording:
        for question in questions:
            recording.setattr(place, question, lambda: True)
        step_(*images())
    assert launched == [20]
    with pytest.warns(ExecutionWarning):
        step_(*images())
    assert launched == [20, 8]


def test_a_trial_waits_for_memory(kernel):
    def full(out, *_, **__):
        if len(out) == 8:
            raise torch.OutOfMemoryError("none left")

    launched = kernel(full)
    step_(*images())
    step_(*images())
    assert launched == [8, 20, 8, 20]


def test_a_reference_that_cannot_run_judges_nobody(kernel, monkeypatch):
    launched = kernel()
    step = registry.implementations()["linf_step_"].trial
    monkeypatch.setattr(step, "_reference", broken)
    call = images()
    expected = expected_of(*call)
    assert torch.equal(step_(*call), expected) and launched == [20]


def test_what_a_call_gives_may_widen_its_tolerance(kernel):
    launched = kernel()
    call = images()
    tolerance_of = registry.implementations()["linf_step_"].trial.tolerance_of
    parameters = registry.implementations()["linf_step_"].trial.parameters
    for given, allowed in ((None, 0.0), (torch.zeros_like(call[0]), 1e-6)):
        call_of_op = [given if name == "momentum" else None for name in parameters]
        assert tolerance_of(call_of_op) == allowed
    step_(*call, momentum=torch.zeros_like(call[0]))
    assert launched == [8, 20]


@pytest.mark.parametrize("more", [dict(shared=("b",)), dict(tolerance_with={"b": 1.0})])
def test_a_registration_names_arguments_that_there_are(more):
    usual = dict(shared=(), tolerance=0.0, tolerance_with={})
    with pytest.raises(ValueError, match=r"op has no arguments \['b'\]"):
        trial.Trial("op", ["a"], reference=print, launch=print, **usual | more)


def test_attacks_go_on_with_the_reference(kernel):
    kernel(too_far)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 4))
    _, _, x = images()
    y = model(x).argmax(1)
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=3, keep="last")
    with pytest.warns(ExecutionWarning, match="linf_step_"):
        got = attack(model, x, y)
    with ops.use_backend("reference"):
        assert torch.equal(got, attack(model, x, y))
