"""D. Steps that an objective judges, and A. that are given extra, recorded and replayed."""

import pytest
import torch
from judged_problems import PROBLEMS
from toy_models import Quadratic, differing_fields, same_bits

import fastadv
from fastadv import Execution

pytestmark = pytest.mark.filterwarnings("error::fastadv.ExecutionWarning")
THREAT = fastadv.Linf(0.08)


def _run(attack, model, x, y, *, graph, **more):
    execution = Execution(batch_size=5, cuda_graph=graph)
    return attack.run(model, x, y, execution=execution, **more)


@pytest.mark.parametrize("task", PROBLEMS)
def test_slots_that_are_filled_anew_are_judged_by_their_own_y(tapes, task):
    p = PROBLEMS[task]()
    for attack in (
        fastadv.pgd(THREAT, steps=6, restarts=2, loss=p.objective),
        fastadv.square(fastadv.Linf(0.12), queries=20, loss=p.objective),
    ):
        eager = _run(attack, p.model, p.x, p.y, graph=False)
        replayed = _run(attack, p.model, p.x, p.y, graph=True)
        assert differing_fields(eager, replayed) == []
        assert eager.score is not None and same_bits(eager.score, replayed.score)
    assert tapes[0].replayed > tapes[0].captured > 0


class Lit(torch.nn.Module):
    """Images under lights that are given beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Quadratic(3 * 5 * 5, 5, seed=1, curvature=3.0)

    def forward(self, x: torch.Tensor, light: torch.Tensor) -> torch.Tensor:
        return self.inner(x * light)


@pytest.mark.parametrize("name", ["pgd", "apgd_ce", "fab_t", "square"])
def test_slots_that_are_filled_anew_are_given_their_own_extra(tapes, name):
    generator = torch.Generator().manual_seed(3)
    x, light = (torch.rand(12, 3, 5, 5, generator=generator) for _ in range(2))
    lit = Lit()
    with torch.no_grad():
        y = lit(x, light).argmax(1)
    budget = dict(queries=20) if name == "square" else dict(steps=5)
    attack = getattr(fastadv, name)(fastadv.Linf(0.05), **budget)
    eager = _run(attack, lit, x, y, graph=False, extra=(light,))
    replayed = _run(attack, lit, x, y, graph=True, extra=(light,))
    assert differing_fields(eager, replayed) == []
    again = _run(attack, lit, x, y, graph=True, extra=(light.flip(0),))
    assert (
        differing_fields(again, _run(attack, lit, x, y, graph=False, extra=(light.flip(0),))) == []
    )
    assert not same_bits(again.x_adv, replayed.x_adv)
    assert any(tape.replayed > 0 for tape in tapes)
