"""Reports say which implementations ran; checkpoints go on with these alone.

Kernels run in Triton's interpreter, on CPU tensors that count as those of a GPU.
"""

import re

import pytest
import torch

import fastadv
from fastadv import ops
from fastadv.data import load_digits
from fastadv.diagnostics import ExecutionWarning
from fastadv.evaluation import evaluate
from fastadv.evaluation.report import Report
from fastadv.models import digits_net
from fastadv.ops import backend, compiled, registry

ON_CPUS, _ = backend.explain(torch.device("cpu"))
ATTACK = fastadv.pgd(fastadv.Linf(0.1), steps=2, seed=1)
interpreted = pytest.mark.skipif(
    not (backend.triton_is_installed() and backend.interpreting()),
    reason="needs triton and TRITON_INTERPRET=1",
)


@pytest.fixture(scope="module")
def data():
    x, y = load_digits("test")
    return x[:24], y[:24]


class Failing(torch.nn.Module):
    """digits_net that raises at its call `at`, or never (0), and counts its calls."""

    def __init__(self, at=0):
        super().__init__()
        self.net, self.at, self.calls = digits_net(3), at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("killed")
        return self.net(x)


def run(data, path=None, model=None):
    return evaluate(model or Failing(), data, ATTACK, batch_size=1, checkpoint=path)


def interrupted(data, path):
    """A checkpoint of one or two of three blocks."""
    whole = Failing()
    with ops.use_backend("reference"):
        run(data, model=whole)
    with pytest.raises(RuntimeError, match="killed"):
        run(data, path, Failing(at=whole.calls * 6 // 10))
    assert torch.load(path)["blocks"]


@pytest.mark.parametrize("chosen, ran", [("auto", ON_CPUS), ("reference", "reference")])
def test_a_report_names_the_backend(data, chosen, ran, tmp_path):
    with ops.use_backend(chosen):
        report = run(data)
    assert report.backend == ran and report.environment["backend"].startswith(f"{ran} (")
    assert report.summary()["backend"] == ran and "backend:" not in str(report)
    assert f"{ran} (" in report.to_html() and f"{ran} (" in report.to_markdown()
    report.save(tmp_path / "r.json")
    assert fastadv.Report.load(tmp_path / "r.json") == report


def test_a_report_that_was_saved_before_is_of_an_unknown_backend(data, tmp_path):
    report, path = run(data), tmp_path / "r.json"
    text, count = re.subn(f'"backend": "{ON_CPUS}", ', "", report.to_json(), count=1)
    assert count == 1
    path.write_text(text)
    assert fastadv.Report.load(path).backend == "unknown"
    path.write_text(report.to_json().replace(f'"backend": "{ON_CPUS}"', '"backend": 3'))
    with pytest.raises(ValueError, match="backend is not a text"):
        fastadv.Report.load(path)


def test_a_checkpoint_goes_on_with_the_same_backend_alone(data, tmp_path):
    path = tmp_path / "c.pt"
    interrupted(data, path)
    with (
        ops.use_backend("reference"),
        pytest.raises(ValueError, match=f"with the backend '{ON_CPUS}', and 'reference' would.*it"),
    ):
        run(data, path)
    assert torch.equal(run(data, path).success, run(data).success)
    with compiled.hidden(), pytest.raises(ValueError, match="and 'cpu' would run here"):
        if ON_CPUS == "cpu":
            pytest.skip(compiled.why_not())
        run(data, path)
    assert run(data, path).backend == ON_CPUS


def test_a_checkpoint_without_a_backend_is_of_another_version(data, tmp_path):
    path = tmp_path / "c.pt"
    interrupted(data, path)
    saved = torch.load(path)
    for name in ("backend", "fell_back"):
        torch.save({k: v for k, v in saved.items() if k != name}, path)
        with pytest.raises(ValueError, match="not a checkpoint of this version"):
            run(data, path)


@pytest.fixture
def gpu(monkeypatch):
    """A process that has called no op, where "auto" chooses kernels for CPU tensors; restarted by
    calling it, with the kernel of linf_step_ broken or whole."""
    monkeypatch.setattr(backend, "_TRITON_DEVICES", ("cuda", "cpu"))
    launching = registry.kernels("steps.linf")
    original = launching.launch_linf_step
    trials = [one.trial for one in registry.implementations().values()]
    before = [(set(one.passed), dict(one.failed)) for one in trials]

    def broken(*_, **__):
        raise LookupError("no such instruction")

    def restarted(*, whole):
        for one in trials:
            one.passed.clear()
            one.failed.clear()
        monkeypatch.setattr(launching, "launch_linf_step", original if whole else broken)

    with ops.use_backend("auto"):
        yield restarted
    restarted(whole=True)
    for one, (passed, failed) in zip(trials, before, strict=True):
        one.passed.update(passed)
        one.failed.update(failed)


FELL_BACK = "triton, but references of linf_step_"


def said_of(report: Report) -> list[str]:
    return [report.backend, *re.findall("backend: (.*)", str(report))]


@interpreted
def test_a_report_names_the_ops_whose_kernels_failed(data, gpu):
    gpu(whole=False)
    with pytest.warns(ExecutionWarning, match="linf_step_"):
        report = run(data)
    assert said_of(report) == [FELL_BACK] * 2
    assert report.environment["backend"].startswith(f"{FELL_BACK} (tensors are on cpu")
    gpu(whole=True)
    assert said_of(run(data)) == ["triton"]


@interpreted
def test_what_failed_there_is_not_run_here(data, gpu, tmp_path):
    path = tmp_path / "c.pt"
    gpu(whole=False)
    with pytest.warns(ExecutionWarning, match="linf_step_"):
        interrupted(data, path)
    gpu(whole=True)
    assert run(data, path).backend == FELL_BACK  # without a trial, whose warning would be an error
    assert run(data, path).backend == FELL_BACK


@interpreted
@pytest.mark.parametrize("why", ["passed", "insists"])
def test_a_kernel_that_runs_here_does_not_go_on_where_it_failed(data, gpu, tmp_path, why):
    path = tmp_path / "c.pt"
    gpu(whole=False)
    with pytest.warns(ExecutionWarning, match="linf_step_"):
        interrupted(data, path)
    gpu(whole=True)
    if why == "passed":
        run(data)
    message = "with the reference of linf_step_, whose kernel failed there, .* runs here. Go on"
    with (
        ops.use_backend("triton" if why == "insists" else "auto"),
        pytest.raises(ValueError, match=message),
    ):
        run(data, path)


@interpreted
def test_a_kernel_that_fails_here_does_not_go_on_where_it_ran(data, gpu, tmp_path):
    path = tmp_path / "c.pt"
    gpu(whole=True)
    interrupted(data, path)
    gpu(whole=False)
    with (
        pytest.warns(ExecutionWarning, match="linf_step_"),
        pytest.raises(ValueError, match="with kernels that fail on cpu: linf_step_. Go on where"),
    ):
        run(data, path)
    gpu(whole=True)
    assert run(data, path).backend == "triton"
