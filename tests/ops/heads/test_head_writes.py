"""Which tensors of the engine the loss head writes, and that it writes them whole."""

import pytest
import torch
from head_problems import INF, KINDS, MINIMUM, State, one_row, problem

from fastadv.kernels import slots as columns
from fastadv.ops import backend
from fastadv.ops.heads.loss_head import loss_head, loss_head_


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
            logits,
            labels,
            targets if kind == "dlr" else None,
            reference if kind == "kl" else None,
            state.loss,
            state.grad,
            state.prediction,
            state.correct,
            state.slots if slots else None,
            state.best_loss if slots else None,
            kind,
            0.0,
            3,
            0,
            True,
            0,
            False,
        ),
    )


def test_double_logits_are_rounded_into_the_single_losses_of_the_engine():
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    slots = torch.zeros(6, columns.WIDTH, dtype=torch.int32)
    slots[:, columns.SUCCESS_STEP], slots[:, columns.ACTIVE] = -1, 1
    loss, best = torch.zeros(6), torch.full((6,), -torch.inf)
    prediction, correct = torch.empty(6, dtype=torch.int64), torch.empty(6, dtype=torch.bool)
    with backend.use_backend("reference"):
        loss_head_(
            logits,
            labels,
            None,
            None,
            loss,
            torch.empty_like(logits),
            prediction,
            correct,
            slots,
            best,
            "cross_entropy",
            0.0,
            9,
            0,
            False,
            0,
            False,
        )
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, expected.float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(best, loss)
