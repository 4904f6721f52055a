"""Section A, models tied to the whole batch: where rows are dropped and they fail, it is said."""

import pytest
import torch
from torch import nn
from toy_models import differing_fields

import fastadv

THREAT = fastadv.Linf(0.2)
HINT = (
    r"the model fails on \d+ samples, of a batch of 12: .*keep='last' with batch_size=len\(x\) "
    "passes whole batches; give per-sample inputs as extra="
)


@pytest.fixture
def problem():
    """(a network, x, y): some of the samples fall in a step, others never."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net[3].bias -= torch.tensor([0.0, 0.25, 0.0, 0.0])
        return net, x, net(x).argmax(1)


def tied(net, x):
    """The same answers as net's, with all of a second input added to them."""
    second = torch.zeros(len(x), 4)
    return lambda rows: net(rows) + second


def repeated(net, x):
    """Answers for the whole batch to a single sample, without an error of its own."""
    second = torch.zeros(len(x), 4)
    return lambda rows: net(rows[:1]) + second if len(rows) == 1 else net(rows) + second


def asserting(net, x):
    def model(rows):
        assert len(rows) == len(x), "one hidden state a sample"
        return net(rows)

    return model


def indexing(net, x):
    def model(rows):
        return net(rows)[[*range(len(x))]]

    return model


MODELS = {RuntimeError: tied, AssertionError: asserting, IndexError: indexing}


@pytest.mark.parametrize("error", MODELS)
def test_where_rows_are_dropped_the_error_says_what_helps(problem, error):
    net, x, y = problem
    y = (y + (torch.arange(12) == 3)) % 4  # one is wrong as it is, and not attacked
    attack = fastadv.pgd(THREAT, steps=6)
    with pytest.raises(error, match="(?s)" + HINT) as caught:
        attack.run(MODELS[error](net, x), x, y)
    assert type(caught.value.__cause__) is error  # the model's own words are kept


def test_an_output_of_the_whole_batch_is_explained_too(problem):
    net, x, y = problem
    alone = torch.arange(12) != 0
    y = (y + alone) % 4
    with pytest.raises(ValueError, match=r"here \(1, C\); got \(12, 4\).*" + "extra="):
        fastadv.pgd(THREAT, steps=6).run(repeated(net, x), x, y)


def test_the_last_iterates_need_whole_batches_only(problem):
    net, x, y = problem
    attack = fastadv.pgd(THREAT, steps=6, keep="last")
    expected = attack.run(net, x, y)
    assert 0 < int(expected.success.sum()) < 12
    assert differing_fields(attack.run(tied(net, x), x, y), expected) == []
    assert torch.equal(attack(tied(net, x), x, y), expected.x_adv)


def test_the_last_iterates_of_a_model_that_clamps_need_no_other_batches(problem):
    """What looks at the samples that lost their gradient looks at their whole batch."""
    net, x, y = problem
    x = x.clone()
    x[4:6, 1:] = 0.0
    attack = fastadv.pgd(THREAT, steps=4, keep="last")
    clamping = nn.Sequential(nn.Hardtanh(0, 1), net)
    with pytest.warns(fastadv.AttackWarning, match="clamped_input"):
        expected = attack.run(clamping, x, y)
    with pytest.warns(fastadv.AttackWarning, match="clamped_input"):
        found = attack.run(tied(clamping, x), x, y)
    assert expected.inset > 0
    assert {*differing_fields(found, expected)} <= {"forwards", "backwards"}


def test_ensembles_say_the_same(problem):
    net, x, y = problem
    pair = fastadv.fgsm(THREAT), fastadv.square(THREAT, queries=4)
    ensemble = fastadv.autoattack(THREAT, version="custom", attacks=pair)
    with pytest.raises((RuntimeError, ValueError), match="(?s)" + HINT):
        ensemble.run(tied(net, x), x, y)


def test_an_error_of_whole_batches_is_the_models_own(problem):
    net, x, y = problem

    def failing(rows):
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="^no such layer$"):
        fastadv.pgd(THREAT, steps=2).run(failing, x, y)


def test_errors_that_are_not_about_sizes_are_the_models_own(problem):
    net, x, y = problem

    class NotThereError(RuntimeError):
        pass

    def failing(rows):
        if len(rows) < 12:
            raise NotThereError("gone")
        return net(rows)

    with pytest.raises(NotThereError, match="^gone$"):
        fastadv.pgd(THREAT, steps=6).run(failing, x, y)
