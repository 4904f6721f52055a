"""The house: imports go down only, triton stays out, every package is shipped."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# bottom to top; a module may import from its own floor and from those before it
FLOORS = (
    "kernels",
    "ops",
    "data",
    "models",
    "threat_model",
    "losses",
    "isolation",
    "wrappers",
    "execution",
    "memory",
    "diagnostics",
    "graphs",
    "textbook",
    "quantise",
    "engine",
    "oracle",
    "attacks",
    "ensemble",
    "evaluation",
    "training",
    "compat",
    "recipes",
    "plots",
    "demo",
    "cli",
)


def _modules() -> list[tuple[Path, str]]:
    files = [(p, "kernels") for p in (ROOT / "kernels").rglob("*.py")]
    for path in (ROOT / "fastadv").rglob("*.py"):
        inside = path.relative_to(ROOT / "fastadv")
        if inside.parts[0] not in ("__init__.py", "__main__.py", "kernels"):
            files.append((path, inside.parts[0].removesuffix(".py")))
    return files


def _imports(path: Path) -> set[str]:
    """Floors of fastadv that `path` imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names]
    return {p[1] for p in parts if p[0] == "fastadv" and len(p) > 1 and p[1] in FLOORS}


def test_every_module_has_a_floor():
    assert {floor for _, floor in _modules()} <= set(FLOORS)


def test_imports_go_down_only():
    climbing = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for path, floor in _modules()
        for imported in _imports(path)
        if FLOORS.index(imported) > FLOORS.index(floor)
    ]
    assert climbing == []


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
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = set()
    for init in (ROOT / "fastadv").rglob("__init__.py"):
        package = init.parent.relative_to(ROOT).parts
        if "kernels" not in package:
            found.add(".".join(package))
    for init in (ROOT / "kernels").rglob("__init__.py"):
        found.add(".".join(("fastadv", *init.parent.relative_to(ROOT).parts)))
    assert listed == found
