"""Runs PDGD and PDPGD of adversarial-library on the stored tiny model and writes what they do.

    PYTHONPATH=<adv-lib 0.2.8> python make_primal_dual.py <folder>

See README.md for what is in the file.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import torch
from make_nearest import INF, _without_what_these_attacks_do_not_use
from tiny_model import TinyModel

FOLDER = Path(__file__).parent
STEPS = 24
SAMPLES = slice(0, 8, 2)
RUNS = {  # function, its settings
    "pdgd": ("pdgd", {}),
    "pdgd_targeted": ("pdgd", dict(targeted=True)),
    "pdpgd_linf": ("pdpgd", dict(norm=INF)),
    "pdpgd_l2": ("pdpgd", dict(norm=2)),
    "pdpgd_l1": ("pdpgd", dict(norm=1)),
    "pdpgd_l1_targeted": ("pdpgd", dict(norm=1, targeted=True)),
    "pdpgd_l0": ("pdpgd", dict(norm=0, proximal_operator=23)),
    "pdpgd_l0_norm": ("pdpgd", dict(norm=0, dual_ratio_init=1e-4)),
}


def main(folder: Path) -> None:
    _without_what_these_attacks_do_not_use()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.float = torch.float64  # the weights would be float32
    with np.load(FOLDER / "autoattack_model.npz") as stored:
        model = TinyModel(stored).double().requires_grad_(False)
        images, y = torch.from_numpy(stored["x"]).double(), torch.from_numpy(stored["y"])
    images, y = images[SAMPLES], y[SAMPLES]
    target = model(images).argsort(1)[:, -3]
    x = images.reshape(len(images), 1, 1, -1)  # one channel, in which L0 counts entries
    weight = torch.arange(x[0].numel()).cos()
    sums, distances = [], []
    library = importlib.import_module("adv_lib.attacks.primal_dual_gradient_descent")
    for name, options in RUNS.values():
        points = []

        def asked(z, points=points):
            points.append(z.detach().clone())
            return model(z.reshape(images.shape))

        labels, norm = target if "targeted" in options else y, options.get("norm", 2)
        settings = dict(num_steps=STEPS, dual_lr=1.0) | options
        adv = getattr(library, name)(asked, x, labels, **settings)
        away = [(z - x).flatten(1) for z in (*points, adv)]
        sums.append(torch.stack([d @ weight for d in away]).numpy())
        distances.append(away[-1].norm(p=norm, dim=1).numpy())
    np.savez_compressed(
        folder / "primal_dual.npz",
        runs=np.array(list(RUNS)),
        sums=np.stack(sums),
        distance=np.stack(distances),
        target=target.numpy(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
