"""Contract C3: models wrong in one batch, precision or pass only, or that say NaN, do not fall."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy_models import Recording

import fastadv

STEPS = 6
_WAYS = [
    fastadv.Execution(),
    fastadv.Execution(batching="plain"),
    fastadv.Execution(batch_size=7),
    fastadv.Execution(batching="plain", batch_size=7),
]


class _RightInFullBatches(nn.Module):
    """Right on batches of `size`, wrong on all others: only a shrunken batch fools it."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        right = x.flatten(1).mean(1) * 1e-3 + self.shift
        sign = 1.0 if len(x) == self.size else -1.0
        return torch.stack([sign * (1 + right), torch.zeros_like(right)], 1)


@pytest.mark.filterwarnings("ignore:unconfirmed")
@pytest.mark.parametrize("execution", _WAYS[:2], ids=["continuous", "plain"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_model_wrong_in_other_batch_sizes_only_is_not_fooled(execution, restarts):
    x = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(8, dtype=torch.long)
    # two clean-wrong samples make the batch that is attacked smaller than the batch of the call
    y[:2] = 1
    model = _RightInFullBatches(8)
    result = fastadv.pgd(fastadv.Linf(0.1), steps=3, restarts=restarts).run(
        model, x, y, execution=execution
    )
    assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)
    assert result.success.tolist() == [True] * 2 + [False] * 6
    assert result.step.tolist() == [0] * 2 + [-1] * 6


@pytest.mark.filterwarnings("ignore:unconfirmed")
def test_a_model_wrong_alone_only_is_not_fooled():
    class WrongAlone(_RightInFullBatches):
        def forward(self, x):
            self.size = len(x) if len(x) > 1 else 0
            return super().forward(x)

    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([1, 0])  # the first is clean-wrong, so the second is attacked alone
    model = WrongAlone(2)
    spy = Recording(model, len)
    result = fastadv.pgd(fastadv.Linf(0.1), steps=3).run(spy, x, y)
    assert 1 in spy.seen
    assert result.success.tolist() == [True, False]
    assert torch.equal(result.success, model(result.x_adv).argmax(1) != y)


class _TieInHalfPrecision(nn.Module):
    """Class 1 leads class 0 by 0.001 of 1: a tie, hence class 0, once rounded to bf16."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [1.001, 0.0]]))
        self.autocast = []

    def forward(self, x):
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return F.linear(x, self.weight)


@pytest.mark.parametrize("execution", _WAYS, ids=str)
def test_a_model_wrong_under_autocast_only_is_not_fooled(execution):
    model = _TieInHalfPrecision()
    x = torch.ones(9, 2)
    y = torch.ones(9, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).argmax(1) != y).all()  # the plant works
        model.autocast.clear()
        result = fastadv.pgd(fastadv.Linf(0.01), steps=2).run(model, x, y, execution=execution)
        assert torch.is_autocast_enabled("cpu")
    assert not any(model.autocast)
    assert result.clean_prediction.tolist() == [1] * 9
    assert not result.success.any()
    assert (model(result.x_adv).argmax(1) == y).all()


class _WrongOnce(nn.Module):
    """Wrong at one call only: an iterate that no later evaluation reproduces."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.calls = 0
        self.fooled = False

    def forward(self, x):
        sign = -1.0 if self.calls == self.call else 1.0
        self.fooled |= sign < 0
        self.calls += 1
        rows = x.flatten(1).mean(1)
        return torch.stack([sign * (1 + rows), torch.zeros_like(rows)], 1)


@pytest.mark.filterwarnings("ignore:unconfirmed")
@pytest.mark.parametrize("execution", _WAYS, ids=str)
@pytest.mark.parametrize("call", [2, 3, 4])
def test_an_iterate_that_no_later_evaluation_reproduces_is_no_success(execution, call):
    model = _WrongOnce(call)
    x = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(9, dtype=torch.long)
    result = fastadv.pgd(fastadv.Linf(0.1), steps=8, restarts=2).run(
        model, x, y, execution=execution
    )
    assert model.fooled
    assert not result.success.any()
    assert (result.step == -1).all()


class _NaNAbove(nn.Module):
    """Class 1, but NaN, whose argmax is class 0, where the first element exceeds a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        rows = x.flatten(1)
        up = rows[:, 0]
        logits = torch.stack([up, 2 + 0 * up, -up], 1)
        return torch.where(up[:, None] > self.threshold, float("nan"), logits)


@pytest.mark.parametrize("keep", ["first_success", "best", "last"])
def test_nan_logits_are_warned_of_and_no_success(keep):
    x = torch.full((6, 4), 0.5)
    x[3:] = 0.1
    y = torch.ones(6, dtype=torch.long)
    attack = fastadv.pgd(fastadv.Linf(0.2), steps=5, step_size=0.05, random_start=False, keep=keep)
    with pytest.warns(fastadv.AttackWarning, match="NaN logits") as caught:
        result = attack.run(_NaNAbove(0.6), x, y)
    assert {w.message.code: w.message.count for w in caught}["nan_logits"] == 3
    assert not result.success.any()
    assert (result.step == -1).all()


def test_nan_logits_of_the_last_iterate_are_no_success_and_warned_of():
    # the threshold is crossed by the last step, which only the verification evaluates
    x = torch.full((6, 4), 0.5)
    y = torch.ones(6, dtype=torch.long)
    attack = fastadv.pgd(fastadv.Linf(0.2), steps=3, step_size=0.04, random_start=False)
    with pytest.warns(fastadv.AttackWarning, match="NaN logits"):
        result = attack.run(_NaNAbove(0.6), x, y)
    assert not result.success.any()


def test_with_nan_logits_everywhere_the_best_iterate_is_still_in_the_ball():
    x = torch.full((2, 4), 0.5)
    y = torch.zeros(2, dtype=torch.long)

    class NaNAfterTheCleanPass(nn.Module):
        def forward(self, z):
            rows = z.sum(1)
            logits = torch.stack([1 + rows, -rows], 1)
            return logits if torch.equal(z, x) else logits * float("nan")

    attack = fastadv.pgd(fastadv.Linf(0.1), steps=3, keep="best", random_start=False)
    with pytest.warns(fastadv.AttackWarning, match="nan_"):
        result = attack.run(NaNAfterTheCleanPass(), x, y, x_init=torch.full((2, 4), 1.7))
    assert not result.success.any()
    assert (result.x_adv <= 0.6 + 1e-6).all()
