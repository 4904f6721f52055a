"""Runs the attacks of adversarial-library on the stored tiny model and writes what they do.

    PYTHONPATH=<checkout of jeromerony/adversarial-library> python make_nearest.py <folder>

See README.md for what is in the files.
"""

import importlib
import sys
import types
from pathlib import Path

import numpy as np
import torch
from tiny_model import TinyModel

FOLDER = Path(__file__).parent
STEPS = 40
SHOWN = (0, 7)  # samples whose points are stored
AT = (1, 5, 20, 39)  # and at which steps
INF = float("inf")
RUNS = {
    "ddn": ("decoupled_direction_norm", "ddn", dict(levels=None)),
    "fmn_linf": ("fast_minimum_norm", "fmn", dict(norm=INF, α_init=10)),
    "fmn_l2": ("fast_minimum_norm", "fmn", dict(norm=2)),
    "fmn_l1": ("fast_minimum_norm", "fmn", dict(norm=1)),
    "fmn_l0": ("fast_minimum_norm", "fmn", dict(norm=0)),
    "alma": ("augmented_lagrangian", "alma", {}),
    "sigma_zero": ("sigma_zero", "sigma_zero", {}),
}
NORMS = {"sigma_zero": 0}  # where no option says it; else 2


def _without_what_these_attacks_do_not_use() -> None:
    """Its package imports torchvision, visdom and all other attacks."""
    sys.modules["adv_lib.distances.lpips"] = types.ModuleType("adv_lib.distances.lpips")
    sys.modules["adv_lib.distances.lpips"].LPIPS = None
    for name in ("attacks", "utils"):
        package = types.ModuleType(f"adv_lib.{name}")
        home = importlib.import_module("adv_lib")
        package.__path__ = [f"{home.__path__[0]}/{name}"]
        sys.modules[package.__name__] = package
    for name in ("ForwardCounter", "BackwardCounter", "predict_inputs"):
        setattr(sys.modules["adv_lib.utils"], name, None)
    visdom = types.ModuleType("adv_lib.utils.visdom_logger")
    visdom.VisdomLogger = object
    sys.modules[visdom.__name__] = visdom


def main(folder: Path) -> None:
    _without_what_these_attacks_do_not_use()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.float = torch.float64  # DDN's first radii and ALMA's multipliers would be float32
    with np.load(FOLDER / "autoattack_model.npz") as stored:
        model = TinyModel(stored).double().requires_grad_(False)
        x, y = torch.from_numpy(stored["x"]).double(), torch.from_numpy(stored["y"])
    target = model(x).argsort(1)[:, -3]
    for run, (module, name, options) in RUNS.items():
        attack = getattr(importlib.import_module(f"adv_lib.attacks.{module}"), name)
        for targeted in (False, True):
            if targeted and run == "sigma_zero":  # which takes none
                continue
            points = []

            def asked(z, points=points):
                points.append(z.detach().clone())
                return model(z)

            labels, own = target if targeted else y, dict(steps=STEPS)
            if run == "alma":  # whose tolerance lets targeted points miss
                more = dict(logit_tolerance=0.0, init_lr_distance=0.1) if targeted else {}
                own = dict(num_steps=STEPS) | more
            if run == "sigma_zero":
                own = dict(num_steps=STEPS)
            adv = attack(asked, x, labels, targeted=targeted, **own, **options)
            p = options.get("norm", NORMS.get(run, 2))
            lengths = [(z - x).flatten(1).norm(p=p, dim=1).numpy() for z in points]
            arrays = dict(
                shown=np.array(SHOWN),
                at=np.array(AT),
                lengths=np.stack(lengths),
                points=np.stack([points[step][list(SHOWN)].numpy() for step in AT]),
                adv=adv[list(SHOWN)].numpy(),
                distance=(adv - x).flatten(1).norm(p=p, dim=1).numpy(),
            )
            if targeted:
                arrays["target"] = target.numpy()
            np.savez_compressed(folder / f"{run}{'_targeted' * targeted}.npz", **arrays)

    deepfool = importlib.import_module("adv_lib.attacks.deepfool").df
    for name, norm in (("l2", 2), ("linf", INF)):
        asked = []

        def counted(z, asked=asked):
            asked.append(len(z))
            return model(z)

        adv = deepfool(counted, x, y, norm=norm)
        distance = (adv - x).flatten(1).norm(p=norm, dim=1).numpy()
        np.savez_compressed(
            folder / f"deepfool_{name}.npz",
            rows=np.array(asked),
            adv=adv[list(SHOWN)].numpy(),
            shown=np.array(SHOWN),
            distance=distance,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
