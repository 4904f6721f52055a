"""On a CPU a pass takes as many rows as are fast, by what the model makes of them."""

import pytest
import torch
from toy_models import Recording, differing_fields, mixed_problem

import fastadv
from fastadv.oracle import pass_size

SHAPE = (3, 8, 8)
N = 100
ROWS = 24  # of those that fit into 3 MiB at 128 KiB each


class Wide(torch.nn.Module):
    """Makes 128 KiB of a row on its way to the logits of `model`, in parts that follow `split`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.weight = torch.nn.Parameter(torch.zeros(N, 2**15))  # no activation, but transposed

    def forward(self, x):
        wide = x.flatten(1)[:, :1] * torch.ones(2**15)
        return self.model(x) + 0 * (wide @ self.weight.t()[:, :1])


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(pass_size, "_FEW", 8)
    return mixed_problem(N, shape=SHAPE)


def _attack(keep):
    return fastadv.pgd(fastadv.Linf(0.1), steps=4, keep=keep)


@pytest.mark.parametrize(
    ("row_bytes", "rows"),
    [(4096, 768), (12_544, 248), (50_176, 56), (2**18, 32), (3_211_264, 8), (2**30, 8)],
)
def test_the_largest_activation_takes_3_mib_or_32_rows_are_made_or_8(row_bytes, rows):
    assert pass_size.fast_rows(row_bytes) == rows


def test_the_look_sees_what_is_made_of_rows_not_views_of_weights(problem):
    x = problem.x[:10]
    output, rows = pass_size.looked_at(Wide(problem.model), x, ())
    assert torch.equal(output, Wide(problem.model)(x))
    assert rows == ROWS


@pytest.mark.parametrize("keep", ["last", "first_success", "best"])
@pytest.mark.parametrize("batching", ["continuous", "plain"])
def test_passes_take_what_is_fast_and_change_no_bit(problem, keep, batching):
    model = Recording(Wide(problem.model), len)
    way = dict(batching=batching)
    whole = _attack(keep).run(
        model, problem.x, problem.y, execution=fastadv.Execution(batch_size=N, **way)
    )
    assert max(model.seen) == N
    model.seen.clear()
    got = _attack(keep).run(model, problem.x, problem.y, execution=fastadv.Execution(**way))
    assert differing_fields(got, whole) == []
    assert model.seen[0] == N  # which nothing is known of yet
    assert max(model.seen[1:]) <= ROWS
    assert min(model.seen[1:6]) >= 20, "parts are as equal as can be"


def test_an_ensemble_takes_what_is_fast_and_says_so(problem):
    attack = fastadv.autoattack(
        fastadv.Linf(0.1),
        version="custom",
        attacks=[
            fastadv.apgd_ce(fastadv.Linf(0.1), steps=4),
            fastadv.square(fastadv.Linf(0.1), queries=20),
        ],
    )
    model = Recording(Wide(problem.model), len)
    got = attack.run(model, problem.x, problem.y)
    assert got.execution.batch_size == ROWS
    given = attack.run(model, problem.x, problem.y, execution=fastadv.Execution(batch_size=64))
    assert given.execution.batch_size == 64
    assert differing_fields(got, given) == []


def test_an_evaluation_lets_the_attack_find_out_unless_it_is_told(problem):
    model = Recording(Wide(problem.model), len)
    data = (problem.x, problem.y)
    found = fastadv.evaluate(model, data, _attack("first_success"), progress=False)
    assert max(model.seen[2:]) <= ROWS
    model.seen.clear()
    told = fastadv.evaluate(model, data, _attack("first_success"), batch_size=50, progress=False)
    assert max(model.seen[2:]) > ROWS
    assert torch.equal(found.success, told.success)


def test_one_pass_over_all_samples_is_not_looked_at(problem, monkeypatch):
    monkeypatch.setattr(pass_size, "looked_at", None)
    fastadv.fgsm(fastadv.Linf(0.1), keep="last")(Wide(problem.model), problem.x, problem.y)


def test_what_is_compiled_is_passed_whole_and_still_compiled_once_looked_at(problem):
    calls = []

    def backend(graph, inputs):
        return lambda *args: calls.append(len(args)) or graph(*args)

    torch.compiler.reset()  # of a function that is recompiled too often nothing is compiled
    compiled = torch.compile(torch.nn.Flatten(), backend=backend)
    assert not pass_size.may_split(compiled, problem.x)
    with torch.no_grad():
        pass_size.looked_at(compiled, problem.x, ())
        assert not calls
        compiled(problem.x)
    assert calls
    torch.compiler.reset()


def test_the_look_does_not_import_the_compiler():
    # torch wraps what a mode does in torch._disable_dynamo, which imports it: a second
    assert not hasattr(pass_size._Largest.__torch_dispatch__, "__wrapped__")
