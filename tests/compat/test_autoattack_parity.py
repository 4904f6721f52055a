"""fastadv.compat.autoattack against the authors' package, where that can be imported.

AUTOATTACK_PATH names a folder that holds it, if it is not installed. Starts and proposals are
other draws from the same distributions, so that runs are compared by their flags, on samples that
are far from undecided; FAB without restarts draws nothing, and is compared by its iterates.
"""

import dataclasses
import importlib
import inspect
import os
import re
import sys

import pytest
import torch
from torch.nn import functional as F

import fastadv.compat.autoattack as ours
from fastadv.compat.autoattack import checks
from fastadv.data.digits import load_digits
from fastadv.models import digits_net

MODULES = ("autoattack", "autopgd_base", "checks", "fab_pt", "other_utils", "square", "state")
CLASSES = [
    ("autoattack", "AutoAttack"),
    ("autopgd_base", "APGDAttack"),
    ("autopgd_base", "APGDAttack_targeted"),
    ("fab_pt", "FABAttack_PT"),
    ("square", "SquareAttack"),
    ("other_utils", "Logger"),
]
FUNCTIONS = [
    ("autopgd_base", "L1_projection"),
    ("checks", "check_randomized"),
    ("checks", "check_range_output"),
    ("checks", "check_zero_gradients"),
    ("checks", "check_square_sr"),
    ("checks", "check_dynamic"),
    ("checks", "check_n_classes"),
    ("other_utils", "check_imgs"),
    ("other_utils", "L0_norm"),
    ("other_utils", "L1_norm"),
    ("other_utils", "L2_norm"),
    ("other_utils", "makedir"),
]


@pytest.fixture(scope="module")
def theirs():
    folder = os.environ.get("AUTOATTACK_PATH")
    if folder:
        sys.path.insert(0, folder)
    try:
        package = importlib.import_module("autoattack")
        for name in MODULES:
            importlib.import_module(f"autoattack.{name}")
        return package
    except ImportError:
        pytest.skip("needs the authors' autoattack, installed or in the folder AUTOATTACK_PATH")
    finally:
        if folder:
            sys.path.remove(folder)


def both(theirs, module: str, name: str):
    """That name in our module and in theirs."""
    mine = importlib.import_module(f"fastadv.compat.autoattack.{module}")
    return getattr(mine, name), getattr(sys.modules[f"autoattack.{module}"], name)


def arguments(function) -> list[tuple]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_classes_have_the_authors_signatures(theirs, module, name):
    mine, other = both(theirs, module, name)
    assert arguments(mine.__init__) == arguments(other.__init__)
    public = [
        "perturb",
        "log",
        "get_logits",
        "get_seed",
        "set_version",
        "clean_accuracy",
        "run_standard_evaluation",
        "run_standard_evaluation_individual",
    ]
    shared = [method for method in public if hasattr(other, method)]
    assert shared
    for method in shared:
        assert arguments(getattr(mine, method)) == arguments(getattr(other, method)), method


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_functions_have_the_authors_signatures(theirs, module, name):
    mine, other = both(theirs, module, name)
    assert arguments(mine) == arguments(other)


def test_states_have_the_authors_names(theirs):
    mine, other = both(theirs, "state", "EvaluationState")
    private = {"_last_saved", "_SAVE_TIMEOUT"}  # of their way to save less often
    names = {f.name for f in dataclasses.fields(other)} - private
    names |= {name for name in vars(other) if not name.startswith("_")}
    state = mine(set())
    state.robust_flags = torch.ones(1)
    assert {name for name in names if not hasattr(state, name)} == set()


@pytest.mark.parametrize("version", ["standard", "plus", "rand", "custom"])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_attributes_and_their_values_are_the_authors(theirs, version, norm):
    internal = {
        "n_iter_2",
        "n_iter_min",
        "size_decr",
        "n_iter_orig",
        "eps_orig",
        "y_target",
        "use_rs",
        "return_all",
    }

    def shown(value: object) -> object:
        return type(value).__name__ if hasattr(value, "__dict__") else value

    made = [
        package.AutoAttack(torch.nn.Flatten(), norm=norm, eps=0.1, version=version, verbose=False)
        for package in (ours, theirs)
    ]
    for name in (None, "apgd", "apgd_targeted", "fab", "square"):
        mine, other = (m if name is None else getattr(m, name) for m in made)
        for attribute, value in vars(other).items():
            if attribute not in internal:
                assert shown(getattr(mine, attribute)) == shown(value), (name, attribute)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A trained network, without BatchNorm, and 40 images, a fifth of them misclassified."""
    net = digits_net(seed=0)
    x, y = load_digits("train")
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(60):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        loss = F.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = load_digits("test")
    y = y.clone()
    y[:40:6] = (y[:40:6] + 1) % 10
    return net.eval(), x[:40], y[:40]


class Lines(list):
    def log(self, line: str) -> None:
        self.append(line)


BUDGET = 20  # steps of the gradient attacks, 5 times as many queries


def adversary_of(package, net, **more):
    """The same attributes on both, so that theirs has the schedule that its n_iter asks for."""
    made = package.AutoAttack(net, **{"seed": 0, "device": "cpu", "version": "custom", **more})
    for attack in (made.apgd, made.apgd_targeted, made.fab):
        attack.n_iter = BUDGET
    if package is not ours:
        for attack in (made.apgd, made.apgd_targeted):
            attack.n_iter_orig = BUDGET
            attack.n_iter_2, attack.n_iter_min, attack.size_decr = int(0.22 * BUDGET), 1, 1
    made.apgd.n_restarts, made.fab.n_restarts = 2, 2
    made.square.n_queries = 5 * BUDGET
    made.logger = Lines()
    return made


RUNS = [
    ("Linf", 0.1, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ("Linf", 0.1, ["apgd-dlr", "fab", "square"]),
    ("Linf", 0.1, ["square", "fab-t", "apgd-ce"]),
    ("L2", 0.6, ["apgd-ce", "apgd-t", "fab-t", "square"]),
    ("L1", 1.5, ["apgd-ce", "apgd-t", "fab-t", "square"]),
]


@pytest.mark.parametrize(("norm", "eps", "attacks"), RUNS)
def test_flags_labels_and_log_are_the_authors(theirs, digits, norm, eps, attacks, capsys):
    net, x, y = digits
    found, logs = [], []
    for package in (ours, theirs):
        adversary = adversary_of(package, net, norm=norm, eps=eps, attacks_to_run=attacks)
        found.append(adversary.run_standard_evaluation(x, y, return_labels=True))
        logs.append(adversary.logger)
    (x_adv, y_adv), (their_x, their_y) = found
    robust, their_robust = y_adv == y, their_y == y
    assert torch.equal(robust, their_robust)
    assert 0 < int(robust.sum()) < int((net(x).argmax(1) == y).sum())
    returned_as_it_was = (their_x == x).flatten(1).all(1)
    assert torch.equal((x_adv == x).flatten(1).all(1), returned_as_it_was)
    assert torch.equal(y_adv[returned_as_it_was], their_y[returned_as_it_was])
    assert [_shape(line) for line in logs[0]] == [_shape(line) for line in logs[1]]


def _shape(line: str) -> str:
    """A line without what depends on the draws: seconds, the largest perturbation, and which of
    the attacks broke a sample."""
    if line.startswith("max "):
        return re.sub(r"-?\d+\.\d{5}", "#.#####", line)
    if " out of " in line:
        return re.sub(r"\d+ out of \d+", "# out of #", line)
    if line.startswith("robust accuracy after"):
        return re.sub(r"\d+\.\d\d%(.*) \d+\.\d s", r"#.##%\1 #.# s", line)
    return line


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.1), ("L2", 0.6), ("L1", 1.5)])
def test_fab_alone_returns_the_authors_points(theirs, digits, norm, eps, targeted):
    net, x, y = digits
    mine, other = both(theirs, "fab_pt", "FABAttack_PT")
    given = dict(norm=norm, eps=eps, n_iter=5, targeted=targeted, n_target_classes=3, device="cpu")
    x_adv, their_x = mine(net, **given).perturb(x, y), other(net, **given).perturb(x.clone(), y)
    moved = (their_x != x).flatten(1).any(1)
    assert int(moved.sum()) > 5
    assert torch.equal((x_adv != x).flatten(1).any(1), moved)
    # 16 roundings of a pixel, for five steps of projection, mixture and pull-back; 6 in practice
    torch.testing.assert_close(x_adv, their_x, rtol=0, atol=16 * 2**-24)


def test_individual_runs_print_the_authors_lines(theirs, digits):
    net, x, y = digits
    logs = []
    for package in (ours, theirs):
        adversary = adversary_of(package, net, eps=0.1, attacks_to_run=["apgd-ce", "fab"])
        adversary.run_standard_evaluation_individual(x, y)
        logs.append([re.sub(r"\d+\.\d s", "#.# s", line) for line in adversary.logger])
    assert logs[0] == logs[1]


def test_checks_say_the_authors_words(theirs, digits):
    net, x, y = digits
    mine, other = checks, sys.modules["autoattack.checks"]
    other.check_dynamic(net, x, logger=Lines())  # their counters are global and never cleared

    def softmax(z: torch.Tensor) -> torch.Tensor:
        return net(z).softmax(1)

    def noisy(z: torch.Tensor) -> torch.Tensor:
        return net(z) + torch.randn(len(z), 10)

    def told(module) -> Lines:
        log = Lines()
        assert module.check_range_output(softmax, x, logger=log) == 10
        module.check_randomized(noisy, x, y, logger=log)
        module.check_zero_gradients(torch.diag(torch.tensor([1.0, 0.0, 1.0])), logger=log)
        module.check_square_sr({"clean": 1.0, "fab": 0.5, "square": 0.45}, logger=log)
        for classes in (2, 3, 5):
            module.check_n_classes(classes, ["apgd-t", "fab-t"], 9, 9, logger=log)
            module.check_n_classes(classes, ["apgd-dlr"], 9, 9, logger=log)
            module.check_n_classes(classes, ["fab-t"], 9, 9, logger=log)
        return log

    assert told(mine) == told(other)
    assert len(told(mine)) == 12
