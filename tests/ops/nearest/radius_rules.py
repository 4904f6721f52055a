"""The states that a step of DDN or FMN tells apart, and its rules in float64, row by row."""

import torch

from fastadv.kernels import slots as columns
from fastadv.ops.nearest.radius import radius_step_

RULES = (("ddn", "l2"), ("fmn", "linf"), ("fmn", "l2"), ("fmn", "l1"), ("fmn", "l0"))
STEPS = 6
INF, NAN = float("inf"), float("nan")
_P = {"linf": INF, "l2": 2, "l1": 1, "l0": 0}
_DUAL = {"linf": 1, "l2": 2, "l1": INF}
IMAGES = ("x_adv", "closest", "grad", "x")

# name: (STEP, SUCCESS_STEP, ACTIVE, adversarial, loss, distance, within eps, radius)
ROWS = {
    "first, not adversarial": (0, -1, 1, False, -2.0, INF, False, INF),
    "first, adversarial": (0, -1, 1, True, 0.5, INF, False, 3.0),
    "not adversarial, none known": (2, -1, 1, False, -0.3, INF, True, 0.4),
    "not adversarial, one known": (3, -1, 1, False, -0.3, 0.2, True, 0.4),
    "adversarial, nearer": (3, -1, 1, True, 0.3, 99.0, True, 0.4),
    "adversarial, not nearer": (3, 1, 1, True, 0.3, 1e-3, False, 0.4),
    "beyond the limit": (3, 1, 1, False, -9.0, 0.2, False, 90.0),
    "last, adversarial": (STEPS - 1, -1, 1, True, 0.3, 99.0, True, 0.4),
    "last, not adversarial": (STEPS - 1, -1, 1, False, -0.3, INF, True, 0.4),
    "finished": (2, 2, 0, True, 0.3, 99.0, True, 0.4),
    "loss is NaN": (2, -1, 1, True, NAN, INF, True, 0.4),
    "no gradient": (2, -1, 1, False, -0.3, INF, False, 0.4),
}


class State:
    """The tensors of a step; one row of the batch for each of ROWS."""

    def __init__(self, size, device, dtype=torch.float32, scale=1.0):
        step, success, active, fooled, loss, distance, within, radius = zip(
            *ROWS.values(), strict=True
        )
        batch = len(ROWS)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        generator = torch.Generator().manual_seed(size)
        self.x = torch.rand(batch, size, generator=generator)
        self.x[:, ::3] = self.x[:, ::3].round()  # at a bound, where a direction is lost
        self.x_adv = self.x + 0.3 * (torch.rand(batch, size, generator=generator) - 0.5)
        self.x_adv = self.x_adv.clamp(0, 1)
        self.x_adv[0] = self.x[0]
        self.grad = scale * torch.randn(batch, size, generator=generator)
        self.grad[list(ROWS).index("no gradient")] = 0
        self.closest = torch.full_like(self.x, NAN)
        for name in IMAGES:
            setattr(self, name, getattr(self, name).to(device, dtype))
        self.loss = torch.tensor(loss, dtype=compute, device=device)
        self.aims = torch.arange(batch, device=device) % 3
        self.prediction = (self.aims + torch.tensor(fooled, device=device)) % 3
        self.distance = torch.tensor(distance, dtype=compute, device=device)
        self.radius = torch.tensor(radius, dtype=compute, device=device)
        self.limit = torch.linspace(3, 5, batch, dtype=compute, device=device)
        self.slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=device)
        for column, values in (
            (columns.STEP, step),
            (columns.SUCCESS_STEP, success),
            (columns.ACTIVE, active),
        ):
            self.slots[:, column] = torch.tensor(values, dtype=torch.int32)
        self.eps = torch.where(torch.tensor(within), 1e3, 1e-3).to(device)
        sizes = torch.linspace(1.0, 0.1, STEPS), torch.linspace(0.3, 0.05, STEPS)
        self.schedule = torch.stack(sizes).to(device, compute)

    def clone(self):
        other = object.__new__(State)
        other.__dict__ = {k: v.clone() for k, v in self.__dict__.items()}
        return other

    def rows(self, rows):
        other = object.__new__(State)
        taken = {k: v if k == "schedule" else v[rows] for k, v in self.__dict__.items()}
        other.__dict__ = {k: v.clone() for k, v in taken.items()}
        return other

    def step(self, rule, norm, **options):
        images = (getattr(self, name) for name in IMAGES)
        named = {k: v for k, v in vars(self).items() if k not in IMAGES}
        radius_step_(*images, **named, rule=rule, norm=norm, **(dict(overshoot=0.02) | options))
        return self


def _in_l1_ball(u, x, radius, lo, hi):
    """The nearest to u of norm radius at most, x + it within [lo, hi]: bisection on the level."""
    room = torch.where(u >= 0, hi - x, x - lo)
    kept = u.abs().clamp(max=INF).minimum(room)
    if kept.sum() <= radius:
        return u
    low, high = 0.0, float(u.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        inside = (u.abs() - middle).clamp(min=0).minimum(room).sum() <= radius
        low, high = (low, middle) if inside else (middle, high)
    return u.sign() * (u.abs() - high).clamp(min=0).minimum(room)


def simulate(s, rule, norm, *, targeted=False, stop_early=False, minds_bounds=True, overshoot=0.02):
    """The rules in float64, one row after another, written into the state `s`."""
    for i in range(len(s.x)):
        slot, step = s.slots[i], int(s.slots[i, columns.STEP])
        if slot[columns.ACTIVE] == 0:
            continue
        x_adv, x, g = (t[i].double() for t in (s.x_adv, s.x, s.grad))
        length = float((x_adv - x).norm(p=_P[norm]))
        loss, radius, known = float(s.loss[i]), float(s.radius[i]), not s.loss[i].isnan()
        fooled = known and bool(s.prediction[i] == s.aims[i]) == targeted
        if not known:
            slot[columns.FAULT] |= columns.FAULT_NAN_LOGITS
            loss = 0.0
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
        if minds_bounds:
            g = torch.where(((x_adv >= 1) & (g > 0)) | ((x_adv <= 0) & (g < 0)), 0.0, g)
        size, gamma = s.schedule[:, step].double().tolist()
        if norm == "l0" and fooled:
            fallen = radius * (1 - gamma) // 1 if radius < INF else INF
            radius = max(min(radius - 1, fallen, float(s.distance[i])), 0)
        elif norm == "l0":
            radius = max(radius + 1, radius * (1 + gamma) // 1 if radius < INF else INF)
        elif fooled:
            radius *= 1 - gamma
            radius = min(radius, float(s.distance[i])) if rule == "fmn" else radius
        elif rule == "fmn" and s.distance[i] == INF:
            dual = float(g.norm(p=_DUAL[norm]))
            radius = length + (1 + overshoot) * abs(loss) / dual if dual else INF
        else:
            radius *= 1 + gamma
        s.radius[i] = radius = min(radius, float(s.limit[i]))
        u = x_adv - x + (size * g / g.norm() if g.any() else 0)
        if norm == "linf":
            u = u.clamp(-radius, radius)
        elif norm == "l2":
            u = u * radius / u.norm() if u.any() else u
        elif norm == "l0":
            least = u.abs().sort(descending=True).values[max(int(radius), 1) - 1]
            u = torch.where(u.abs() >= least, u, 0)
        else:
            u = _in_l1_ball(u, x, radius, *((0.0, 1.0) if minds_bounds else (-INF, INF)))
        s.x_adv[i] = (x + u).clamp(0, 1)
    return s


def assert_agree(got, expected, tolerance):
    assert torch.equal(got.slots, expected.slots)
    assert torch.equal(got.closest.isnan(), expected.closest.isnan())
    for name in ("x_adv", "closest", "distance", "radius"):
        a, b = getattr(got, name).double(), getattr(expected, name).double()
        # relative, of distances of up to the size of a row in L1
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
