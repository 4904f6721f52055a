"""Losses, logits of every kind and slot states for the tests of the loss head."""

import numpy as np
import torch
import torch.nn.functional as F

from fastadv.kernels import slots as columns
from fastadv.ops.heads.loss_head import HeadOutput, loss_head_, loss_head_reference

NAN, INF = float("nan"), float("inf")
UNTARGETED = ("ce", "margin", "dlr", "kl")
TARGETED = ("ce", "margin", "dlr", "difference")
LOSSES = [(loss, False) for loss in UNTARGETED] + [(loss, True) for loss in TARGETED]
NAMES = [f"{loss}_targeted" if targeted else loss for loss, targeted in LOSSES]
KINDS = ("cross_entropy", "margin", "dlr", "difference", "kl")
MINIMUM = {("dlr", False): 3, ("dlr", True): 4}  # classes


def problem(device, batch, classes, dtype=torch.float32, seed=0):
    """(logits, labels, targets, reference): every third label is the prediction."""
    generator = torch.Generator().manual_seed(seed)
    z = 3.0 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    if classes <= 10:  # no ties, not even in bf16: at least 0.25 apart
        z = 0.5 * z.argsort(1).argsort(1) + 0.25 * torch.rand(z.shape, generator=generator) - 2.0
    labels = torch.randint(classes, (batch,), generator=generator)
    labels[::3] = z.argmax(1)[::3]
    targets = (labels + 1 + torch.randint(classes - 1, (batch,), generator=generator)) % classes
    reference = torch.randn(batch, classes, generator=generator, dtype=torch.float64).softmax(1)
    reference = reference.to(torch.float64 if dtype == torch.float64 else torch.float32)
    return z.to(device, dtype), labels.to(device), targets.to(device), reference.to(device)


def arguments(loss, targeted, labels, targets, reference, **more):
    chosen = dict(loss=loss, targets=targets if targeted else None, **more)
    return chosen | (dict(reference=reference) if loss == "kl" else {})


def textbook(z, labels, *, loss, targets=None, reference=None, label_smoothing=0.0, kappa=0.0):
    """The objectives as their papers and authors write them, for autograd."""
    own = labels if targets is None else targets
    z_own = z.gather(1, own[:, None])[:, 0]
    z_label = z.gather(1, labels[:, None])[:, 0]
    others = z.masked_fill(F.one_hot(own, z.shape[1]).bool(), -INF).amax(1)
    ascending = z.sort(dim=1)[0]
    if loss == "ce":
        cross_entropy = F.cross_entropy(z, own, reduction="none", label_smoothing=label_smoothing)
        return cross_entropy if targets is None else -cross_entropy
    if loss == "margin":
        gap = z_own - others if targets is None else others - z_own
        return -gap.clamp(min=-kappa)
    if loss == "dlr" and targets is None:
        return -(z_label - others) / (ascending[:, -1] - ascending[:, -3] + 1e-12)
    if loss == "dlr":
        width = ascending[:, -1] - 0.5 * (ascending[:, -3] + ascending[:, -4]) + 1e-12
        return -(z_label - z_own) / width
    if loss == "difference":
        return F.cross_entropy(z, labels, reduction="none") - F.cross_entropy(
            z, targets, reduction="none"
        )
    return F.kl_div(z.log_softmax(1), reference.to(z.dtype), reduction="none").sum(1)


def exact(logits, labels, chosen):
    z = logits.double().detach().requires_grad_()
    loss = textbook(z, labels, **chosen)
    (grad,) = torch.autograd.grad(loss.sum(), z)
    return loss.detach(), grad


def error(got, expected):
    assert got.isfinite().all()
    return float((got.double() - expected).abs().max())


def spacing(dtype, values):
    """One unit in the last place of the largest value: what any two roundings may differ by."""
    return torch.finfo(dtype).eps * float(values.abs().max().clamp(min=1.0))


def assert_close_to_exact(got: HeadOutput, logits, labels, chosen):
    """At most twice the eager error against float64, and one unit in the last place."""
    loss, grad = exact(logits, labels, chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    assert error(got.loss, loss) <= 2 * error(eager.loss, loss) + spacing(got.loss.dtype, loss)
    assert error(got.grad, grad) <= 2 * error(eager.grad, grad) + spacing(got.grad.dtype, grad)
    # and the eager twin itself: C additions and two transcendental functions, each within an ulp
    ulps = 8 + logits.shape[1].bit_length()
    size = max(1.0, float(logits.abs().max()))
    assert error(eager.loss, loss) <= ulps * size * torch.finfo(eager.loss.dtype).eps
    tolerance = ulps * torch.finfo(eager.loss.dtype).eps + torch.finfo(eager.grad.dtype).eps
    assert error(eager.grad, grad) <= tolerance * float(grad.abs().max().clamp(min=1.0)) * size


# when a slot ends and what it counts, in the op's order
RULES = dict(steps=3, first_step=0, stop_early=True, best_from=0, any_error=False)


class State:
    """Poisoned outputs and a slot state for one row of logits, or several."""

    def __init__(self, logits, labels, **state):
        device, batch = logits.device, len(logits)
        self.logits, self.labels = logits, labels
        self.loss = torch.full((batch,), NAN, device=device)
        self.grad = torch.full_like(logits, NAN)
        self.prediction = torch.full((batch,), -7, device=device)
        self.correct = torch.zeros(batch, dtype=torch.bool, device=device)
        self.best_loss = torch.full((batch,), -INF, device=device)
        self.slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=device)
        initial = dict(STEP=0, SUCCESS_STEP=-1, ACTIVE=1, FAULT=0, IMPROVED=0) | state
        for name, value in initial.items():
            self.slots[:, getattr(columns, name)] = torch.as_tensor(value, dtype=torch.int32)

    def evaluate(
        self,
        kind="cross_entropy",
        parameter=0.0,
        *,
        targets=None,
        reference=None,
        grad=True,
        slots=True,
        best=True,
        **rules,
    ):
        assert rules.keys() <= RULES.keys(), rules
        rules = RULES | rules
        with np.errstate(invalid="ignore"):  # NaN logits: inf - inf, as on a GPU
            loss_head_(
                self.logits,
                self.labels,
                targets,
                reference,
                self.loss,
                self.grad if grad else None,
                self.prediction,
                self.correct,
                self.slots if slots else None,
                self.best_loss if best else None,
                kind,
                parameter,
                *rules.values(),
            )
        return self

    def column(self, name):
        return self.slots[:, getattr(columns, name)].tolist()

    def row(self):
        """(STEP, SUCCESS_STEP, ACTIVE, FAULT, IMPROVED) of the first slot."""
        return tuple(self.slots[0].tolist())


def one_row(device, predicted, **state):
    """A model of three classes that says `predicted` of a sample of class 0."""
    logits = torch.zeros(1, 3, device=device)
    logits[0, predicted] = 1.0
    return State(logits, torch.zeros(1, dtype=torch.int64, device=device), **state)


# state before, prediction, options -> (STEP, SUCCESS_STEP, ACTIVE) after; the label is 0
