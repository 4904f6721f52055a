"""A new family of attacks: folders, packages, public names, an entry in tests/members.py; all else
finds it, the tests of every attack and of every op too."""

import collections
import re
import sys
import zipfile
from pathlib import Path

import house
import pytest
from import_graph import ImportGraph
from members import MEMBERS
from test_floors import climbing

from fastadv.ops import registry

_FILES = {
    "kernels/shift/__init__.py": '"""Kernels of shift."""\n',
    "kernels/shift/shift.py": """
def aot_cases():
    return []


def launch_shift(x, by):
    return x + by
""",
    "fastadv/ops/shift/__init__.py": '"""The op of shift."""\n',
    "fastadv/ops/shift/shift.py": """
from fastadv.ops import registry


def shift_reference(x, by):
    return x + by


def _launch(x, by):
    from fastadv.kernels.shift import shift

    return shift.launch_shift(x, by)


SHIFT = registry.register(
    "shift(Tensor x, float by) -> Tensor",
    reference=shift_reference,
    launch=_launch,
    fake=shift_reference,
)
""",
    "fastadv/attacks/shift/__init__.py": '"""Shift."""\n',
    "fastadv/attacks/shift/attack.py": """
import torch

from fastadv.attacks.attack import constructor
from fastadv.attacks.gradient.attack import GradientAttack
from fastadv.ops.shift import shift as ops


class ShiftedAttack(GradientAttack):
    def algorithm(self, *arguments, **more):
        ops.SHIFT(torch.zeros(2, 3), 0.5)
        return super().algorithm(*arguments, **more)


@constructor
def shifted(threat, *, steps=3, restarts=1, keep="first_success", seed=0):
    return ShiftedAttack(
        "shifted",
        threat,
        steps=steps,
        step_size=None,
        restarts=restarts,
        random_start=True,
        keep=keep,
        seed=seed,
    )
""",
}
_ENTRY = """
    "shifted": Member(
        dict(steps=5, restarts=2),
        passes=(1, 1),
        ops=2,
        takes_target=True,
        scales={"linf": 0.4, "l2": 0.4, "l1": 0.4},
    ),"""
_PACKAGES = {"fastadv.kernels.shift", "fastadv.ops.shift", "fastadv.attacks.shift"}

_USE = """
import torch, fastadv
from fastadv.attacks import shifted
from fastadv.attacks.attack import constructors
from fastadv.ops.shift import shift
attack = shifted(fastadv.Linf(0.25), steps=2)
assert attack == fastadv.shifted(fastadv.Linf(0.25), steps=2)
assert repr(attack) == "fastadv.shifted(fastadv.Linf(0.25), steps=2)", attack
assert "shifted" in constructors()
x = torch.full((2, 3), 0.5)
assert torch.equal(shift.SHIFT(x, 0.5), x + 0.5)
weight = torch.tensor([[1.0, -1.0], [2.0, 0.5], [0.0, 1.0]])
assert attack.run(lambda x: x @ weight, x, torch.tensor([0, 0])).distance.max() <= 0.25
print(fastadv.__file__)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with a family, entered everywhere but in pyproject.toml."""
    tree = house.copy_of_the_tree(tmp_path_factory.mktemp("tree"))
    for name, text in _FILES.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text(text)
    with (tree / "fastadv/attacks/__init__.py").open("a") as file:
        file.write("from fastadv.attacks.shift.attack import shifted as shifted\n")
    with (tree / "fastadv/__init__.py").open("a") as file:
        file.write("from fastadv.attacks import shifted as shifted\n")
    members = tree / "tests/members.py"
    members.write_text(members.read_text().replace("ATTACKS = {", "ATTACKS = {" + _ENTRY, 1))
    return tree


@pytest.fixture(scope="module")
def listed(tree: Path) -> Path:
    assert house.packages(tree) - house.listed_packages(tree) == _PACKAGES  # it would be missed
    settings = tree / "pyproject.toml"
    lines = "".join(f'    "{name}",\n' for name in sorted(_PACKAGES))
    settings.write_text(settings.read_text().replace("packages = [\n", f"packages = [\n{lines}"))
    return tree


def test_its_packages_are_found_and_listed(listed):
    assert house.listed_packages(listed) == house.packages(listed)


def test_its_files_stand_on_the_floors_that_are_there(listed):
    graph = ImportGraph(listed)
    assert "fastadv.kernels.shift.shift" in graph.dependencies["fastadv.ops.shift.shift"]
    assert climbing(graph) == [] and graph.circles() == []


def test_a_circle_through_it_is_found(listed):
    op = listed / "fastadv/ops/shift/shift.py"
    before = op.read_text()
    op.write_text(f"{before}\n\ndef _attack():\n    from fastadv.attacks import shifted\n")
    graph = ImportGraph(listed)
    op.write_text(before)
    assert climbing(graph) == ["fastadv.ops.shift.shift imports fastadv.attacks.shift.attack"]
    assert graph.circles() == [["fastadv.attacks.shift.attack", "fastadv.ops.shift.shift"]]


def test_its_kernels_are_compiled_ahead_of_time(listed):
    assert set(house.aot_modules(listed)) - set(house.aot_modules(house.ROOT)) == {"shift.shift"}
    assert "shift.shift" in house.kernel_modules(listed)


def test_its_attack_is_known_by_name(listed):
    assert str(listed) in house.run(sys.executable, "-c", _USE, cwd=listed).stdout


def test_its_files_are_in_the_wheel(listed, tmp_path):
    pytest.importorskip("build", reason="needs the optional package build")
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path)
    house.run(*command, listed, cwd=listed)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {f"fastadv/{name.removeprefix('fastadv/')}" for name in _FILES} <= names


_GENERIC = [
    "tests/attacks",
    "tests/ops/test_implementations.py",
    "tests/test_no_differentiated_clamp.py",
]
# what is declared of it in tests/members.py, and what tells that something is missing there
_CARRIED_OUT = (
    "(shift and (test_members_costs or test_implementations)) or every_op_is_looked_at "
    "or every_attack_is_put_through_the_contracts"
)
_PYTEST = f"""
import sys
import pytest

class Asked:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        print(*("asked: " + item.nodeid for item in items), sep="\\n", flush=True)

options = ["-x", "-s", "-p", "no:cacheprovider", "-k", {_CARRIED_OUT!r}]
sys.exit(pytest.main([*options, *{_GENERIC!r}], plugins=[Asked()]))
"""


def test_what_is_asked_of_every_attack_and_of_every_op_is_asked_of_its_own(listed):
    told = house.run(sys.executable, "-c", _PYTEST, cwd=listed).stdout
    asked = collections.defaultdict(set)
    for node, words in re.findall(r"^asked: (\S+?)\[(.*)\]$", told, re.MULTILINE):
        asked[node] |= set(re.split("[- ]", words))
    of_all = {node for node, words in asked.items() if set(MEMBERS) <= words}
    assert len(of_all) > 20
    assert {node for node in of_all if "shifted" not in asked[node]} == set()
    # every op has a reference and a kernel, not every one a path for CPUs
    ops = set(registry.implementations())
    of_ops = {node for node, words in asked.items() if ops <= words}
    assert len(of_ops) > 1 and all("shift" in asked[node] for node in of_ops)
