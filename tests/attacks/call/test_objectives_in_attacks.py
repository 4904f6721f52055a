"""D. Attacks on models that are no plain classifiers: what an `Objective` ascends and decides."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from judged_problems import IGNORED, PROBLEMS, binary, measured, segmented
from toy_models import differing_fields, joined, same_bits

import fastadv
from fastadv import Execution, Objective
from fastadv.objectives import regression, segmentation

STEPS, EPS = 6, 0.08
STEP = EPS / 4


def _threat(norm: str = "linf") -> fastadv.Linf:
    threats = (fastadv.Linf(EPS), fastadv.L2(0.4), fastadv.L1(1.8))
    return next(threat for threat in threats if threat.norm == norm)


ATTACKS = {
    "pgd": lambda loss: fastadv.pgd(_threat(), steps=STEPS, restarts=2, loss=loss),
    "pgd, best": lambda loss: fastadv.pgd(_threat(), steps=STEPS, keep="best", loss=loss),
    "pgd, last": lambda loss: fastadv.pgd(_threat(), steps=STEPS, keep="last", loss=loss),
    "pgd, L2": lambda loss: fastadv.pgd(_threat("l2"), steps=STEPS, loss=loss),
    "pgd, L1": lambda loss: fastadv.pgd(_threat("l1"), steps=STEPS, sparsity=0.2, loss=loss),
    "pgd, EOT": lambda loss: fastadv.pgd(_threat(), steps=STEPS, eot=2, loss=loss),
    "fgsm": lambda loss: fastadv.fgsm(_threat(), loss=loss),
    "mifgsm": lambda loss: fastadv.mifgsm(_threat(), steps=STEPS, loss=loss),
    "apgd": lambda loss: fastadv.apgd(_threat(), steps=STEPS, loss=loss),
    "square": lambda loss: fastadv.square(fastadv.Linf(0.12), queries=16, loss=loss),
}
WAYS = (Execution(batch_size=3), Execution(batch_size=5, batching="plain"))


# every attack on pixels, and every third on each other task
PAIRS = [
    (task, name)
    for i, task in enumerate(PROBLEMS)
    for k, name in enumerate(ATTACKS)
    if task == "segmentation" or k % 3 == i % 3
]


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_a_success_is_what_the_objective_says_of_the_tensor_that_is_returned(task, name):
    """And nothing of it depends on the batch or the schedule."""
    p = PROBLEMS[task]()
    attack, given = ATTACKS[name](p.objective), p.y.clone()
    result = attack.run(p.model, p.x, p.y)
    with torch.no_grad():
        outputs, clean = p.model(result.x_adv), p.model(p.x)
    success = p.objective.verdict(outputs, p.y).argmax(1)
    wrong = p.objective.verdict(clean, p.y).argmax(1)
    assert torch.equal(result.success.long(), success)
    assert torch.equal(result.prediction, success)
    assert result.score is not None and torch.equal(result.score, p.objective.scores(outputs, p.y))
    assert result.loss.tolist() == pytest.approx(p.objective.losses(outputs, p.y).tolist())
    assert bool(fastadv.contains(attack.threat, result.x_adv, p.x).all())
    assert same_bits(p.y, given)
    if attack.keep != "last":
        assert torch.equal(result.clean_prediction, wrong)
        assert torch.equal(result.clean_score, p.objective.scores(clean, p.y))
    if attack.keep == "first_success":
        assert torch.equal(result.x_adv[wrong.bool()], p.x[wrong.bool()])
        assert torch.equal(result.step == 0, wrong.bool() | ((result.step == 0) & (success == 1)))
    assert 0 < int(wrong.sum()) < int(success.sum()) < len(p.x)
    for way in WAYS:
        again = attack.run(p.model, p.x, p.y, execution=way)
        assert differing_fields(again, result) == [], way
        assert same_bits(again.score, result.score)


def _loop(model, x, x_init, loss_of):
    """PGD in L-infinity as everyone writes it."""
    x_adv = x_init
    for _ in range(STEPS):
        leaf = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(model(leaf)), leaf)
        x_adv = x_adv + STEP * grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv


def _start(x):
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return (x + EPS * noise).clamp(0, 1)


def _of_pixels(y):
    """torch's own mean over valid pixels, of each sample that has one."""
    labels = y.long()

    def loss_of(output):
        rows = zip(output, labels, strict=True)
        valid = [(z, t) for z, t in rows if bool((t != IGNORED).any())]
        losses = [F.cross_entropy(z[None], t[None], ignore_index=IGNORED) for z, t in valid]
        return torch.stack(losses).sum()

    return loss_of


def _conv(classes):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, classes, 3)]
    return torch.nn.Sequential(*layers, torch.nn.ZeroPad2d(1))


@pytest.mark.parametrize("net", ["pixels", "conv"])
def test_segmentation_is_the_loop_that_everyone_writes_bit_for_bit(net):
    p, start = segmented(), _start(segmented().x)
    model = p.model if net == "pixels" else _conv(3)
    attack = fastadv.pgd(_threat(), steps=STEPS, step_size=STEP, loss=p.objective, keep="last")
    result = attack.run(model, p.x, p.y, x_init=start)
    own = _loop(model, p.x, start, _of_pixels(p.y))
    assert same_bits(result.x_adv, own)
    assert same_bits(attack(model, p.x, p.y, x_init=start), own)
    assert not same_bits(own, start)


def test_a_sample_without_valid_pixels_stays_where_it_is_and_is_said_to():
    p = segmented()
    p.y[5] = IGNORED
    attack = ATTACKS["pgd"](p.objective)
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 1 of 16"):
        result = attack.run(p.model, p.x, p.y)
    assert not result.success[5] and result.score is not None and result.score[5] == 1
    with pytest.warns(fastadv.AttackWarning, match="zero_gradient: 1 of 16"):
        last = dataclasses.replace(attack, keep="last", restarts=1)
        x_adv = last.run(p.model, p.x, p.y, x_init=p.x).x_adv
    assert same_bits(x_adv[5], p.x[5])


@pytest.mark.parametrize("shape", [(), (1,)])
def test_binary_is_the_loop_that_everyone_writes_bit_for_bit(shape):
    p, start = binary(shape), _start(binary(shape).x)
    attack = fastadv.pgd(_threat(), steps=STEPS, step_size=STEP, loss=p.objective, keep="last")
    own = _loop(
        p.model,
        p.x,
        start,
        lambda z: F.binary_cross_entropy_with_logits(z.reshape(-1), p.y, reduction="sum"),
    )
    assert same_bits(attack(p.model, p.x, p.y, x_init=start), own)


def test_the_first_success_of_the_loop_is_what_is_kept():
    """Step by step: what is returned is the first iterate of the loop that is a success."""
    p = segmented()
    attack = fastadv.pgd(_threat(), steps=STEPS, step_size=STEP, loss=p.objective)
    result = attack.run(p.model, p.x, p.y, x_init=p.x)
    late = 0
    for k, step in enumerate(result.step.tolist()):
        x, y = p.x[k : k + 1], p.y[k : k + 1]
        for steps in range(1, step + 1):
            shorter = dataclasses.replace(attack, steps=steps, keep="last")
            x_adv = shorter(p.model, x, y, x_init=x)
            with torch.no_grad():
                fallen = bool(p.objective.verdict(p.model(x_adv), y).argmax(1))
            assert fallen == (steps == step)
            late += fallen
    assert late > 3


@pytest.mark.parametrize("kind", [torch.bool, torch.int16, torch.float64])
def test_y_reaches_the_functions_as_it_was_given(kind):
    seen = []

    def loss(output, y):
        seen.append((y.dtype, y.shape[1:]))
        return output.flatten(1).sum(1) * y.flatten(1)[:, 0].to(output.dtype)

    def success(output, y):
        seen.append((y.dtype, y.shape[1:]))
        return output.flatten(1).sum(1) > 50 * y.flatten(1).sum(1)

    p = segmented(5)
    y = torch.ones(5, 2, 3).to(kind)
    for name in ("pgd", "mifgsm", "square"):
        ATTACKS[name](Objective(loss, success)).run(
            p.model, p.x, y, execution=Execution(batch_size=2)
        )
    assert set(seen) == {(kind, (2, 3))} and same_bits(y, torch.ones(5, 2, 3).to(kind))


def test_an_output_with_nan_is_no_success():
    """However the objective judges it; what is claimed is confirmed on finite outputs."""

    class Blind(torch.nn.Module):
        def forward(self, x):
            return torch.where(x > 0.55, torch.nan, x).flatten(1)[:, :3]

    x = torch.full((4, 3, 2, 2), 0.5)
    x[2:] = 0.2
    anything = Objective(lambda o, y: o.sum(1), lambda o, y: ~(o.sum(1) < 0.61 * o.shape[1]))
    attack = fastadv.pgd(fastadv.Linf(0.1), steps=4, random_start=False, loss=anything)
    with pytest.warns(fastadv.AttackWarning, match="nan_"):
        result = attack.run(Blind(), x, torch.zeros(4))
    assert not result.success.any()
    with pytest.raises(ValueError, match="NaN logits for 2 of 4 clean samples"):
        attack.run(Blind(), torch.cat([x[:2] + 0.2, x[2:]]), torch.zeros(4))


def _far(output, y):
    return (output - y).square().mean(1)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_without_success_the_loss_is_raised_and_nothing_is_claimed(keep):
    p = measured()
    attack = fastadv.pgd(_threat(), steps=STEPS, loss=Objective(_far), keep=keep)
    result = attack.run(p.model, p.x, p.y)
    with torch.no_grad():
        before = _far(p.model(p.x), p.y)
        after = _far(p.model(result.x_adv), p.y)
    assert bool((after > before).all())
    assert not result.success.any() and bool((result.step == -1).all()) and result.score is None


@pytest.mark.parametrize("make", [fastadv.pgd, fastadv.square])
def test_what_stops_at_a_success_needs_to_know_one(make):
    with pytest.raises(
        ValueError,
        match="keep='first_success' needs to know what a success is, "
        r"which fastadv.Objective\(_far\) does not say: give it success=",
    ):
        make(_threat(), loss=Objective(_far))


def test_what_an_objective_refuses():
    p = measured(4)
    attack = ATTACKS["pgd"](p.objective)
    with pytest.raises(TypeError, match=r"y must be a tensor \(B, ...\), by which fastadv.obj"):
        attack.run(p.model, p.x)
    for y in (p.y[:3], torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"y must have a row a sample, \(4, ...\); got \("):
            attack.run(p.model, p.x, y)
    with pytest.raises(ValueError, match="y must be on the device of x, cpu; got meta"):
        attack.run(p.model, p.x, p.y.to("meta"))
    for target in (torch.zeros(4, dtype=torch.long), "random"):
        with pytest.raises(ValueError, match="decides what a success is and takes no target="):
            attack.run(p.model, p.x, p.y, target=target)
    with pytest.raises(ValueError, match=r"segmentation takes \(B, C, H, W\) logits"):
        ATTACKS["pgd"](segmentation()).run(p.model, p.x, torch.zeros_like(p.y).long())
    with pytest.raises(
        ValueError, match=r"the model must return a row a sample, \(4, ...\); got \(\)"
    ):
        ATTACKS["pgd"](regression(tolerance=1)).run(lambda x: x.sum(), p.x, p.y)
    with pytest.raises(ValueError, match="the loss has no gradient: it is detached"):
        ATTACKS["fgsm"](Objective(lambda o, y: o.detach().sum(1), lambda o, y: o[:, 0] > 99)).run(
            p.model, p.x, p.y
        )


def test_calls_on_parts_of_a_data_set_find_what_one_call_finds():
    p = segmented()
    attack, ids = ATTACKS["pgd"](p.objective), torch.arange(len(p.x))
    parts = [
        attack.run(p.model, p.x[rows], p.y[rows], sample_ids=rows) for rows in (ids[:9], ids[9:])
    ]
    assert differing_fields(joined(parts), attack.run(p.model, p.x, p.y)) == []
