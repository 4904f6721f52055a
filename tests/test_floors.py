"""The house: imports go down only and in no circle, triton stays out, every package is shipped."""

import ast
import subprocess
import sys
from pathlib import Path

import house
import pytest
from import_graph import ImportGraph, floor_of

ROOT = house.ROOT

# The house, bottom to top: a file may import from its own floor and from those before it.
FLOORS = {
    "kernels": "Triton device code and launches, a folder a family; never sees torch",
    "version": "what reports and checkpoints record",
    "diagnostics": "warnings: what weakens an attack, or makes it slower",
    "files": "written whole or not at all; tensors read without running anything",
    "ops": "the same families: schema, eager reference, CPU path, Triton launch",
    "data": "data sets and loaders (beside the tower)",
    "models": "networks to attack and train (beside the tower)",
    "called_here": "what the names of other libraries are here, for errors",
    "values": "settings that may be tensors: compared, pasted back",
    "elements": "radii and bounds of elements",
    "region": "masks, radii and bounds of elements as the boxes that ops take",
    "threat_model": "Linf, L2, L1: what an adversary may change",
    "starts": "random starts in the ball",
    "sparse": "L0: how many entries may change",
    "objective": "what an adversary wants of a model that is no plain classifier",
    "objective_checks": "what the ready-made ones refuse",
    "objectives": "ready-made ones",
    "containment": "whether an example lies where its threat model lets it be",
    "losses": "what an attack ascends",
    "reach": "the modules that a model reaches, however it holds them",
    "recorded": "traced and exported models, whose mode is part of them",
    "isolation": "the user's model is left as it was",
    "execution": "how an attack is run, not what it computes",
    "memory": "what to do when it runs out",
    "outputs": "what a model may return",
    "wrappers": "Normalized, Unsquashed, BPDA: models of other inputs, outputs, gradients",
    "graphs": "recorded steps",
    "textbook": "the loops that everyone writes, to compare with",
    "quantise": "adversarial examples as bytes",
    "engine": "runs slot algorithms: plain, continuous, recorded",
    "oracle": "loss, input gradient and prediction at the slots; what is differentiated instead",
    "tuning": "measures how a model is attacked fastest",
    "attacks": "the families as slot algorithms and constructors; call/: what every call does",
    "selfcheck": "every kernel against its reference, on the device at hand",
    "ensemble": "AutoAttack and our own orders",
    "plots": "figures (beside the tower)",
    "evaluation": "robust accuracy over data sets: streamed, kept, shared out, reported",
    "training": "steps that give losses to the user's own loop",
    "recipes": "whole training runs",
    "fastadv": "the public names",
    "compat": "the names and signatures of the peers",
    "demo": "a first look",
    "cli": "commands",
    "__main__": "python -m fastadv",
}

GRAPH = ImportGraph(ROOT)


def climbing(graph: ImportGraph) -> list[str]:
    order = list(FLOORS)
    return [
        f"{module} imports {other}"
        for module, others in graph.dependencies.items()
        for other in others
        if order.index(floor_of(other)) > order.index(floor_of(module))
    ]


def _toy_house(folder: Path, files: dict[str, str]) -> ImportGraph:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return ImportGraph(folder)


def test_every_module_has_a_floor():
    assert {floor_of(module) for module in GRAPH.files} == set(FLOORS)


def test_imports_go_down_only():
    assert climbing(GRAPH) == []


def test_no_file_depends_on_itself_through_others():
    assert GRAPH.circles() == []


_PASSES_ON = {
    "fastadv/__init__.py": "",
    "fastadv/attacks/__init__.py": "from fastadv.attacks.named import pgd as pgd",
    "fastadv/attacks/named.py": "from fastadv.attacks.call import Call\ndef pgd(): ...",
}


def test_a_name_is_counted_to_the_file_that_defines_it(tmp_path):
    call = "import math\nclass Call: ..."
    graph = _toy_house(
        tmp_path,
        {
            **_PASSES_ON,
            "fastadv/attacks/call.py": call,
            "fastadv/ensemble/__init__.py": "",
            "fastadv/ensemble/cascade.py": "from fastadv.attacks import pgd, call",
            "kernels/__init__.py": "",
            "kernels/slots.py": "",
            "kernels/steps/__init__.py": "",
            "kernels/steps/linf.py": "from .. import slots\nfrom . import missing",
        },
    )
    assert graph.dependencies["fastadv.ensemble.cascade"] == {
        "fastadv.attacks.named",
        "fastadv.attacks.call",
    }
    assert graph.dependencies["fastadv.kernels.steps.linf"] == {
        "fastadv.kernels.slots",
        "fastadv.kernels.steps",
    }
    assert graph.circles() == [] and climbing(graph) == []


@pytest.mark.parametrize(
    "import_of_pgd",
    [
        "from fastadv.attacks import pgd",
        "def run():\n    from fastadv.attacks import pgd",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastadv.attacks import pgd",
        "from . import pgd",
        "from fastadv import attacks",
        "import fastadv.attacks",
    ],
)
def test_a_circle_is_found_wherever_its_import_stands(tmp_path, import_of_pgd):
    call = f"{import_of_pgd}\nclass Call: ..."
    graph = _toy_house(tmp_path, {**_PASSES_ON, "fastadv/attacks/call.py": call})
    (circle,) = graph.circles()
    assert {"fastadv.attacks.call", "fastadv.attacks.named"} <= set(circle)


def test_an_import_of_the_public_names_from_below_is_found(tmp_path):
    graph = _toy_house(
        tmp_path,
        {
            "fastadv/__init__.py": "from fastadv import training\nfrom fastadv.losses import ce",
            "fastadv/losses.py": "def ce(): ...",
            "fastadv/training.py": "",
            "fastadv/evaluation.py": "import fastadv\nfrom fastadv import ce, training",
        },
    )
    assert sorted(climbing(graph)) == [
        "fastadv.evaluation imports fastadv",
        "fastadv.evaluation imports fastadv.training",
    ]


def test_no_module_bears_the_name_of_what_its_package_exports():
    """`import fastadv.models.wide_resnet as module` would find the function."""
    for init in (ROOT / "fastadv").rglob("__init__.py"):
        package = ".".join(init.parent.relative_to(ROOT).parts)
        imports = [n for n in ast.parse(init.read_text()).body if isinstance(n, ast.ImportFrom)]
        exported = {
            alias.asname or alias.name for n in imports if n.module != package for alias in n.names
        }
        assert not exported & {path.stem for path in init.parent.iterdir()}, init


def test_kernels_never_import_torch():
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert "torch" not in {alias.name.split(".")[0] for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != "torch", path


def test_importing_fastadv_does_not_import_triton():
    code = "import sys, fastadv; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_package_is_listed_for_the_wheel():
    assert house.listed_packages(ROOT) == house.packages(ROOT)


def test_no_two_files_of_tests_share_a_name():
    """pytest imports them by their names alone, and then stops before any test."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert names == sorted(set(names))
