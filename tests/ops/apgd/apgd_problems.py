"""Slots in mid-attack, and APGD as its authors wrote it down: one sample, one step at a time."""

import torch

from fastadv.kernels import slots
from fastadv.kernels.apgd import progress as apgd_progress
from fastadv.ops import project_l1_reference

BOUNDS = (0.0, 1.0)


def slot_state(device, steps_taken, active, improved):
    """Slots as the loss head leaves them: STEP is one more than the evaluation's index."""
    state = torch.zeros(len(steps_taken), slots.WIDTH, dtype=torch.int32, device=device)
    state[:, slots.STEP] = torch.as_tensor(steps_taken, dtype=torch.int32) + 1
    state[:, slots.ACTIVE] = torch.as_tensor(active, dtype=torch.int32)
    state[:, slots.IMPROVED] = torch.as_tensor(improved, dtype=torch.int32)
    return state


class MidAttack:
    """Six slots, every combination that a step distinguishes; undefined state is NaN."""

    def __init__(self, device, *shape, dtype=torch.float32, seed=0, eps=0.03):
        generator = torch.Generator().manual_seed(seed)

        def near(x, width):
            moved = x + width * (torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5)
            return moved.clamp(0, 1)

        wide = torch.float64
        x = torch.rand((6, *shape), generator=generator, dtype=wide)
        images = dict(
            x_adv=near(x, 0.06),
            x_previous=near(x, 0.06),
            x_best=near(x, 0.06),
            grad_best=torch.randn(x.shape, generator=generator, dtype=wide),
            grad=torch.randn(x.shape, generator=generator, dtype=wide),
            x=x,
        )
        # -0.0 and 0 among the gradients, and a NaN, which must count as 0
        images["grad"].view(6, -1)[:, ::5] = 0.0
        images["grad"][2].view(-1)[-1] = float("nan")
        self.images = {k: v.to(device, dtype) for k, v in images.items()}
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        nan = float("nan")
        self.x_hit = torch.full_like(self.images["x"], nan)
        # slot:           first  plain  improved  restores  both  finished
        self.slots = slot_state(device, [0, 3, 7, 5, 9, 4], [1, 1, 1, 1, 1, 0], [1, 0, 1, 0, 1, 1])
        self.progress = torch.zeros(6, apgd_progress.WIDTH, dtype=compute, device=device)
        restore = torch.tensor([0, 0, 0, 1, 1, 1], dtype=compute, device=device)
        self.progress[:, apgd_progress.RESTORE] = restore
        self.correct = torch.tensor([True, False, True, False, True, False], device=device)
        for name in ("x_previous", "x_best", "grad_best"):
            self.images[name][0] = nan
        for name in ("x_adv", "x_previous", "x_best", "grad_best"):
            self.images[name][5].view(-1)[0] = nan  # a finished slot is not touched at all
        self.eps = torch.tensor([1.0, 0.5, 1.5, 1.0, 0.7, 1.0], dtype=compute, device=device) * eps
        self.step_size = self.eps * torch.tensor([2, 1, 0.5, 0.25, 1, 1], device=device).to(compute)

    def arguments(self, hit=True, bounds=BOUNDS):
        """(positional, keyword) arguments of a step, on copies."""
        images = [t.clone(memory_format=torch.preserve_format) for t in self.images.values()]
        keywords = dict(
            step_size=self.step_size,
            eps=self.eps,
            bounds=bounds,
            slots=self.slots,
            progress=self.progress,
        )
        if hit:
            x_hit = self.x_hit.clone(memory_format=torch.preserve_format)
            keywords |= dict(correct=self.correct, x_hit=x_hit)
        return images, keywords

    def expected(self, move, bounds=BOUNDS):
        """(x_adv, x_previous, x_best, grad_best, x_hit) by the textbook, computed in float32 or
        float64; `move` gives the next iterate of one sample."""
        wide = self.progress.dtype
        state = {k: v.clone(memory_format=torch.preserve_format) for k, v in self.images.items()}
        x_hit = self.x_hit.clone(memory_format=torch.preserve_format)
        lo, hi = bounds or (-float("inf"), float("inf"))
        for row in range(5):  # the last is finished
            if self.slots[row, slots.IMPROVED]:
                state["x_best"][row] = state["x_adv"][row]
                state["grad_best"][row] = state["grad"][row]
            if not self.correct[row]:
                x_hit[row] = state["x_adv"][row]
            z, g = state["x_adv"][row].clone(), state["grad"][row]
            if self.progress[row, apgd_progress.RESTORE]:
                z, g = state["x_best"][row].clone(), state["grad_best"][row]
            first = self.slots[row, slots.STEP] == 1
            previous = z if first else state["x_previous"][row]
            moved = move(
                z.to(wide),
                g.to(wide).nan_to_num(0.0),
                state["x"][row].to(wide),
                previous.to(wide),
                self.step_size[row],
                self.eps[row],
                1.0 if first else 0.75,
                lo,
                hi,
            )
            state["x_adv"][row] = moved.to(z.dtype)
            state["x_previous"][row] = z
        return [state[k] for k in ("x_adv", "x_previous", "x_best", "grad_best")] + [x_hit]


def move_linf(z, g, x, previous, step_size, eps, a, lo, hi):
    z1 = z + step_size * torch.sign(g)
    z1 = torch.clamp(torch.min(torch.max(z1, x - eps), x + eps), lo, hi)
    moved = z + (z1 - z) * a + (z - previous) * (1 - a)
    return torch.clamp(torch.min(torch.max(moved, x - eps), x + eps), lo, hi)


def move_l2(z, g, x, previous, step_size, eps, a, lo, hi):
    def unit(v):
        return v / (v.norm() + 1e-12)

    def project(w):
        return torch.clamp(x + unit(w - x) * torch.minimum(eps, (w - x).norm()), lo, hi)

    z1 = project(z + step_size * unit(g))
    return project(z + (z1 - z) * a + (z - previous) * (1 - a))


def l1_problem(device, dtype, batch=4, shape=(61,)):
    """(x, start outside of the ball, weight of `wavy`, a radius for each sample)."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand((batch, *shape), generator=generator, dtype=torch.float64)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    eps = torch.linspace(0.5, 2.0, batch, dtype=torch.float64)
    start = project_l1_reference((x + 0.1 * noise).clamp(0, 1), x, eps=3 * eps)
    return tuple(t.to(device, dtype) for t in (x, start, weight, eps))


def wavy(weight):
    """A loss with many maxima, (losses, gradient): smooth, elementwise, and no network."""

    def evaluate(x_adv):
        loss = (weight * torch.sin(9.0 * x_adv)).flatten(1).double().sum(1).to(x_adv.dtype)
        return loss, 9.0 * weight * torch.cos(9.0 * x_adv)

    return evaluate


def textbook_attack(evaluate, move, x, start, eps, steps, rho=0.75):
    """Every iterate of APGD, the best one, its loss and the step sizes at the end: the losses are
    kept and counted again at each check, as in the authors' code."""
    batch = len(x)
    z, old = start.clone(), start.clone()
    loss, grad = evaluate(z)
    best, best_grad, best_loss, checked = z.clone(), grad.clone(), loss.clone(), loss.clone()
    history = torch.zeros(steps, batch, dtype=x.dtype)
    step_size, reduced = 2 * eps, [True] * batch
    period, decrement, least = (max(int(f * steps), 1) for f in (0.22, 0.03, 0.06))
    since, iterates = 0, [z.clone()]
    for i in range(steps):
        moved = [
            move(z[b], grad[b], x[b], old[b], step_size[b], eps[b], 0.75 if i else 1.0, *BOUNDS)
            for b in range(batch)
        ]
        old, z = z, torch.stack(moved)
        iterates.append(z.clone())
        loss, grad = evaluate(z)
        history[i] = loss
        since += 1
        for b in range(batch):
            if loss[b] > best_loss[b]:
                best[b], best_grad[b], best_loss[b] = z[b], grad[b], loss[b]
        if since == period:
            for b in range(batch):
                rises = sum(float(history[i - c, b] > history[i - c - 1, b]) for c in range(period))
                stuck = not reduced[b] and bool(checked[b] >= best_loss[b])
                reduced[b] = rises <= rho * period or stuck
                if reduced[b]:
                    step_size[b] /= 2
                    z[b], grad[b] = best[b], best_grad[b]
            checked = best_loss.clone()
            since, period = 0, max(period - decrement, least)
    return iterates, best, best_loss, step_size
