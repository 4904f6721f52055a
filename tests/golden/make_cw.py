"""Runs C&W of adversarial-library and of foolbox on the stored tiny model and writes what they do.

    PYTHONPATH=<checkout of jeromerony/adversarial-library> python make_cw.py <folder>

See README.md for what is in the files.
"""

import importlib
import sys
from pathlib import Path

import foolbox
import numpy as np
import torch
from make_nearest import INF, SHOWN, _without_what_these_attacks_do_not_use
from tiny_model import TinyModel

FOLDER = Path(__file__).parent
COMMON = dict(learning_rate=0.05, initial_const=0.125)
RUNS = {  # and what each sample's batch is: alone where the batch would decide when a round ends
    "cw_l2": (dict(binary_search_steps=4, max_iterations=20, abort_early=False, **COMMON), False),
    "cw_l2_abort": (
        dict(binary_search_steps=10, max_iterations=20, confidence=0.2, **COMMON),
        True,
    ),
    "cw_linf": (dict(max_iterations=12, **COMMON), True),
}


def _without_repeats(points: list[torch.Tensor]) -> list[torch.Tensor]:
    """A round of L-infinity looks once more at the point that ended the last one."""
    pairs = zip(points, points[1:], strict=False)
    return points[:1] + [b for a, b in pairs if not torch.equal(a, b)]


def _write(path: Path, asked, x: torch.Tensor, adv: torch.Tensor, p: float) -> None:
    lengths = [[float((z - x[i]).norm(p=p)) for z in points] for i, points in enumerate(asked)]
    np.savez_compressed(
        path,
        counts=np.array([len(row) for row in lengths]),
        lengths=np.concatenate(lengths),
        adv=adv[list(SHOWN)].numpy(),
        shown=np.array(SHOWN),
        distance=(adv - x).flatten(1).norm(p=p, dim=1).numpy(),
    )


def everywhere_steep(x: torch.Tensor):
    """A model of five classes, each of whose logits has a gradient in each element."""
    size = x[0].numel()
    weight = torch.arange(5.0 * size, dtype=x.dtype).reshape(size, 5).cos() / 8

    def model(z: torch.Tensor) -> torch.Tensor:
        return (z - 0.5).flatten(1).sinh() @ weight

    return model


def main(folder: Path) -> None:
    _without_what_these_attacks_do_not_use()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.float = torch.float64
    with np.load(FOLDER / "autoattack_model.npz") as stored:
        model = TinyModel(stored).double().requires_grad_(False)
        x, y = torch.from_numpy(stored["x"]).double(), torch.from_numpy(stored["y"])
    seen = []

    def asked(z):
        seen.append(z.detach().clone())
        return model(z)

    for run, (options, alone) in RUNS.items():
        norm = "linf" if "linf" in run else "l2"
        module = importlib.import_module(f"adv_lib.attacks.carlini_wagner.{norm}")
        attack = getattr(module, f"carlini_wagner_{norm}")
        points, found = [], []
        for rows in range(len(x)) if alone else [slice(None)]:
            at = slice(rows, rows + 1) if alone else rows
            seen.clear()
            found.append(attack(asked, x[at], y[at], **options))
            kept = _without_repeats(seen) if norm == "linf" else seen
            points += [[z[i] for z in kept] for i in range(len(x[at]))]
        p = INF if norm == "linf" else 2
        _write(folder / f"{run}.npz", points, x, torch.cat(found), p)

    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=4, steps=20, stepsize=0.05, initial_const=0.125, abort_early=False
    )
    # where an element has no gradient foolbox leaves it, and adversarial-library moves it by the
    # 5e-7 that tanh takes of the image: a model that looks at all of them
    everywhere = everywhere_steep(x)
    labels = everywhere(x).argmax(1)

    def asked_too(z):
        seen.append(z.detach().clone())
        return everywhere(z)

    wrapped = foolbox.PyTorchModel(_Asked(asked_too).eval(), bounds=(0, 1), device="cpu")
    seen.clear()
    adv = attack.run(wrapped, x, foolbox.criteria.Misclassification(labels))
    points = [[z[i] for z in seen] for i in range(len(x))]
    _write(folder / "cw_foolbox.npz", points, x, adv, 2)


class _Asked(torch.nn.Module):
    def __init__(self, asked) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.asked(z)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
