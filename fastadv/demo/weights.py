"""The weights that come with the package: `python -m fastadv.demo.weights [--out FOLDER]`.

Trains both networks of the demo with seed 0 on one CPU thread, about a minute, and writes what
`fastadv.models.digits_net(weights=...)` reads: float16 arrays, half the size of float32. A function
of the seed, but for how another CPU or torch rounds: so the files are committed, and their figures
are tested.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastadv.attacks import pgd
from fastadv.data import load_digits
from fastadv.demo.networks import EPS, train_fast, train_standard
from fastadv.evaluation import evaluate
from fastadv.threat_model import Linf

_SEED = 0
_RECIPES = {"digits_standard.npz": train_standard, "digits_fast_at.npz": train_fast}


def write_weights(folder: Path) -> None:
    """Train, write and say what was written; folder: digits_standard.npz, digits_fast_at.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, train in _RECIPES.items():
        net = train(*load_digits("train"), seed=_SEED)
        trained = accuracies(net)
        arrays = {key: value.half().numpy() for key, value in net.state_dict().items()}
        np.savez_compressed(folder / name, **arrays)
        net.load_state_dict({key: torch.from_numpy(a).float() for key, a in arrays.items()})
        written = accuracies(net)
        for precision, (clean, robust) in (("float32", trained), ("as written", written)):
            print(f"{name}, {precision}: clean {clean:.1%}, PGD-50-10 at {EPS:g} {robust:.1%}")


def accuracies(net: nn.Module) -> tuple[float, float]:
    """(clean, under PGD-50-10 at `EPS`, seed 0) on the 360 held-out digits."""
    attack = pgd(Linf(EPS), steps=50, restarts=10, seed=_SEED)
    report = evaluate(net, load_digits("test"), attack, progress=False)
    return report.clean_accuracy, report.robust_accuracy


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastadv.demo.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "models")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    write_weights(options.out)


if __name__ == "__main__":
    main()
