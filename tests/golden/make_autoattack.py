"""Record trajectories of the authors' AutoAttack on a tiny model: see README.md beside this file.

    PYTHONPATH=<checkout of fra31/auto-attack> python make_autoattack.py <folder for the arrays>

Their code is imported and watched (the model that they call looks into their frames), not copied.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from authors import (
    APGDAttack,
    APGDAttack_targeted,
    Arrays,
    FABAttack_PT,
    Locals,
    Logger,
    Watched,
    final_locals,
    numpy,
)
from record_square import record_square
from tiny_model import SHAPE, TinyModel, structured_data, train

SEED = 0
SAMPLES = 8
STEPS = 100
NORMS = ("Linf", "L2", "L1")
# some samples fall and some hold (record_square has larger ones: random search needs them)
EPS = {"Linf": 0.08, "L2": 1.15, "L1": 8.0}
SHOWN = (0, 3, 7)  # samples whose iterates are stored, from the most fragile to the most robust
FIRST = 20  # steps of them; of APGD also the one after the first checkpoint, at 22
AFTER_CHECKPOINT = 22


def record_apgd(watched: Watched, x, y, norm: str, loss: str, rank: int | None) -> Arrays:
    """loss "ce" or "dlr", or the targeted DLR loss towards the class of this rank in the logits."""
    kwargs = dict(norm=norm, eps=EPS[norm], n_iter=STEPS, seed=SEED, device="cpu")
    if rank is None:
        attack = APGDAttack(watched, loss=loss, logger=Logger(None), **kwargs)
    else:
        attack = APGDAttack_targeted(watched, logger=Logger(None), **kwargs)
        attack.y_target = watched(x).argsort(dim=1)[:, -rank]
    attack.init_hyperparam(x)
    starts, start_correct, start_loss = [], [], []
    rows: dict[str, list] = {k: [] for k in ("point", "correct", "step_size", "topk")}

    def seen(local: Locals, point: torch.Tensor, logits: torch.Tensor) -> None:
        correct = logits.argmax(1) == y
        if "i" not in local:
            starts.append(point)
            start_correct.append(correct)
            return
        if local["i"] == 0:
            start_loss.append(local["loss_best"].clone())
        rows["point"].append(point)
        rows["correct"].append(correct)
        rows["step_size"].append(local["step_size"].flatten().clone())
        if norm == "L1":
            rows["topk"].append(local["topk"].clone())

    watched.seen = seen
    torch.manual_seed(SEED)
    if rank is not None and norm == "L1":
        eps, steps = [3 * EPS[norm], 2 * EPS[norm], EPS[norm]], [30, 30, 40]
        ends = final_locals(lambda: attack.decr_eps_pgd(x, y, eps, steps))
    else:
        eps, steps = [EPS[norm]], [STEPS]
        ends = final_locals(lambda: attack.attack_single_run(x, y))
    watched.seen = None
    firsts = np.cumsum([0, *steps[:-1]])
    shown_steps = np.unique([*range(FIRST), AFTER_CHECKPOINT, *firsts, *(firsts + 1)])
    arrays = {
        "shown": np.array(SHOWN),
        "phase_eps": np.array(eps),
        "phase_steps": np.array(steps),
        "x_init": numpy(starts),
        "start_loss": numpy(start_loss),
        "start_correct": numpy(start_correct),
        "iterate_steps": shown_steps,
        "iterates": numpy([rows["point"][s][list(SHOWN)] for s in shown_steps]),
        "step_size": numpy(rows["step_size"]),
        "loss": torch.cat([end["loss_steps"] for end in ends]).numpy(),
        "loss_best": torch.cat([end["loss_best_steps"][1:] for end in ends]).numpy(),
        "correct": numpy(rows["correct"]),
        "acc_steps": torch.cat([end["acc_steps"][1:] for end in ends]).bool().numpy(),
        "x_best": ends[-1]["x_best"].numpy(),
        "x_best_adv": ends[-1]["x_best_adv"].detach().numpy(),
        "acc": ends[-1]["acc"].numpy(),
    }
    if norm == "L1":
        arrays["topk"] = numpy(rows["topk"])
    if rank is not None:
        arrays["target"] = attack.y_target.numpy()
    return arrays


def record_fab(watched: Watched, x, y, norm: str, rank: int) -> Arrays:
    attack = FABAttack_PT(watched, norm=norm, n_iter=STEPS, eps=EPS[norm], seed=SEED, device="cpu")
    attack.target_class = rank
    rows: dict[str, list] = {k: [] for k in ("moved", "pulled", "is_adv", "res2", "df", "alpha")}

    def pulled_back(local: Locals) -> None:
        rows["pulled"].append(local["x1"].clone())
        rows["is_adv"].append(local["is_adv"].clone())
        rows["res2"].append(local["res2"].clone())

    def seen(local: Locals, point: torch.Tensor, logits: torch.Tensor) -> None:
        if "counter_iter" not in local:
            return
        if torch.is_grad_enabled():  # the call that opens an iteration
            if local["counter_iter"] > 0:
                pulled_back(local)
        else:
            rows["moved"].append(point)
            rows["df"].append(local["df"].flatten().clone())
            rows["alpha"].append(local["alpha"].flatten().clone())

    watched.seen = seen
    torch.manual_seed(SEED)
    (end,) = final_locals(lambda: attack.attack_single_run(x, y, is_targeted=True))
    watched.seen = None
    pulled_back(end)
    shown = list(SHOWN)
    pairs = [torch.stack([rows["moved"][i], rows["pulled"][i]])[:, shown] for i in range(FIRST)]
    return {
        "shown": np.array(SHOWN),
        "target": end["la_target2"].numpy(),
        "iterates": numpy(pairs),
        **{name: numpy(rows[name]) for name in ("is_adv", "res2", "df", "alpha")},
        "adv": end["adv"].numpy(),
    }


def correct_samples(model: TinyModel) -> tuple[torch.Tensor, torch.Tensor]:
    """SAMPLES images that the model classifies correctly, by growing margin."""
    x, y = structured_data(2000, seed=1)
    logits = model(x)
    ranked = logits.sort(dim=1)[0]
    margin = torch.where(logits.argmax(1) == y, ranked[:, -1] - ranked[:, -2], torch.inf)
    order = margin.argsort()[: int(margin.isfinite().sum())]
    picked = order[torch.linspace(0, len(order) - 1, SAMPLES + 2).long()[1:-1]]
    return x[picked].contiguous(), y[picked]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    model = train(seed=SEED)
    x, y = correct_samples(model)
    assert x.shape[1:] == SHAPE
    watched = Watched(model).eval()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    files: dict[str, Arrays] = {
        "model": {**weights, "x": x.numpy(), "y": y.numpy(), "logits": model(x).numpy()}
    }
    for norm in NORMS:
        end = norm.lower()
        for loss in ("ce", "dlr"):
            files[f"apgd_{loss}_{end}"] = record_apgd(watched, x, y, norm, loss, None)
        for rank in (2, 3):
            files[f"apgd_t{rank}_{end}"] = record_apgd(watched, x, y, norm, "dlr", rank)
            files[f"fab_t{rank}_{end}"] = record_fab(watched, x, y, norm, rank)
        files[f"square_{end}"] = record_square(watched, x, y, norm, seed=SEED, shown=SHOWN)
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in files.items():
        np.savez_compressed(folder / f"autoattack_{name}.npz", **arrays)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
