"""The states that FAB's step tells apart, and its rules in float64."""

import torch
from fab_oracle import exact_projection, problem

from fastadv.kernels import slots as columns
from fastadv.ops.fab.step import fab_step_

NORMS = ("linf", "l2", "l1")
STEPS = 7
INF, NAN = float("inf"), float("nan")


# name: (STEP, SUCCESS_STEP, ACTIVE, pulled_back, adversarial, difference, distance, within eps)
ROWS = {
    "loaded, adversarial as it is": (0, -1, 1, False, True, -0.7, INF, False),
    "moved, not adversarial": (3, -1, 1, False, False, -0.4, INF, False),
    "moved, adversarial, far": (3, -1, 1, False, True, 0.3, INF, False),
    "moved, adversarial, within eps": (3, -1, 1, False, True, 0.3, INF, True),
    "moved, adversarial, no nearer": (4, 2, 1, False, True, 0.3, 0.0, True),
    "pulled back": (3, 3, 1, True, True, 0.2, 0.5, False),
    "last, adversarial": (STEPS, -1, 1, False, True, 0.3, 90.0, True),
    "last, adversarial, far": (STEPS, -1, 1, False, True, 0.3, 90.0, False),
    "last, not adversarial": (STEPS, -1, 1, False, False, -0.2, INF, True),
    "finished": (5, 5, 0, True, True, 0.3, 0.1, True),
    "difference is NaN": (3, -1, 1, False, True, NAN, INF, True),
    "difference is NaN, last": (STEPS, -1, 1, False, True, NAN, INF, True),
}


class State:
    """The tensors of a step; one row of the batch for each of ROWS."""

    def __init__(self, size, device, dtype=torch.float32, seed=0):
        step, success, active, pulled, fooled, difference, distance, within = zip(
            *ROWS.values(), strict=True
        )
        batch = len(ROWS)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        self.x, grad, _ = problem(batch, size, "bounds", seed)
        noise = torch.rand(batch, size, generator=torch.Generator().manual_seed(9))
        self.x_adv = (self.x + 0.1 * (noise - 0.5)).clamp(0, 1)
        self.grad = grad / size * 3
        self.closest = torch.full_like(self.x, NAN)
        for name in ("x", "x_adv", "grad", "closest"):
            setattr(self, name, getattr(self, name).to(device, dtype))
        self.difference = torch.tensor(difference, dtype=compute, device=device)
        self.labels = torch.arange(batch, device=device) % 3
        self.prediction = (self.labels + torch.tensor(fooled, device=device)) % 3
        self.distance = torch.tensor(distance, dtype=compute, device=device)
        self.pulled_back = torch.tensor(pulled, device=device)
        self.slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=device)
        for column, values in (
            (columns.STEP, step),
            (columns.SUCCESS_STEP, success),
            (columns.ACTIVE, active),
        ):
            self.slots[:, column] = torch.tensor(values, dtype=torch.int32)
        self.eps = torch.where(torch.tensor(within), 1e3, 1e-3).to(device)

    def clone(self):
        other = object.__new__(State)
        other.__dict__ = {k: v.clone() for k, v in self.__dict__.items()}
        return other

    def step(self, norm, stop_early, *, looks=False, **options):
        images = ("x", "x_adv", "grad", "closest")
        named = {k: v for k, v in vars(self).items() if k not in images}
        fab_step_(
            self.x_adv,
            self.closest,
            None if looks else self.grad,
            self.x,
            **named,
            norm=norm,
            steps=STEPS,
            stop_early=stop_early,
            **options,
        )
        return self

    def rows(self, rows):
        other = object.__new__(State)
        other.__dict__ = {k: v[rows].clone() for k, v in self.__dict__.items()}
        return other


def length(d, norm):
    return float(torch.linalg.vector_norm(d.double(), {"linf": INF, "l2": 2, "l1": 1}[norm]))


def simulate(s, norm, stop_early, *, looks=False, alpha_max=0.1, eta=1.05, beta=0.9):
    """The rules in float64, one row after another, written into the state `s`."""
    for i in range(len(s.x)):
        slot = s.slots[i]
        if slot[columns.ACTIVE] == 0:
            continue
        x_adv, x, w = (t[i].double() for t in (s.x_adv, s.x, s.grad))
        value = s.difference[i].double()
        if value.isnan():
            slot[columns.FAULT] |= columns.FAULT_NAN_LOGITS
        fooled = slot[columns.STEP] > 0 and not s.pulled_back[i] and not value.isnan()
        if fooled and s.prediction[i] != s.labels[i]:
            d = length(x_adv - x, norm)
            if d < s.distance[i]:
                s.closest[i], s.distance[i] = s.x_adv[i], d
            if d <= s.eps[i] and slot[columns.SUCCESS_STEP] < 0:
                slot[columns.SUCCESS_STEP] = slot[columns.STEP]
            if (stop_early and d <= s.eps[i]) or slot[columns.STEP] == STEPS:
                slot[columns.ACTIVE] = 0
            else:
                s.x_adv[i] = x + beta * (x_adv - x)
                s.pulled_back[i] = True
        elif slot[columns.STEP] == STEPS:
            slot[columns.ACTIVE] = 0
        elif not looks:
            w, value = (w * 0, value * 0 + 0) if value.isnan() else (w, value)
            value = value.nan_to_num(0.0)
            b = -value + w @ x_adv
            pair = torch.stack([x_adv, x])
            offset = torch.stack([value, w @ x - b])
            d1, d2 = exact_projection(pair, torch.stack([w, w]), offset, norm)
            a1, a2 = max(length(d1, norm), 1e-8), max(length(d2, norm), 1e-8)
            alpha = min(a1 / (a1 + a2), alpha_max)
            moved = (x_adv + eta * d1) * (1 - alpha) + (x + eta * d2) * alpha
            s.x_adv[i] = moved.clamp(0, 1)
            s.pulled_back[i] = False
            slot[columns.STEP] += 1
    return s


def assert_agree(got, expected, tolerance):
    for name in ("slots", "pulled_back"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert torch.equal(got.closest.isnan(), expected.closest.isnan())
    for name in ("x_adv", "closest", "distance"):
        a, b = getattr(got, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-6, equal_nan=True, msg=name)


# 1e-6: 16 ulp of values below 1. Where L1's last coordinate is partly filled, d = rest / |w|
# carries the rounding of sums of about 3 over |w| of about 3 / size: 2 ulp times the size
def tolerance(norm, size):
    return 1e-6 if norm != "l1" else max(1e-6, 2**-22 * size)
