"""The L1 projection and step in float64: sorted kinks, row by row in numpy."""

import numpy as np
import torch
from step_problems import BOUNDS


def projected_row(u, room, eps):
    """Sorted kinks, cumulative slopes, float64: |z| of one row, by walking the kinks downwards."""
    if np.minimum(u, room).sum() <= eps:
        return np.minimum(u, room)
    kinks = np.concatenate([u, u - room])
    slopes = np.concatenate([np.ones_like(u), -np.ones_like(u)])
    order = np.argsort(-kinks, kind="stable")
    mass, slope, at = 0.0, 0.0, kinks[order[0]]
    for kink, change in zip(kinks[order], slopes[order], strict=True):
        if slope > 0 and mass + slope * (at - kink) >= eps:
            break
        mass, at, slope = mass + slope * (at - kink), kink, slope + change
    return np.clip(u - (at - (eps - mass) / slope), 0.0, room)


def exact_projection(x_adv, x, eps, bounds=BOUNDS):
    """The nearest point in ball and box, row by row, in numpy float64."""
    lo, hi = bounds or (-np.inf, np.inf)
    rows = x.detach().cpu().double().flatten(1).numpy()
    u = x_adv.detach().cpu().double().flatten(1).numpy() - rows
    eps = np.broadcast_to(np.asarray(torch.as_tensor(eps).cpu(), dtype=np.float64), len(rows))
    out = np.empty_like(rows)
    for i, (row, move) in enumerate(zip(rows, u, strict=True)):
        room = np.where(move >= 0, np.minimum(hi - row, 1e9), np.minimum(row - lo, 1e9))
        out[i] = row + np.sign(move) * projected_row(np.abs(move), room, eps[i])
    return torch.from_numpy(out).view(x.shape).to(x.device)


def exact_step(x_adv, grad, x, step_size, eps, sparsity, bounds=BOUNDS):
    """The step in float64; ties are all kept, zeros never."""
    rows = grad.double().flatten(1)
    size = rows.shape[1]
    values = {"step": step_size, "share": sparsity}
    value = {k: torch.as_tensor(v).cpu().float().expand(len(rows)) for k, v in values.items()}
    move = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        dropped = int(min(max(np.floor((1 - value["share"][i].numpy()) * size), 0), size - 1))
        least = row.abs().sort().values[dropped]
        kept = (row.abs() >= least) & (row != 0)
        step = torch.as_tensor(step_size, dtype=torch.float64).cpu().expand(len(rows))[i]
        move[i] = row.sign() * kept * (float(step) / max(int(kept.sum()), 1))
    return exact_projection(x_adv.double() + move.view(x.shape), x, eps, bounds)
