"""The speed-run and the MNIST runs: equal to the textbook first, then the clock and the row."""

from dataclasses import replace

import pytest
import torch

from benchmarks.training import mnist, plans
from benchmarks.training.plans import PLANS, parity
from benchmarks.training.timed_run import Run
from fastadv.data import to_unit_interval

SMALL = replace(PLANS["cifar10-cpu"], epochs=2, batch_size=8)


def _images(n: int, channels: int = 3, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), generator=generator)
    return images.to(torch.uint8), torch.arange(n) % 10


@pytest.mark.parametrize("method", ["fast", "nfgsm", "pgd"])
def test_every_plan_is_compared_with_its_textbook(method):
    plan = replace(PLANS["mnist"], method=method, steps=2)
    images, labels = _images(8, 1, 28)
    equality = parity(plan, to_unit_interval(images), labels)
    assert equality.error <= 1e-5 and equality.reference == f"textbook {method} step"


def test_a_step_that_differs_from_the_textbook_has_no_time(monkeypatch):
    right = plans.make_step

    def wrong(plan, *more):
        return right(replace(plan, step=0.5 * plan.step), *more)

    monkeypatch.setattr(plans, "make_step", wrong)
    images, labels = _images(8, 1, 28)
    with pytest.raises(ValueError, match="a wrong result has no time"):
        parity(PLANS["mnist"], to_unit_interval(images), labels)


def test_a_run_gives_averaged_weights_and_two_times():
    run = Run(SMALL, *_images(24), 0, torch.device("cpu"))
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    model, seconds, warm_up = run.train()
    assert run.average is not None and model is run.average.module and not model.training
    assert run.step.batches == run.total == 6 and 0 < warm_up < seconds
    moved = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert len(moved) > 10


def test_the_learning_rate_is_a_triangle_that_ends_at_zero():
    run = Run(replace(SMALL, peak=(0.5, 0.2)), *_images(24), 0, torch.device("cpu"))
    rates = []
    for done in range(run.total):
        run._set_rate(done)
        rates.append(run.optimizer.param_groups[0]["lr"])
    step = 0.2 / 3
    assert rates == pytest.approx(
        [step / 2, 1.5 * step, 2.5 * step, 2.5 * step, 1.5 * step, step / 2]
    )


def test_the_first_flag_is_the_epoch_of_the_first_bad_verdict():
    rows = [
        {"event": "check", "batch": b, "verdict": v}
        for b, v in ((50, "good"), (100, "suspect"), (125, "collapse"), (150, "good"))
    ]
    rows.append({"event": "epoch", "batches": 100})
    assert mnist._first_flag(tuple(rows)) == 1.25
    assert mnist._first_flag(({"event": "epoch", "batches": 100},)) == -1.0


def test_the_runs_differ_in_what_their_names_say():
    (_, plain), (_, fast), (_, clamped) = (
        mnist.recipe_of(run, 3) for run in ("single-step", "fast", "collapse")
    )
    assert plain.seed == 3 and replace(plain, on_collapse="rollback") == fast
    assert replace(fast, clamp_start=True) == clamped != fast
    assert mnist.recipe_of("best", 0)[1].ema == 0.995
