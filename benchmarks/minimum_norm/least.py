"""The least distances that are known of every point: a file, made once and then kept as it is."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.harness.networks import Problem
from benchmarks.harness.peers import Unavailable
from benchmarks.minimum_norm import points
from benchmarks.minimum_norm.counted import NORMS
from benchmarks.minimum_norm.entrants import ALGORITHMS, OURS, Algorithm, Entrant, minimum_norm
from benchmarks.minimum_norm.optimality import tightened
from benchmarks.minimum_norm.runs import Found
from fastadv.files import write_atomically

FILE = Path(__file__).with_name("least.json")
_PASSES = 2000
_JOINT, _JOINT_SEEDS = 4000, (0, 1, 2)  # passes of the ensemble


def read(models: Path, network: str, norm: str, which: points.Which) -> torch.Tensor:
    """(n,) float64, of the file, or of the references beside the models; ValueError where neither
    has any."""
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    known = stored.get(which, {}).get(network, {}).get(norm)
    if known is not None:
        return torch.tensor(known, dtype=torch.float64)
    of_norm = {other: points.stored_least(models, network, other) for other in NORMS}
    found = {other: values for other, values in of_norm.items() if values is not None}
    if which != "report" or norm not in found:
        raise ValueError(
            f"no distances of {network} in {norm} are known, points to {which}: run `python -m "
            "benchmarks.minimum_norm least` first"
        )
    return tightened(found)[norm]


def write(
    models: Path, out: Path, networks: Sequence[str], norms: Sequence[str], which: points.Which
) -> None:
    """Find what is not in `out` yet, and enter the least of everything in the file."""
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    for network in networks:
        problem = points.load(models, network, which)
        entry = stored.setdefault(which, {}).setdefault(network, {})
        found = {norm: _least(models, out, problem, norm, which) for norm in norms}
        before = {norm: torch.tensor(values) for norm, values in entry.items() if norm not in found}
        for norm, values in tightened(found | before).items():
            entry[norm] = values.tolist()
        write_atomically(FILE, (json.dumps(stored, sort_keys=True) + "\n").encode())


def _least(
    models: Path, out: Path, problem: Problem, norm: str, which: points.Which
) -> torch.Tensor:
    values = []
    for algorithm, entrant in _members(norm):
        steps_of = functools.partial(_steps_for, problem, norm, algorithm, entrant)
        values.append(_kept(out, problem, norm, which, algorithm.name, entrant, steps_of))
    values += [
        _kept(out, problem, norm, which, f"minimum_norm {seed}", minimum_norm(seed), lambda: _JOINT)
        for seed in _JOINT_SEEDS
    ]
    before = points.stored_least(models, problem.name, norm) if which == "report" else None
    if before is not None:
        values.append(before)
    return torch.stack(values).min(0).values


def _members(norm: str) -> list[tuple[Algorithm, Entrant]]:
    """Of fastadv, each once."""
    found: dict[str, tuple[Algorithm, Entrant]] = {}
    for algorithm in ALGORITHMS:
        for entrant in algorithm.entrants:
            is_single = entrant.library == OURS and algorithm.name != "minimum_norm"
            if is_single and norm in algorithm.norms and _is_there(entrant, norm):
                found.setdefault(algorithm.name, (algorithm, entrant))
    return list(found.values())


def _is_there(entrant: Entrant, norm: str) -> bool:
    try:
        entrant.make(norm, 10)
    except Unavailable:
        return False
    return True


def _kept(
    out: Path,
    problem: Problem,
    norm: str,
    which: points.Which,
    name: str,
    entrant: Entrant,
    steps_of: Callable[[], int],
) -> torch.Tensor:
    """From the file of an earlier run where there is one."""
    path = out / f"{which}__{problem.name}__{norm}__{name}.json"
    if not path.exists():
        print(path.stem, flush=True)
        steps = steps_of()
        nearest = Found(entrant.make(norm, steps), problem, norm).nearest.tolist()
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"steps": steps, "nearest": nearest}).encode())
    return torch.tensor(json.loads(path.read_text())["nearest"], dtype=torch.float64)


def _steps_for(problem: Problem, norm: str, algorithm: Algorithm, entrant: Entrant) -> int:
    """For about 2,000 passes a sample."""
    few = Problem(problem.name, problem.data, problem.model, problem.x[:4], problem.y[:4])
    counted = Found(entrant.make(norm, algorithm.steps), few, norm).counted
    return round(_PASSES * algorithm.steps / (counted.forwards + counted.backwards))
