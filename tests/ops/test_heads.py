"""The loss head against float64 autograd, its backends against each other, and its slot rules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastadv.kernels import slots as columns
from fastadv.ops import backend, head_reference
from fastadv.ops.heads import HeadOutput, loss_head, loss_head_, loss_head_reference

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


@pytest.mark.parametrize(
    "loss, targeted, classes",
    [
        pytest.param(*loss, classes, id=f"{name}-{classes}")
        for loss, name in zip(LOSSES, NAMES, strict=True)
        for classes in (2, 3, 4, 10, 1000)
        if classes >= MINIMUM.get(loss, 2)
    ],
)
def test_values_against_float64_autograd(device, either_backend, loss, targeted, classes):
    logits, labels, targets, reference = problem(device, 6, classes)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    assert torch.equal(got.prediction, logits.argmax(1))
    assert torch.equal(got.correct, got.prediction == labels)
    assert (got.loss.dtype, got.grad.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_every_float_dtype(device, either_backend, loss, targeted, dtype):
    logits, labels, targets, reference = problem(device, 5, 10, dtype)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    assert got.grad.dtype == dtype
    assert got.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    "loss, targeted, dtype",
    [(*loss, torch.float32) for loss in LOSSES] + [("kl", False, torch.float64)],
)
def test_more_classes_than_a_block_holds(device, either_backend, loss, targeted, dtype):
    logits, labels, targets, reference = problem(device, 1, 21_000, dtype)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    assert torch.equal(got.prediction, logits.argmax(1))


@pytest.mark.parametrize("targeted", [False, True])
def test_label_smoothing_is_that_of_torch(device, either_backend, targeted):
    logits, labels, targets, _ = problem(device, 4, 10)
    chosen = arguments("ce", targeted, labels, targets, None, label_smoothing=0.1)
    assert_close_to_exact(loss_head(logits, labels, **chosen), logits, labels, chosen)


def test_label_smoothing_over_many_classes(device, either_backend):
    logits, labels, _, _ = problem(device, 1, 21_000)
    chosen = dict(loss="ce", label_smoothing=0.1)
    assert_close_to_exact(loss_head(logits, labels, **chosen), logits, labels, chosen)


@pytest.mark.parametrize("targeted", [False, True])
def test_margin_stops_rising_at_kappa(device, either_backend, targeted):
    logits, labels, _, _ = problem(device, 12, 4)
    targets = torch.cat([logits.argmax(1)[:6], logits.argmin(1)[6:]])
    chosen = arguments("margin", targeted, labels, targets, None, kappa=0.25)
    got = loss_head(logits, labels, **chosen)
    assert_close_to_exact(got, logits, labels, chosen)
    beyond = got.loss == 0.25
    assert beyond.any() and not beyond.all()
    assert (got.grad[beyond] == 0).all() and (got.grad[~beyond] != 0).any(1).all()


def test_margin_has_its_gradient_at_kappa_itself(device, either_backend):
    logits = torch.tensor([[0.0, 2.0, 1.0]], device=device)
    got = loss_head(logits, torch.tensor([0], device=device), loss="margin", kappa=2.0)
    assert torch.equal(got.loss, torch.tensor([2.0], device=device))
    assert torch.equal(got.grad, torch.tensor([[-1.0, 1.0, 0.0]], device=device))


def test_margin_without_limit(device, either_backend):
    logits = torch.tensor([[0.0, 50.0]], device=device)
    got = loss_head(logits, torch.tensor([0], device=device), loss="margin", kappa=INF)
    assert torch.equal(got.loss, torch.tensor([50.0], device=device))


def test_a_saturated_row_has_exactly_zero_gradient(device, either_backend):
    logits = torch.tensor([[200.0, 0.0, -50.0]], device=device)
    got = loss_head(logits, torch.tensor([0], device=device))
    assert torch.equal(got.loss, torch.zeros(1, device=device))
    assert torch.equal(got.grad, torch.zeros(1, 3, device=device))


@pytest.mark.parametrize(
    "row, expected",
    [
        ([1.0, 1.0, 1.0], 0),
        ([0.0, 2.0, 2.0], 1),
        ([-INF, -INF, -INF], 0),
        ([0.0, INF, INF], 1),
        ([0.0, NAN, INF], 1),
        ([INF, 0.0, NAN], 2),
        ([-0.0, 0.0, -1.0], 0),
    ],
)
def test_prediction_is_the_first_of_the_largest(device, either_backend, row, expected):
    logits = torch.tensor([row], device=device)
    with np.errstate(all="ignore"):  # inf - inf, which a GPU computes without a word
        got = loss_head(logits, torch.tensor([expected], device=device))
    assert got.prediction.tolist() == [expected]
    assert got.correct.tolist() == [True]


def test_prediction_of_tied_and_nan_rows_longer_than_a_block(device, either_backend):
    logits = torch.zeros(3, 9000, device=device)
    logits[0, [4000, 8999]] = 1.0
    logits[1, [8000, 8500]] = NAN
    logits[1, 100] = INF
    logits[2] = -INF
    with np.errstate(all="ignore"):
        got = loss_head(logits, torch.zeros(3, dtype=torch.int64, device=device), loss="margin")
    assert got.prediction.tolist() == [4000, 8000, 0]


@pytest.mark.parametrize(
    "row",
    [
        [1.0, 1.0, 1.0, 1.0],
        [2.0, 2.0, 1.0, 0.0],
        [2.0, 1.0, 1.0, 1.0],
        [0.0, 3.0, 3.0, 3.0],
        [0.0, 2.0, 1.0, 1.0],
    ],
)
@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_tied_logits_give_the_textbook_loss_and_the_reference_gradient(
    device, either_backend, loss, targeted, row
):
    logits = torch.tensor([row, row], device=device)
    labels, targets = torch.tensor([0, 2], device=device), torch.tensor([1, 0], device=device)
    reference = torch.full_like(logits, 0.25)
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    expected, _ = exact(logits, labels, chosen)
    relative = 4 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(got.loss.double(), expected, rtol=relative, atol=relative)
    torch.testing.assert_close(got.grad, eager.grad, rtol=relative, atol=relative)


def test_fp16_gradients_of_tied_logits_are_finite(device, either_backend):
    logits = torch.tensor([[0.0, 3.0, 3.0, 3.0]], dtype=torch.float16, device=device)
    grad = loss_head(logits, torch.tensor([0], device=device), loss="dlr").grad
    assert grad.isfinite().all() and grad.abs().max() == 65504


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_logits_that_are_not_finite_never_crash(device, either_backend, loss, targeted, value):
    logits, labels, targets, reference = problem(device, 4, 5)
    logits[0, 0] = logits[1, 0] = logits[1, 3] = value
    logits[2, labels[2]] = value
    logits[3] = value
    chosen = arguments(loss, targeted, labels, targets, reference)
    with np.errstate(all="ignore"):  # inf - inf, which a GPU computes without a word
        got = loss_head(logits, labels, **chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    tolerance = 16 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(got, eager, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert got.grad.isfinite().all()
    if value != value:
        assert got.loss.isnan().all() and (got.grad == 0).all()


def test_cross_entropy_of_infinite_logits_is_that_of_torch(device, either_backend):
    logits = torch.tensor([[INF, 0.0, 1.0], [-INF, 0.0, 1.0]], device=device)
    labels = torch.tensor([0, 0], device=device)
    with np.errstate(all="ignore"):
        got = loss_head(logits, labels)
    assert got.loss[0].isnan() and got.loss[1] == INF
    assert (got.grad[0] == 0).all() and got.grad[1, 0] == -1


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_labels_out_of_range_give_no_loss_and_no_gradient(device, either_backend, loss, targeted):
    logits, labels, targets, reference = problem(device, 6, 5)
    labels[:4] = torch.tensor([-1, 5, 2**32 + 1, -(2**62)])
    if targeted:
        targets[4] = 5
    chosen = arguments(loss, targeted, labels, targets, reference)
    got = loss_head(logits, labels, **chosen)
    bad = [0, 1, 2, 3, 4] if targeted else [0, 1, 2, 3]
    assert (got.loss[bad] == 0).all() and (got.grad[bad] == 0).all()
    assert not got.correct[:4].any()
    chosen = arguments(loss, targeted, labels, targets[5:], reference[5:])
    alone = loss_head(logits[5:], labels[5:], **chosen)
    assert torch.equal(got.loss[5:], alone.loss) and torch.equal(got.grad[5:], alone.grad)


@pytest.mark.parametrize("classes", [10, 9000])
@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_a_row_has_the_same_bits_in_any_batch(device, either_backend, loss, targeted, classes):
    batch = 9 if classes == 10 else 3
    logits, labels, targets, reference = problem(device, batch, classes)

    def rows(start, stop):
        chosen = arguments(loss, targeted, labels, targets[start:stop], reference[start:stop])
        return loss_head(logits[start:stop], labels[start:stop], **chosen)

    together = rows(0, batch)
    for size in (1, 7) if classes == 10 else (1, 2):
        parts = [rows(i, min(i + size, batch)) for i in range(0, batch, size)]
        for name, whole in together._asdict().items():
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), whole), (size, name)


def _awkward_rows(device, classes):
    """Rows full of ties, infinite values and NaN."""
    values = torch.tensor([-INF, -INF, -1.0, -0.0, 0.0, 2.0, INF, NAN], device=device)
    generator = torch.Generator().manual_seed(classes)
    rows = [
        values[torch.randint(low, high, (64, classes), generator=generator)]
        for low, high in ((0, 2), (0, 4), (2, 6), (0, 7), (0, 8))
    ]
    lonely = torch.full((classes, classes), -INF, device=device)
    lonely.fill_diagonal_(1.0)
    return torch.cat([*rows, lonely])


@pytest.mark.parametrize("classes", [4, 5, 17, 40])
def test_maxima_one_by_one_rank_as_a_stable_sort(device, monkeypatch, classes):
    z = _awkward_rows(device, classes)
    values, columns = z.sort(dim=1, descending=True, stable=True)
    top, first = z.max(1)
    rows = head_reference._Rows(z, top, first, first, None, top != top)
    monkeypatch.setattr(head_reference, "_SORTED_CLASSES", 0)
    for count in (2, 3, 4):
        ranked_values, ranked = head_reference._ranked(rows, count)
        assert torch.equal(torch.stack(ranked, 1), columns[:, :count])
        torch.testing.assert_close(
            torch.stack(ranked_values, 1), values[:, :count], rtol=0, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("loss, targeted", [("margin", False), ("dlr", False), ("dlr", True)])
def test_the_way_of_ranking_changes_no_bit(device, monkeypatch, loss, targeted):
    logits = _awkward_rows(device, 12)
    labels = torch.arange(len(logits), device=device) % 12
    chosen = arguments(loss, targeted, labels, (labels + 5) % 12, None)
    outputs = []
    for limit in (0, 12):
        monkeypatch.setattr(head_reference, "_SORTED_CLASSES", limit)
        outputs.append(loss_head_reference(logits, labels, **chosen))
    torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_a_slot_pass_writes_the_loss_and_gradient_of_a_plain_one(device, loss, targeted):
    logits, labels, targets, reference = problem(device, 9, 10)
    logits[3, 2], logits[4, 1], labels[5] = NAN, INF, 10
    chosen = arguments(loss, targeted, labels, targets, reference)
    plain = loss_head_reference(logits, labels, **chosen)
    kind = {"ce": "cross_entropy"}.get(loss, loss)
    with backend.use_backend("reference"):
        slotted = State(logits, labels).evaluate(
            kind, targets=targets if targeted else None, reference=reference
        )
    for name, expected in plain._asdict().items():
        got = getattr(slotted, name)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_triton_equals_the_reference(device, loss, targeted):
    logits, labels, targets, reference = problem(device, 8, 37)
    chosen = arguments(loss, targeted, labels, targets, reference)
    with backend.use_backend("triton"):
        got = loss_head(logits, labels, **chosen)
    eager = loss_head_reference(logits, labels, **chosen)
    assert torch.equal(got.prediction, eager.prediction)
    assert torch.equal(got.correct, eager.correct)
    if loss in ("margin", "difference", "dlr"):  # no sums: every operation is correctly rounded
        assert torch.equal(got.loss, eager.loss) and torch.equal(got.grad, eager.grad)


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z.T.contiguous().T,
        lambda z: torch.cat([z, z], 1)[:, : z.shape[1]],
        lambda z: torch.stack([z, z], 2)[..., 0],
    ],
    ids=["transposed", "sliced", "strided"],
)
def test_any_stride_gives_the_same_bits(device, either_backend, view):
    logits, labels, _, _ = problem(device, 5, 10)
    assert not view(logits).is_contiguous()
    for got, expected in zip(
        loss_head(view(logits), labels), loss_head(logits, labels), strict=True
    ):
        assert torch.equal(got, expected)


def test_expanded_logits(device, either_backend):
    logits, labels, _, _ = problem(device, 1, 10)
    got = loss_head(logits.expand(3, 10), labels.expand(3))
    assert torch.equal(got.grad, loss_head(logits, labels).grad.expand(3, 10))


@pytest.mark.parametrize("loss, targeted", LOSSES, ids=NAMES)
def test_an_empty_batch(device, either_backend, loss, targeted):
    logits, labels, targets, reference = (t[:0] for t in problem(device, 1, 5))
    got = loss_head(logits, labels, **arguments(loss, targeted, labels, targets, reference))
    assert [tuple(t.shape) for t in got] == [(0,), (0, 5), (0,), (0,)]


def test_int32_labels_are_converted(device, either_backend):
    logits, labels, targets, _ = problem(device, 3, 5)
    got = loss_head(logits, labels.int(), loss="difference", targets=targets.int())
    assert torch.equal(got.grad, loss_head(logits, labels, loss="difference", targets=targets).grad)


def test_logits_that_require_grad_are_not_recorded(device, either_backend):
    leaf, labels, _, _ = problem(device, 3, 5)
    leaf.requires_grad_()
    logits = 2.0 * leaf
    output = loss_head(logits, labels)
    assert not any(t.requires_grad for t in output)
    logits.backward(output.grad)
    _, grad = exact(2.0 * leaf, labels, dict(loss="ce"))
    torch.testing.assert_close(leaf.grad.double(), 2.0 * grad, rtol=1e-5, atol=1e-6)


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
        self, kind="cross_entropy", parameter=0.0, *, targets=None, reference=None, steps=3,
        first_step=0, stop_early=True, grad=True, slots=True, best=True,
    ):  # fmt: skip
        with np.errstate(invalid="ignore"):  # NaN logits: inf - inf, as on a GPU
            loss_head_(
                self.logits, self.labels, targets, reference, self.loss,
                self.grad if grad else None, self.prediction, self.correct,
                self.slots if slots else None, self.best_loss if best else None,
                kind, parameter, steps, first_step, stop_early,
            )  # fmt: skip
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
@pytest.mark.parametrize(
    "before, predicted, options, after",
    [
        (dict(STEP=0), 0, {}, (1, -1, 1)),
        (dict(STEP=2), 0, {}, (3, -1, 1)),
        (dict(STEP=3), 0, {}, (3, -1, 0)),
        (dict(STEP=1), 2, {}, (1, 1, 0)),
        (dict(STEP=1), 2, dict(stop_early=False), (2, 1, 1)),
        (dict(STEP=3), 2, dict(stop_early=False), (3, 3, 0)),
        (dict(STEP=2, SUCCESS_STEP=1), 2, dict(stop_early=False), (3, 1, 1)),
        (dict(STEP=2, SUCCESS_STEP=1), 0, dict(stop_early=False), (3, 1, 1)),
        (dict(STEP=2, SUCCESS_STEP=1), 0, {}, (2, 1, 0)),
        (dict(STEP=0), 2, dict(first_step=1), (1, -1, 1)),
        (dict(STEP=1), 2, dict(first_step=1), (1, 1, 0)),
        (dict(STEP=3), 2, dict(first_step=4), (3, -1, 0)),
        (dict(STEP=1, ACTIVE=0), 2, {}, (1, -1, 0)),
        (dict(STEP=0), 0, dict(steps=0), (0, -1, 0)),
    ],
)
def test_slot_rules(device, either_backend, before, predicted, options, after):
    state = one_row(device, predicted, **before).evaluate(**options)
    assert state.row()[:3] == after
    assert state.prediction.tolist() == [predicted]
    assert state.correct.tolist() == [predicted == 0]


@pytest.mark.parametrize("kind", ["cross_entropy", "margin", "dlr", "difference", "none"])
def test_a_targeted_slot_succeeds_at_its_target_only(device, either_backend, kind):
    logits = torch.eye(4, device=device)[[0, 1, 2]]
    labels = torch.zeros(3, dtype=torch.int64, device=device)
    targets = torch.full((3,), 2, device=device)
    state = State(logits, labels).evaluate(kind, targets=targets)
    assert state.column("SUCCESS_STEP") == [-1, -1, 0]
    assert state.correct.tolist() == [True, False, False]


@pytest.mark.parametrize("targeted", [False, True])
def test_kappa_must_be_reached_to_succeed(device, either_backend, targeted):
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [3.0, 0.0]], device=device)
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    targets = torch.ones_like(labels) if targeted else None
    assert State(logits, labels).evaluate("margin", 2.0, targets=targets).column(
        "SUCCESS_STEP"
    ) == [-1, 0, 0, -1]
    assert State(logits, labels).evaluate("margin", 0.0, targets=targets).column(
        "SUCCESS_STEP"
    ) == [0, 0, 0, -1]


def test_kappa_is_compared_in_the_precision_of_the_loss(device, either_backend):
    gap = torch.tensor(0.1, device=device)  # float32: 1.5e-9 above the double 0.1
    logits = torch.stack([torch.zeros_like(gap), gap])[None]
    state = State(logits, torch.zeros(1, dtype=torch.int64, device=device))
    assert state.evaluate("margin", 0.1).column("SUCCESS_STEP") == [0]
    assert state.grad.tolist() == [[-1.0, 1.0]]


def test_a_tie_with_the_label_behind_it_is_no_success(device, either_backend):
    logits = torch.ones(1, 3, device=device)
    state = State(logits, torch.zeros(1, dtype=torch.int64, device=device)).evaluate("margin")
    assert state.column("SUCCESS_STEP") == [-1]


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_nan_logits_are_a_fault_and_never_a_success(device, either_backend, kind):
    logits = torch.tensor([[0.0, NAN, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]], device=device)
    targets = torch.tensor([1, 1], device=device) if kind == "difference" else None
    state = State(logits, torch.zeros(2, dtype=torch.int64, device=device))
    state.loss[:] = 5.0
    state.evaluate(kind, targets=targets, reference=torch.full_like(logits, 0.25))
    assert state.column("FAULT") == [columns.FAULT_NAN_LOGITS, 0]
    assert state.column("SUCCESS_STEP")[0] == -1
    assert state.column("STEP")[0] == 1
    if kind != "none":
        assert state.loss[0].isnan() and (state.grad[0] == 0).all()


@pytest.mark.parametrize(
    "kind, label, target",
    [
        (kind, label, target)
        for kind in (*KINDS, "none")
        for label, target in [(-1, 1), (4, 1), (2**32, 1), (0, 4), (0, -1)]
        if kind != "kl" or label != 0  # kl reads no targets
    ],
)
def test_bad_labels_are_a_fault_and_never_a_success(device, either_backend, kind, label, target):
    logits = torch.tensor([[0.0, 4.0, 1.0, 2.0]], device=device)
    targets = torch.tensor([target], device=device) if kind != "kl" else None
    state = State(logits, torch.tensor([label], device=device))
    state.evaluate(kind, targets=targets, reference=torch.full_like(logits, 0.25))
    assert state.column("FAULT") == [columns.FAULT_BAD_LABEL]
    assert state.column("SUCCESS_STEP") == [-1]
    assert state.prediction.tolist() == [1]
    if kind != "none":
        assert state.loss.tolist() == [0.0] and (state.grad == 0).all()


def test_faults_accumulate(device, either_backend):
    state = one_row(device, 1, FAULT=8)
    state.logits[0, 0] = NAN
    state.labels[0] = 3
    expected = 8 | columns.FAULT_NAN_LOGITS | columns.FAULT_BAD_LABEL
    assert state.evaluate().column("FAULT") == [expected]


def test_best_loss_rises_strictly(device, either_backend):
    logits = torch.zeros(4, 3, device=device)
    logits[:, 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    state = State(
        logits, torch.zeros(4, dtype=torch.int64, device=device),
        IMPROVED=[1, 1, 1, 1], ACTIVE=[1, 1, 1, 0], STEP=[1, 1, 0, 1],
    )  # fmt: skip
    state.best_loss[:] = torch.tensor([1.0, 1.5, 1.0, 1.0])
    state.evaluate("margin", INF, first_step=1)
    assert state.column("IMPROVED") == [0, 1, 0, 0]  # equal; higher; before first_step; finished
    assert state.best_loss.tolist() == [1.0, 2.0, 1.0, 1.0]


def test_a_nan_loss_is_no_improvement(device, either_backend):
    state = one_row(device, 1)
    state.logits[0, 0] = NAN
    state.evaluate()
    assert state.column("IMPROVED") == [0] and state.best_loss.tolist() == [-INF]


def test_without_best_loss_improved_is_left_alone(device, either_backend):
    assert one_row(device, 1, IMPROVED=1).evaluate(best=False).column("IMPROVED") == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_slot_keeps_its_state(device, either_backend, kind):
    logits, labels, targets, reference = problem(device, 2, 5)
    state = State(logits, labels, STEP=2, SUCCESS_STEP=1, ACTIVE=[0, 1], FAULT=2)
    state.loss[:], state.best_loss[:] = 7.0, -9.0
    state.prediction[:] = -7
    state.evaluate(kind, targets=targets if kind == "difference" else None, reference=reference)
    assert state.row() == (2, 1, 0, 2, 0)
    assert state.loss[0] == 7.0 and state.best_loss[0] == -9.0
    assert state.loss[1] != 7.0
    assert torch.equal(state.prediction, logits.argmax(1))
    assert state.grad.isfinite().all()  # ignored, but written


def test_a_custom_loss_is_read_not_written(device, either_backend):
    state = one_row(device, 2, STEP=1)
    state.loss[:], state.best_loss[:] = 3.0, 2.0
    state.evaluate("none")
    assert state.row() == (1, 1, 0, 0, 1)
    assert state.loss.tolist() == [3.0] and state.best_loss.tolist() == [3.0]
    assert state.grad.isnan().all()


@pytest.mark.parametrize(
    "kind, classes",
    [
        (kind, classes)
        for kind in KINDS
        for classes in (2, 10, 16, 17, 9000)
        if kind != "dlr" or classes >= MINIMUM["dlr", False]
    ],
)
def test_poisoned_outputs_are_written_whole(device, either_backend, kind, classes):
    logits, labels, targets, reference = problem(device, 2, classes)
    state = State(logits, labels)
    state.evaluate(
        kind, targets=targets if kind == "difference" else None, reference=reference, slots=False
    )
    assert state.loss.isfinite().all() and state.grad.isfinite().all()
    assert (state.prediction >= 0).all()
    assert state.best_loss.tolist() == [-INF, -INF]  # ignored without slots
    assert torch.equal(state.correct, logits.argmax(1) == labels)


def test_nothing_is_written_beside_a_sliced_gradient(device, either_backend):
    logits, labels, _, _ = problem(device, 3, 10)
    state = State(logits, labels)
    wide = torch.full((3, 12), 5.0, device=device)
    state.grad = wide[:, 1:11]
    state.evaluate()
    assert torch.equal(state.grad, loss_head(logits, labels).grad)
    assert (wide[:, [0, 11]] == 5.0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_forward_only_gives_the_same_loss(device, either_backend, kind):
    logits, labels, targets, reference = problem(device, 2, 10)
    chosen = dict(targets=targets if kind == "difference" else None, reference=reference)
    with_grad = State(logits, labels).evaluate(kind, **chosen)
    without = State(logits, labels).evaluate(kind, grad=False, **chosen)
    assert torch.equal(with_grad.loss, without.loss)
    assert without.grad.isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_version_counter_of_every_written_tensor_grows(device, either_backend, kind):
    logits, labels, targets, reference = problem(device, 2, 5)
    state = State(logits, labels)
    names = ("loss", "grad", "prediction", "correct", "slots", "best_loss")
    before = {name: getattr(state, name)._version for name in names}
    state.evaluate(kind, targets=targets if kind == "difference" else None, reference=reference)
    assert all(getattr(state, name)._version > before[name] for name in names)


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_one_launch_a_call(device, count_launches, kind):
    logits, labels, targets, reference = problem(device, 2, 9000)
    state = State(logits, labels)
    with backend.use_backend("triton"), count_launches() as launches:
        state.evaluate(kind, targets=targets if kind == "difference" else None, reference=reference)
    assert launches == ["loss_head_kernel"]


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("kind", ["cross_entropy", "dlr", "kl", "none"])
def test_opcheck(device, either_backend, kind, slots):
    logits, labels, targets, reference = problem(device, 2, 5)
    state = State(logits, labels)
    state.loss[:] = 0.0
    torch.library.opcheck(
        torch.ops.fastadv.loss_head_,
        (
            logits, labels, targets if kind == "dlr" else None, reference if kind == "kl" else None,
            state.loss, state.grad, state.prediction, state.correct,
            state.slots if slots else None, state.best_loss if slots else None,
            kind, 0.0, 3, 0, True,
        ),
    )  # fmt: skip


def test_dlr_names_the_margin_loss_where_classes_are_too_few(device):
    labels = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="DLR loss needs at least three.*of 2.*margin"):
        loss_head(torch.zeros(1, 2, device=device), labels, loss="dlr")
    with pytest.raises(ValueError, match="targeted DLR loss needs at least four.*of 3.*margin"):
        loss_head(torch.zeros(1, 3, device=device), labels, loss="dlr", targets=labels)
    with pytest.raises(ValueError, match="DLR loss needs at least three"):
        State(torch.zeros(1, 2, device=device), labels).evaluate("dlr")


@pytest.mark.parametrize("head", [loss_head, loss_head_reference])
@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(labels=torch.zeros(3, dtype=torch.int64)), r"labels must be \(2,\).*got \(3,\)"),
        (dict(labels=torch.zeros(2)), "labels must be.*int64 or int32.*torch.float32"),
        (dict(labels=torch.zeros(2, dtype=torch.int64, device="meta")), "labels must.*on meta"),
        (dict(targets=torch.zeros(2, 1, dtype=torch.int64)), r"targets must.*got \(2, 1\)"),
        (dict(loss="difference"), "difference.*pass targets"),
        (dict(loss="kl"), "kl.*pass reference"),
        (dict(loss="kl", reference=torch.ones(2, 4)), r"reference must be \(2, 5\).*\(2, 4\)"),
        (dict(loss="kl", targets=torch.zeros(2, dtype=torch.int64)), "kl.*no targeted form"),
        (dict(reference=torch.ones(2, 5)), 'reference belongs to loss="kl".*ce'),
        (dict(loss="hinge"), "loss must be one of .*'margin'.*got 'hinge'"),
        (dict(loss="none"), "loss must be one of"),
        (dict(logits=torch.zeros(2)), r"logits must be \(B, C\).*got \(2,\)"),
        (dict(logits=torch.zeros(2, 1)), r"logits must be.*C >= 2.*got \(2, 1\)"),
        (dict(logits=torch.zeros(2, 5, dtype=torch.int64)), "logits must be.*torch.int64"),
        (dict(label_smoothing=1.5), r"label_smoothing must lie in \[0, 1\].*got 1.5"),
        (dict(loss="dlr", label_smoothing=0.1), "label_smoothing must.*loss='dlr'"),
        (dict(loss="margin", kappa=-1.0), "kappa must be at least 0.*got -1.0"),
        (dict(kappa=1.0), "kappa must be.*0 unless.*loss='ce'"),
    ],
)
def test_errors_name_the_argument(device, head, changes, match):
    given = dict(logits=torch.zeros(2, 5), labels=torch.zeros(2, dtype=torch.int64)) | changes
    given = {
        name: value.to(device) if isinstance(value, torch.Tensor) and not value.is_meta else value
        for name, value in given.items()
    }
    with pytest.raises(ValueError, match=match):
        head(given.pop("logits"), given.pop("labels"), **given)


def test_a_gradient_of_another_dtype_is_refused(device):
    state = one_row(device, 1)
    state.grad = state.grad.half()
    with pytest.raises(ValueError, match="grad must have the logits' dtype.*got torch.float16"):
        state.evaluate()


def test_double_logits_are_rounded_into_the_single_losses_of_the_engine():
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    slots = torch.zeros(6, columns.WIDTH, dtype=torch.int32)
    slots[:, columns.SUCCESS_STEP], slots[:, columns.ACTIVE] = -1, 1
    loss, best = torch.zeros(6), torch.full((6,), -torch.inf)
    prediction, correct = torch.empty(6, dtype=torch.int64), torch.empty(6, dtype=torch.bool)
    with backend.use_backend("reference"):
        loss_head_(
            logits, labels, None, None, loss, torch.empty_like(logits), prediction, correct, slots,
            best, "cross_entropy", 0.0, 9, 0, False,
        )  # fmt: skip
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(best, loss)
