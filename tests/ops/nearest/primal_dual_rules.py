"""The states that a step of PDGD or PDPGD tells apart, and its rules in float64, row by row."""

import math

import torch
from radius_rules import IMAGES, INF, ROWS, STEPS, State

from fastadv.kernels import slots as columns
from fastadv.ops.nearest.primal_dual import Course, primal_dual_step_, schedule

NORMS = ("linf", "l2", "l1", "l0")
COURSE = Course(unit=1.0, most=2.0, smoothing=0.1, turns=5, change=0.01)
# norm, course, and whether the proximal step is of |.|^(2/3)
WAYS = [
    *((norm, COURSE, None) for norm in NORMS),
    ("l0", COURSE, "l2/3"),
    ("l2", COURSE._replace(turns=0), None),
]
IDS = [*NORMS, "l2/3", "gradient"]
_P = {"linf": INF, "l2": 2, "l1": 1, "l0": 0}


class DualState(State):
    """As that of DDN, with Adam's means and the weights."""

    def __init__(self, size, device, dtype=torch.float32):
        super().__init__(size, device, dtype)
        compute, batch = self.loss.dtype, len(ROWS)
        del self.radius, self.limit
        generator = torch.Generator().manual_seed(1)
        shape = batch, size
        self.mean = 0.3 * torch.randn(shape, generator=generator).to(device, compute)
        self.square = torch.rand(shape, generator=generator).to(device, compute)
        log = torch.linspace(-1.99, 1.99, batch)
        weights = [log, torch.linspace(0.4, 0.9, batch), torch.linspace(0.7, 0.05, batch)]
        self.duals = torch.stack(weights, 1).contiguous().to(device, compute)
        # sizes at which the proximal step changes some elements, and few rows at once
        sizes = torch.linspace(0.03, 0.01, STEPS).tolist(), torch.linspace(0.2, 0.1, STEPS).tolist()
        rows = torch.tensor(schedule(*sizes), dtype=compute)
        self.schedule = rows.t().contiguous().to(device)

    def clone(self):
        other = object.__new__(DualState)
        other.__dict__ = {k: v.clone() for k, v in self.__dict__.items()}
        return other

    def rows(self, rows):
        other = object.__new__(DualState)
        taken = {k: v if k == "schedule" else v[rows] for k, v in self.__dict__.items()}
        other.__dict__ = {k: v.clone() for k, v in taken.items()}
        return other

    def step(self, norm, course=COURSE, **options):
        images = (getattr(self, name) for name in IMAGES)
        named = {k: v for k, v in vars(self).items() if k not in IMAGES}
        primal_dual_step_(*images, **named, norm=norm, course=course, **options)
        return self


def _minimiser(v, level, norm):
    """argmin_z ||z - v||_2^2 / 2 + level ||z||_p: by what its subgradient says, or by looking."""
    if norm == "l1":
        return v.sign() * (v.abs() - level).clamp(min=0)
    if norm == "l0":  # an element is kept where half its square is worth the level
        return torch.where(v.square() / 2 >= level, v, 0.0)
    if norm == "l2":
        return v * max(0.0, 1 - level / float(v.norm())) if v.any() else v
    if norm == "l2/3":
        return _least_two_thirds(v.abs(), level) * v.sign()
    # v minus its projection onto the L1 ball of radius `level`: what is cut off sums up to it
    if v.abs().sum() <= level:
        return torch.zeros_like(v)
    low, high = 0.0, float(v.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        more = float((v.abs() - middle).clamp(min=0).sum()) > level
        low, high = (middle, high) if more else (low, middle)
    return v.clamp(-high, high)


def _least_two_thirds(size, level):
    """The minimum of (z - size)^2 / 2 + level z^(2/3) that is not 0, else 0: the outer zero of the
    slope, by bisection from where the function bends upwards, if the slope is below 0 there."""
    bend = torch.full_like(size, (2 * level / 9) ** 0.75)
    low, high = torch.minimum(bend, size), size
    has_one = bend - size + level * 2 / 3 * bend ** (-1 / 3) < 0
    for _ in range(100):
        middle = (low + high) / 2
        falls = middle - size + level * 2 / 3 * middle ** (-1 / 3) < 0
        low, high = torch.where(falls, middle, low), torch.where(falls, high, middle)
    return torch.where(has_one, high, 0.0)


def _weights(log):
    """Of distance and loss: the softmax of (0, log)."""
    return torch.softmax(torch.tensor([0.0, log], dtype=torch.float64), 0)


def simulate(s, norm, course=COURSE, *, pull=None, targeted=False, stop_early=False):
    """The rules in float64, one row after another, written into the state `s`; gives the turns that
    each row took."""
    taken = []
    for i in range(len(s.x)):
        slot, step = s.slots[i], int(s.slots[i, columns.STEP])
        taken.append(0)
        if slot[columns.ACTIVE] == 0:
            continue
        x_adv, x, g = (t[i].double() for t in (s.x_adv, s.x, s.grad))
        d = x_adv - x
        length, known = float(d.norm(p=_P[norm])), not s.loss[i].isnan()
        fooled = known and bool(s.prediction[i] == s.aims[i]) == targeted
        if not known:
            slot[columns.FAULT] |= columns.FAULT_NAN_LOGITS
        if fooled and length < s.distance[i]:
            s.closest[i], s.distance[i] = s.x_adv[i], length
            slot[columns.NEAREST_STEP] = step
        within = fooled and length <= s.eps[i]
        if within and slot[columns.SUCCESS_STEP] < 0:
            slot[columns.SUCCESS_STEP] = step
        if step == STEPS - 1 or (stop_early and within):
            slot[columns.ACTIVE] = 0
            continue
        slot[columns.STEP] = step + 1
        log, of_distance, of_loss = s.duals[i].double().tolist()
        rate, inverse, size, dual_size = s.schedule[:, step].double().tolist()
        lead = -float(s.loss[i]) if known else 0.0
        margin = torch.tensor(lead, dtype=torch.float64, requires_grad=True)
        slope = torch.autograd.grad(torch.nn.functional.softplus(margin), margin)[0]
        # in units of the bounds from here on
        d, clean, unit = d / course.unit, x / course.unit, course.unit
        whole = -slope * g * unit
        if course.turns == 0:
            whole = of_loss * whole + (of_distance * d / d.norm() if d.any() else 0)
        mean = 0.9 * s.mean[i].double() + 0.1 * whole
        square = 0.999 * s.square[i].double() + 0.001 * whole**2
        s.mean[i], s.square[i] = mean, square
        h = square.sqrt() * inverse + 1e-8
        d = (clean + d - rate * mean / h).clamp(0, 1 / unit) - clean
        z = d
        while taken[i] < course.turns:
            before, taken[i] = z, taken[i] + 1
            v = z - h / h.max() * (z - d)
            z = _minimiser(v, of_distance / of_loss * size / float(h.max()), pull or norm)
            z = (clean + z).clamp(0, 1 / unit) - clean
            if not (z - before).norm() > course.change * z.norm():
                break
        s.x_adv[i] = torch.where(z == 0, x, (x + unit * z).clamp(0, 1))
        log += dual_size * (math.copysign(1, lead) if lead else 0)
        log = min(max(log, -course.most), course.most)
        new = course.smoothing * _weights(log)
        of_distance, of_loss = (
            (1 - course.smoothing) * torch.tensor([of_distance, of_loss], dtype=torch.float64) + new
        ).tolist()
        s.duals[i] = torch.tensor([log, of_distance, of_loss], dtype=torch.float64)
    return taken


def assert_agree(got, expected, tolerance):
    assert torch.equal(got.slots, expected.slots)
    assert torch.equal(got.closest.isnan(), expected.closest.isnan())
    for name in ("x_adv", "closest", "distance", "duals", "mean", "square"):
        a, b = getattr(got, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
