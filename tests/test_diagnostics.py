"""Warnings name the user's line: of the call into fastadv, not of what lies inside of it."""

import ast
import asyncio
import inspect
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch
from torch import nn

import fastadv
from fastadv import diagnostics, training
from fastadv.compat import autoattack, torchattacks

ROOT = Path(__file__).resolve().parents[1]
LINF = fastadv.Linf(0.1)


def probabilities() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Softmax(1))


class Clamping(nn.Module):
    """Loses the gradient of what lies at a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(nn.functional.hardtanh(x, 0.0, 1.0))


X = (torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
Y = torch.arange(6) % 4
NET = probabilities()


class Attacked(nn.Module):
    """A user's module that attacks: torch's frames stand between it and who calls it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return fastadv.fgsm(LINF)(NET, x, Y)


def normalised() -> None:
    attack = torchattacks.FGSM(NET, eps=0.1)
    attack.set_normalization_used([0.5], [0.5])
    attack(X, Y)


def free() -> None:
    for loss in training.FreeAT(LINF)(Clamping(), X, Y):
        loss.backward()


def graphed() -> torch.Tensor:
    optimizer = torch.optim.SGD(NET.parameters(), lr=0.1)
    run = training.graphed(training.FastAT(LINF), optimizer)
    run._settle(X.device)
    run._graphs.backend = object()  # of a GPU: it refuses what is no module
    return run(lambda x: NET(x), X, Y)


CALLS = {
    "attack": lambda: fastadv.pgd(LINF, steps=2)(NET, X, Y),
    "run": lambda: fastadv.pgd(LINF, steps=2).run(NET, X, Y),
    "module": Attacked.forward,
    "wrapped": lambda: fastadv.pgd(LINF, steps=2)(fastadv.Normalized(NET, [0.5], [0.5]), X, Y),
    "ensemble": lambda: fastadv.autoattack(LINF, "custom", attacks=[fastadv.fgsm(LINF)])(NET, X, Y),
    "evaluation": lambda: fastadv.evaluate(NET, (X, Y), fastadv.fgsm(LINF)),
    "curve": lambda: fastadv.robustness_curve(NET, (X, Y), fastadv.fgsm(LINF), eps=[0.1, 0.2]),
    "training": lambda: training.FastAT(LINF, clamp_start=True).loss(Clamping(), X, Y),
    "free training": free,
    "graphed training": graphed,
    "torchattacks": lambda: torchattacks.BIM(Clamping(), eps=0.1, steps=2)(X, Y),
    "normalisation": normalised,
    "autoattack": lambda: autoattack.checks.check_range_output(NET, X),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_warning_names_the_line_of_the_call(name):
    called = CALLS[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Attacked()(X) if name == "module" else called()
    assert said
    lines = {line for *_, line in called.__code__.co_lines()}
    for warning in said:
        assert warning.filename == __file__, warning
        assert warning.lineno in lines, warning


def in_a_pool() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fastadv.fgsm(LINF).run, NET, X, Y).result()


def in_a_pool_of_another_kind() -> None:
    with ThreadPool(1) as pool:
        pool.starmap(fastadv.fgsm(LINF), [(NET, X, Y)])


def in_a_thread() -> None:
    thread = threading.Thread(target=fastadv.fgsm(LINF), args=(NET, X, Y))
    thread.start()
    thread.join()


def in_a_loop_of_events() -> None:
    async def waits() -> None:
        await asyncio.to_thread(fastadv.fgsm(LINF), NET, X, Y)

    asyncio.run(waits())


THREADS = (in_a_pool, in_a_pool_of_another_kind, in_a_thread, in_a_loop_of_events)


@pytest.mark.parametrize("called", THREADS)
def test_a_warning_of_a_thread_names_the_line_that_waits_for_it(called):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        called()
    assert {type(warning.message) for warning in said} == {fastadv.AttackWarning}
    assert {warning.filename for warning in said} == {__file__}
    source, first = inspect.getsourcelines(called)
    assert {warning.lineno for warning in said} <= set(range(first, first + len(source)))


def test_a_function_of_the_users_in_a_thread_is_named_itself():
    def attacks() -> None:
        fastadv.fgsm(LINF)(NET, X, Y)

    with warnings.catch_warnings(record=True) as said, ThreadPoolExecutor(1) as pool:
        warnings.simplefilter("always")
        pool.submit(attacks).result()
    first = attacks.__code__.co_firstlineno
    assert [(w.filename, w.lineno) for w in said] == [(__file__, first + 1)]


def test_the_filters_of_the_users_module_apply():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=__name__.rpartition(".")[2])
        fastadv.fgsm(LINF)(NET, X, Y)
    assert said == []


def test_code_of_the_package_is_told_by_its_module_wherever_its_file_lies():
    scope = {"__name__": "fastadv.run", "emit": diagnostics.emit}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exec(compile("emit(UserWarning('x'))", "inside.py", "exec"), scope)
    assert [str(warning.message) for warning in said] == ["x"]
    assert said[0].filename == __file__


def test_every_warning_goes_through_diagnostics():
    for path in (ROOT / "fastadv").rglob("*.py"):
        if path != ROOT / "fastadv" / "diagnostics.py":
            names = {n.attr for n in ast.walk(ast.parse(path.read_text())) if _is_of_warnings(n)}
            assert "warn" not in names, f"{path}: use fastadv.diagnostics.emit"


def _is_of_warnings(node: ast.AST) -> bool:
    is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    return is_attribute and node.value.id == "warnings"
