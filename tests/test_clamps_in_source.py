"""Functions that take gradients call no clamp, but for those in which it is not differentiated.

So a new one is noticed, also where no walk of `test_no_differentiated_clamp` runs it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from clamp_watch import NAMES, ROOT

# (file, function) that takes a gradient, and why no clamp is in what it differentiates; all of them
# but the first are walked
_ALLOWED = {
    ("benchmarks/clamping/rules.py", "installed_rule"): "it is the clamp that is asked about",
    ("fastadv/textbook.py", "pgd"): "a start, and a step after its gradient, both detached",
    ("fastadv/training/yopo.py", "input_gradient"): "before the leaf; outside it is masked",
    ("benchmarks/harness/networks.py", "_train"): "a step after its gradient, detached",
    ("benchmarks/masked/networks.py", "forward"): "an activation that is to lose gradients",
    ("benchmarks/reference/loops.py", "mifgsm"): "a step after its gradient, detached",
    ("benchmarks/reference/training.py", "fast_step"): "of a detached delta",
    ("benchmarks/reference/training.py", "free_replays"): "a step after its gradient, into .data",
    ("benchmarks/reference/training.py", "_backward_step"): "a step, detached by its callers",
    ("benchmarks/reference/training_regularised.py", "_ascend"): "a step after its gradient",
    ("benchmarks/reference/training_yopo.py", "yopo_step"): "a step after its gradient, detached",
}


def _suspects(path: Path) -> Iterator[tuple[str, int]]:
    """(function, line) of each clamp in a function that takes gradients or is differentiated."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.Lambda):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        name = getattr(function, "name", "lambda")
        if name == "forward" or any(map(_takes_a_gradient, calls)):
            yield from ((name, call.lineno) for call in calls if _clamps(call))


def _takes_a_gradient(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    return name.endswith(("autograd.grad", ".backward", ".requires_grad_", ".enable_grad"))


def _clamps(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if owner == "torch" and name in ("max", "min"):  # of two tensors, not along a dimension
        return len(call.args) == 2 and not isinstance(call.args[1], ast.Constant | ast.UnaryOp)
    return owner not in ("np", "numpy") and name in NAMES | {"Hardtanh", "ReLU6"}


def test_no_function_that_takes_gradients_clamps():
    found = set()
    for folder in ("fastadv", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            file = str(path.relative_to(ROOT))
            found |= {(file, name, line) for name, line in _suspects(path)}
    unknown = {f"{f}:{line} in {name}" for f, name, line in found if (f, name) not in _ALLOWED}
    assert not unknown
    assert {(file, name) for file, name, _ in found} == set(_ALLOWED)  # nothing is out of date


@pytest.mark.parametrize(
    "line",
    [
        "x.clamp(0, 1)",
        "torch.clip(x, max=1)",
        "x.clamp_min_(0)",
        "F.hardtanh(x)",
        "nn.ReLU6()(x)",
        "torch.minimum(x, y)",
        "torch.max(x, y)",
        "clamp(x)",
    ],
)
def test_every_form_is_a_suspect(tmp_path: Path, line: str):
    path = tmp_path / "loop.py"
    for first in ("loss.backward()", "torch.autograd.grad(a, b)", "x.requires_grad_()"):
        path.write_text(f"def step(x):\n    {first}\n    return {line}\n")
        assert list(_suspects(path)) == [("step", 3)]
    path.write_text(f"def forward(x):\n    return {line}\n")
    assert list(_suspects(path)) == [("forward", 2)]
    path.write_text(f"def step(x):\n    with torch.enable_grad():\n        return {line}\n")
    assert list(_suspects(path)) == [("step", 3)]


@pytest.mark.parametrize("line", ["np.clip(x, 0, 1)", "torch.max(x, 1)", "x.max()", "torch.min(x)"])
def test_reductions_and_arrays_are_none(tmp_path: Path, line: str):
    path = tmp_path / "loop.py"
    path.write_text(f"def step(x):\n    loss.backward()\n    return {line}\n")
    assert not list(_suspects(path))


def test_a_function_that_takes_no_gradient_may_clamp(tmp_path: Path):
    path = tmp_path / "loop.py"
    path.write_text("def step(x):\n    return x.clamp(0, 1)\n")
    assert not list(_suspects(path))
