"""Which file of a source tree depends on which, read from the imports without running them."""

import ast
from collections.abc import Iterator
from pathlib import Path

KERNELS = "fastadv.kernels"  # `kernels/` is imported under this name


class ImportGraph:
    """The modules of `fastadv/` and `kernels/` under `root`, and what each depends on.

    A dependency is counted to the file that defines the name: `from fastadv.attacks import pgd`
    depends on the file with `def pgd`, through whatever `__init__` passes it on. Imports inside
    functions and under TYPE_CHECKING count like all others.
    """

    def __init__(self, root: Path) -> None:
        self.files = dict(_modules(root))
        self._imported = {name: list(_imports(name, path)) for name, path in self.files.items()}
        self.dependencies = {
            name: {found for wanted in imported if (found := self._defining(*wanted[:2]))} - {name}
            for name, imported in self._imported.items()
        }

    def _defining(
        self, module: str, name: str | None, seen: frozenset[tuple[str, str]] = frozenset()
    ) -> str | None:
        """The module that `name` of `module` comes from, None where it is none of this tree."""
        if name is None or module not in self.files:
            return module if module in self.files else None
        if f"{module}.{name}" in self.files:
            return f"{module}.{name}"
        if (module, name) in seen:
            return None
        for source, original, local in self._imported[module]:
            if local == name and (source in self.files or f"{source}.{original}" in self.files):
                return self._defining(source, original, seen | {(module, name)})
        return module

    def circles(self) -> list[list[str]]:
        """Groups of modules that all depend on each other, directly or not; [] if there is none."""
        reached = {name: self._reached(name) for name in self.files}
        groups = {
            tuple(sorted(b for b in reached[a] if a in reached[b]))
            for a in self.files
            if a in reached[a]
        }
        return [list(group) for group in sorted(groups)]

    def _reached(self, name: str) -> set[str]:
        reached: set[str] = set()
        ahead = list(self.dependencies[name])
        while ahead:
            one = ahead.pop()
            if one not in reached:
                reached.add(one)
                ahead += self.dependencies[one]
        return reached


def floor_of(module: str) -> str:
    """ "ops" for fastadv.ops.steps.linf; "fastadv" for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for top in ("fastadv", "kernels"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if parts[:2] == ("fastadv", "kernels"):
                continue  # the symbolic link to kernels/
            name = ".".join(parts).removesuffix(".__init__")
            yield (f"fastadv.{name}" if top == "kernels" else name), path


def _imports(module: str, path: Path) -> Iterator[tuple[str, str | None, str]]:
    """(module, name in it or None, local name) of every import statement."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, alias.asname or alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
            source = ".".join([*above, *filter(None, [node.module])]) if node.level else node.module
            for alias in node.names:
                yield source or "", alias.name, alias.asname or alias.name
