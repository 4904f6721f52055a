"""Objectives where the search runs in half precision: the model itself confirms."""

import pytest
import torch
from judged_problems import PROBLEMS, measured

import fastadv
from fastadv import Execution

BF16 = Execution(precision="bf16", batch_size=5)


def _pgd(loss):
    return fastadv.pgd(fastadv.Linf(0.08), steps=6, restarts=2, loss=loss)


class Shifted(torch.nn.Module):
    """In half precision, and only there, every output is off: the search sees successes that are
    none."""

    def __init__(self, model, by):
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x):
        output = self.model(x)
        return output + self.by if torch.is_autocast_enabled("cpu") else output


@pytest.mark.filterwarnings("error::fastadv.ExecutionWarning")
@pytest.mark.parametrize("task", PROBLEMS)
def test_a_search_in_half_precision_is_confirmed_by_the_model_itself(task):
    p = PROBLEMS[task]()
    attack = _pgd(p.objective)
    result = attack.run(p.model, p.x, p.y, execution=BF16)
    with torch.no_grad():
        success = p.objective.verdict(p.model(result.x_adv), p.y).argmax(1).bool()
    assert torch.equal(result.success, success)
    exact = attack.run(p.model, p.x, p.y)
    assert abs(int(success.sum()) - int(exact.success.sum())) <= 1
    assert int(success.sum()) > int((result.step == 0).sum())


def test_successes_of_half_precision_that_the_model_denies_are_attacked_further():
    p = measured()
    model = Shifted(p.model, -0.15)
    attack = _pgd(p.objective)
    result = attack.run(model, p.x, p.y, execution=BF16)
    assert result.cost.denied > 3
    with torch.no_grad():
        success = p.objective.verdict(p.model(result.x_adv), p.y).argmax(1).bool()
    assert torch.equal(result.success, success)
    assert int(success.sum()) > 5
