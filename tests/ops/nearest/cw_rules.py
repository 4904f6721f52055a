"""The states that a step of C&W tells apart, and its rules in float64 by autograd."""

import math

import torch
from radius_rules import IMAGES, INF, ROWS, State

from fastadv.kernels import slots as columns
from fastadv.ops.nearest import penalty
from fastadv.ops.nearest.penalty import Course, cw_step_

STEPS = 12  # of a round: looked at every second point
COURSE = Course(
    unit=1.0,
    kappa=0.1,
    increase=10.0,
    decrease=0.9,
    most=5.0,
    relative=0.5,
    settled=1,
    rounds=9,
    points=100,
    squashed=False,
    abort_early=True,
)
WAYS = (("l2", False), ("l2", True), ("linf", False), ("linf", True))
_NAMES = "constant", "low", "high", "last", "level", "point", "number", "found", "pace"
_USUAL = dict(
    constant=0.5, low=0.0, high=INF, last=INF, level=0.1, point=3, number=2, found=0, pace=0.7
)
# beside the rows of radius_rules, in turn: what a slot remembers
_MEMORIES = (
    dict(point=0),
    {},
    dict(point=4, last=0.0),  # stalled
    dict(point=4, last=1e9),
    dict(point=STEPS - 1),  # the round ends without a success
    dict(point=STEPS - 1, found=1, low=0.2),
    dict(point=STEPS - 1, low=0.2, high=3.0),
    dict(point=4, number=8, last=0.0),  # the last round
    dict(point=STEPS - 1, number=7, high=2.0),
    dict(point=STEPS - 1, constant=4.0),  # beyond the most of L-infinity
    dict(level=9.0, constant=1e6, point=1),  # which makes a small loss small
    dict(point=STEPS - 1, found=1, level=0.01),
)


class CwState(State):
    """As that of DDN, with what C&W remembers."""

    def __init__(self, size, device, dtype=torch.float32, squashed=False):
        super().__init__(size, device, dtype)
        compute = self.loss.dtype
        del self.radius, self.limit
        generator = torch.Generator().manual_seed(1)
        self.shift = torch.randn(self.x.shape, generator=generator).to(device, compute)
        self.mean = torch.randn(self.x.shape, generator=generator).to(device, compute)
        self.square = torch.rand(self.x.shape, generator=generator).to(device, compute)
        if not squashed:
            self.shift = (self.x_adv - self.x).to(compute)
        shown = [_USUAL | more for more in _MEMORIES]
        rows = [[shown[i % len(shown)][name] for name in _NAMES] for i in range(len(ROWS))]
        self.search = torch.tensor(rows, device=device, dtype=compute)
        table = torch.tensor(penalty.schedule([0.05] * STEPS), dtype=compute)
        self.schedule = table.t().contiguous().to(device)

    def shifted(self, by):
        """With the memories beside other rows."""
        self.search = self.search.roll(by, 0).contiguous()
        return self

    def clone(self):
        other = object.__new__(CwState)
        other.__dict__ = {k: v.clone() for k, v in self.__dict__.items()}
        return other

    def rows(self, rows):
        other = object.__new__(CwState)
        taken = {k: v if k == "schedule" else v[rows] for k, v in self.__dict__.items()}
        other.__dict__ = {k: v.clone() for k, v in taken.items()}
        return other

    def step(self, norm, course=COURSE, **options):
        images = (getattr(self, name) for name in IMAGES)
        named = {k: v for k, v in vars(self).items() if k not in IMAGES}
        cw_step_(*images, **named, course=course, norm=norm, **options)
        return self


def _at(x, shift, course):
    """The point of a shift in [0, 1]."""
    if not course.squashed:
        return (x + course.unit * shift).clamp(0, 1)
    return (torch.tanh(((2 * x - 1) * (1 - 1e-6)).atanh() + shift) + 1) / 2


def _penalised(d, norm, level):
    return d.square().sum() if norm == "l2" else (d.abs() - level).clamp(min=0).sum()


def simulate(s, norm, course=COURSE, *, targeted=False, stop_early=False):
    for i in range(len(s.x)):
        slot, step = s.slots[i], int(s.slots[i, columns.STEP])
        if slot[columns.ACTIVE] == 0:
            continue
        x_adv, x, g = (t[i].double() for t in (s.x_adv, s.x, s.grad))
        m = dict(zip(_NAMES, s.search[i].double().tolist(), strict=True))
        d = (x_adv - x) / course.unit
        length = float((x_adv - x).norm(p=2 if norm == "l2" else INF))
        loss, known = float(s.loss[i].nan_to_num(0.0)), not s.loss[i].isnan()
        if not known:
            slot[columns.FAULT] |= columns.FAULT_NAN_LOGITS
        kappa = float(torch.tensor(course.kappa, dtype=s.loss.dtype))
        fooled = known and bool(s.prediction[i] == s.aims[i]) == targeted and loss >= kappa
        nearer = fooled and length < s.distance[i]
        if nearer:
            s.closest[i], s.distance[i] = s.x_adv[i], length
            slot[columns.NEAREST_STEP] = step
        within = fooled and length <= s.eps[i]
        if within and slot[columns.SUCCESS_STEP] < 0:
            slot[columns.SUCCESS_STEP] = step
        value = float(_penalised(d, norm, m["level"])) + m["constant"] * (kappa - loss)
        done = False
        if norm == "linf":
            done = aborts = course.abort_early and value < 1e-4 * m["constant"]
            m["found"] = m["found"] or nearer
        else:
            late = m["point"] >= course.settled
            checks = late and m["point"] % math.ceil(STEPS / 10) == 0
            aborts = course.abort_early and checks and value > 0.9999 * m["last"]
            m["last"] = value if checks else m["last"]
            m["found"] = m["found"] or (fooled and late)
        ends = aborts or m["point"] + 1 == STEPS
        used = dict(m)
        if ends:
            _next_round(m, norm, course, float(s.distance[i]))
        else:
            m["point"] += 1
        over = ends and (m["number"] >= course.rounds or (norm == "linf" and m["constant"] >= 5))
        if over or step + 1 >= course.points or (stop_early and within):
            slot[columns.ACTIVE] = 0
            continue
        slot[columns.STEP] = step + 1
        if done:
            s.mean[i], s.square[i] = 0, 0
            used, m["point"] = dict(m, point=0), 1
        s.search[i] = torch.tensor([float(m[name]) for name in _NAMES], dtype=s.search.dtype)
        _adam(s, i, x, g, d, used, norm, course)
        if ends and norm == "l2":
            s.shift[i] = 0
        if ends and not done:
            s.mean[i], s.square[i] = 0, 0
        s.x_adv[i] = _at(x, s.shift[i].double(), course)
        if not course.squashed:
            s.shift[i] = (s.x_adv[i] - s.x[i]) / course.unit
    return s


def _next_round(m, norm, course, distance):
    if norm == "linf":
        if m["found"]:
            m["level"] = min(m["level"], distance / course.unit) * course.decrease
        else:
            m["constant"] *= course.increase
    else:
        bound, choose = ("high", min) if m["found"] else ("low", max)
        m[bound] = choose(m[bound], m["constant"])
        middle = (m["low"] + m["high"]) / 2
        m["constant"] = middle if m["high"] < INF else m["constant"] * course.increase
        if course.rounds >= 10 and m["number"] + 2 == course.rounds:
            m["constant"] = min(m["high"], 1e10)
    if course.relative:
        m["pace"] = min(1.0, course.relative * distance / course.unit)
    m.update(last=INF, point=0, number=m["number"] + 1, found=0)


def _adam(s, i, x, g, d, used, norm, course):
    leaf = s.shift[i].double().requires_grad_()
    at = _at(x, leaf, course._replace(unit=1.0)) if course.squashed else x + course.unit * leaf
    d = d.detach() if not course.squashed else (at - x + (d * course.unit - at + x).detach())
    d = d / course.unit if course.squashed else leaf - leaf.detach() + d
    total = _penalised(d, norm, used["level"]) - used["constant"] * (g * at).sum()
    (slope,) = torch.autograd.grad(total, leaf)
    turn = int(used["point"]) + 1
    mean = 0.9 * s.mean[i].double() + 0.1 * slope
    square = 0.999 * s.square[i].double() + 0.001 * slope**2
    root = (square / (1 - 0.999**turn)).sqrt() + 1e-8
    s.mean[i], s.square[i] = mean, square
    s.shift[i] -= 0.05 * used["pace"] * mean / (1 - 0.9**turn) / root


def assert_agree(got, expected, tolerance):
    assert torch.equal(got.slots, expected.slots)
    assert torch.equal(got.closest.isnan(), expected.closest.isnan())
    for name in ("x_adv", "closest", "distance", "search", "shift", "mean", "square"):
        a, b = getattr(got, name).double(), getattr(expected, name).double()
        torch.testing.assert_close(
            a, b, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
