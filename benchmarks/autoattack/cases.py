"""The third-party models of the AutoAttack comparison, and what its authors' code said of them.

The models are no part of the project: a folder with `load_models.py`, whose `load(name, n)` returns
(module in eval mode, x in [0, 1], y), and where they exist `reference/NAME__Linf_EPS_nN.json` with
the cascade of the authors' AutoAttack on the first N points, `autoattack.robust` a string of 0/1.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.harness.networks import Problem


@dataclass(frozen=True)
class EnsembleCase:
    """L-infinity at eps, written as in the name of the reference; samples: the first so many.

    is_default: run where none is named.
    """

    model: str
    eps_text: str
    samples: int
    is_default: bool = True

    @property
    def eps(self) -> float:
        numerator, _, denominator = self.eps_text.partition("/")
        return float(numerator) / float(denominator or 1)


# as many samples as the references have; without one, enough for about 35 that are correct
CASES = {
    case.model: case
    for case in (
        EnsembleCase("mnist_kw_0.1", "0.1", 150),
        EnsembleCase("mnist_wong_0.3", "0.3", 150),
        EnsembleCase("cifar_wide_kw", "2/255", 250),
        EnsembleCase("cifar_madry_8px", "8/255", 100),
        EnsembleCase("mnist_tf", "0.3", 150, is_default=False),  # 15 minutes a round
    )
}
DEFAULT = [name for name, case in CASES.items() if case.is_default]


def load(case: EnsembleCase, folder: Path, samples: int) -> Problem:
    """The model of a case, its parameters requiring grad as users have them, and its samples."""
    loader = loader_of(folder)
    model, x, y = loader.load(case.model, n=samples)
    data = f"{loader.info(case.model)['dataset']}, first test points"
    return Problem(case.model, data, model.requires_grad_(True), x, y)


def reference(case: EnsembleCase, folder: Path) -> str | None:
    """The stored mask of the authors' AutoAttack, "1" for a point that stays robust; or None."""
    eps = case.eps_text.replace("/", "of")
    found = sorted((folder / "reference").glob(f"{case.model}__Linf_{eps}_n*.json"))
    if not found:
        return None
    stored: dict[str, Any] = json.loads(found[0].read_text())
    return stored["autoattack"]["robust"]


def loader_of(folder: Path) -> ModuleType:
    """Its load_models.py, imported."""
    path = folder / "load_models.py"
    spec = importlib.util.spec_from_file_location("load_models", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ValueError(f"--models must be a folder with load_models.py; got {folder.name!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
