"""Record Square: what it drew, accepted and held, query by query."""

import numpy as np
import torch
from authors import Arrays, Locals, SquareAttack, Watched, final_locals, numpy

QUERIES = 300
FIRST = 20  # of them after which the points held are stored
# some samples fall and some hold
EPS = {"Linf": 0.11, "L2": 2.5, "L1": 12.0}


class WatchedSquare(SquareAttack):
    """SquareAttack that keeps what it drew since `drawn` was last emptied."""

    drawn: dict[str, list]

    def random_choice(self, shape):
        self.drawn["signs"].append(super().random_choice(shape))
        return self.drawn["signs"][-1]

    def eta(self, s):
        delta = super().eta(s)
        # upright, its first row is positive throughout; on its side, from the middle on negative
        self.drawn["transposed"].append(delta[0, -1] < 0)
        return delta

    def empty(self) -> None:
        self.drawn = {"signs": [], "transposed": []}


def record_square(
    watched: Watched, x, y, norm: str, *, seed: int, shown: tuple[int, ...]
) -> Arrays:
    attack = WatchedSquare(
        watched,
        norm=norm,
        n_queries=QUERIES,
        eps=EPS[norm],
        seed=seed,
        device="cpu",
        resc_schedule=False,
    )
    attack.init_hyperparam(x)
    attack.empty()
    channels, count = x.shape[1], len(x)
    start: Arrays = {}
    names = ("size", "corner", "corner2", "transposed", "signs", "active", "margin")
    rows: dict[str, list] = {k: [] for k in (*names, "accepted", "margin_min", "x_best")}

    def scatter(values: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        out = torch.full((count, *values.shape[1:]), fill)
        out[rows["active"][-1]] = values
        return out

    def settled(local: Locals) -> None:
        rows["accepted"].append(scatter(local["idx_improved"].reshape(-1)).bool())
        rows["margin_min"].append(local["margin_min"].clone())
        rows["x_best"].append(local["x_best"].clone())

    def seen(local: Locals, point: torch.Tensor, logits: torch.Tensor) -> None:
        signs = [s.reshape(-1, channels) for s in attack.drawn["signs"]]
        if "i_iter" not in local:
            shape = (count, channels, -1) if norm == "Linf" else (-1, count, channels)
            start["start"] = point.numpy()
            drawn = torch.cat(attack.drawn["signs"]).reshape(shape)
            start["start_signs"] = drawn.to(torch.int8).numpy()
            if norm != "Linf":
                start["start_transposed"] = numpy(attack.drawn["transposed"])
        else:
            if "idx_improved" in local:
                settled(local)
            else:
                start["start_margin"] = local["margin_min"].numpy().copy()
            rows["size"].append(torch.tensor(local["s"]))
            rows["corner"].append(torch.cat([local["vh"], local["vw"]]))
            active = torch.zeros(count, dtype=torch.bool)
            active[local["idx_to_fool"].reshape(-1)] = True
            rows["active"].append(active)
            top = logits.clone().scatter_(1, local["y_curr"][:, None], -torch.inf).amax(1)
            margin = logits.gather(1, local["y_curr"][:, None])[:, 0] - top
            rows["margin"].append(scatter(margin, torch.nan))
            if norm == "Linf":
                rows["signs"].append(signs[-1][0].to(torch.int8))
            else:
                rows["signs"].append(scatter(signs[-1]).to(torch.int8))
                rows["corner2"].append(torch.cat([local["vh2"], local["vw2"]]))
                rows["transposed"].append(attack.drawn["transposed"][-1])
        attack.empty()

    watched.seen = seen
    torch.manual_seed(seed)
    (end,) = final_locals(lambda: attack.attack_single_run(x, y))
    watched.seen = None
    settled(end)
    x_best = rows.pop("x_best")
    arrays = {name: numpy(values) for name, values in rows.items() if values}
    return {
        "eps": np.array(EPS[norm]),
        "shown": np.array(shown),
        **start,
        **arrays,
        "iterates": numpy([point[list(shown)] for point in x_best[:FIRST]]),
        "x_best": end["x_best"].numpy(),
        "n_queries": end["n_queries"].long().numpy(),
    }
