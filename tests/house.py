"""Copies of the source tree, and what a tree holds: packages, and kernels that compile ahead."""

import ast
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    """`command` in `cwd`, without this process's PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def copy_of_the_tree(to: Path) -> Path:
    """The files git knows or would add, with the symlink as it is."""
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    for name in listed:
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return to


def listed_packages(root: Path) -> set[str]:
    """Those that pyproject.toml names for the wheel."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    return set(settings["tool"]["setuptools"]["packages"])


def packages(root: Path) -> set[str]:
    """Those that lie in the tree, kernels under the name that they are imported by."""
    found = set()
    for init in (root / "fastadv").rglob("__init__.py"):
        package = init.parent.relative_to(root).parts
        if "kernels" not in package:
            found.add(".".join(package))
    for init in (root / "kernels").rglob("__init__.py"):
        found.add(".".join(("fastadv", *init.parent.relative_to(root).parts)))
    return found


def kernel_modules(root: Path) -> list[str]:
    """`steps.linf`, ...: every module under kernels/."""
    kernels = root / "kernels"
    found = (path.relative_to(kernels).with_suffix("").parts for path in kernels.rglob("*.py"))
    return sorted(".".join(parts) for parts in found if parts[-1] != "__init__")


def kernels(root: Path) -> dict[str, set[str]]:
    """The arguments of every kernel that is launched, read off its source."""
    found = {}
    for path in (root / "kernels").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel"):
                arguments = {argument.arg for argument in node.args.args}
                if any(name.endswith("_ptr") for name in arguments):
                    found[node.name] = arguments
    return found


def aot_modules(root: Path) -> list[str]:
    """Those that declare cases to compile ahead of time, found by reading: importing them here
    would make their kernels interpreted."""
    return [
        name
        for name in kernel_modules(root)
        if "def aot_cases(" in (root / "kernels" / (name.replace(".", "/") + ".py")).read_text()
    ]
