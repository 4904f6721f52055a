"""A. What a model takes beside x goes with its samples: in shadows, ensembles, streams."""

import pytest
import torch
from torch import nn
from toy_models import same_bits

import fastadv

THREAT = fastadv.Linf(0.08)
ATTACKS = {
    "pgd": fastadv.pgd(THREAT, steps=5),
    "square": fastadv.square(THREAT, queries=30),
    "cascade": fastadv.autoattack(
        THREAT,
        version="custom",
        attacks=[fastadv.apgd_ce(THREAT, steps=4), fastadv.square(THREAT, queries=20)],
    ),
}
SHADOWS = (
    dict(precision="bf16"),
    dict(fold_batchnorm=True, channels_last=True),
)


class Masked(nn.Module):
    """Looks at x where a mask of each sample says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x, mask):
        return self.head(self.body(x * mask))


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.rand(20, 3, 6, 6)
    mask = (torch.rand(20, 1, 6, 6) > 0.4).float()
    return model, x, mask, model(x, mask).argmax(1)


@pytest.mark.parametrize("execution", SHADOWS, ids=lambda e: next(iter(e)))
@pytest.mark.parametrize("name", ATTACKS)
def test_a_shadow_is_given_it_too(problem, name, execution):
    model, x, mask, y = problem
    execution = fastadv.Execution(**execution, batch_size=7)
    result = ATTACKS[name].run(model, x, y, extra=(mask,), execution=execution)
    with torch.no_grad():
        fooled = model(result.x_adv, mask).argmax(1) != y
    assert torch.equal(result.success, fooled)
    assert fooled.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_results_are_those_of_each_sample_alone(problem, name):
    model, x, mask, y = problem
    model = model.double()
    x, mask = x.double(), mask.double()
    whole = ATTACKS[name].run(model, x, y, extra=(mask,))
    ids = torch.arange(len(x))
    for k in (0, 7, 19):
        rows = slice(k, k + 1)
        one = ATTACKS[name].run(model, x[rows], y[rows], extra=(mask[rows],), sample_ids=ids[rows])
        assert torch.equal(one.success, whole.success[rows])
        torch.testing.assert_close(one.x_adv, whole.x_adv[rows], rtol=0, atol=1e-9)
    model.float()


def test_a_stream_hands_it_on(problem):
    model, x, mask, y = problem
    stream = ATTACKS["pgd"].streaming(seen=5)
    streamed = stream(model, x[5:15], y[5:15], extra=(mask[5:15],))
    ids = torch.arange(5, 15)
    direct = ATTACKS["pgd"](model, x[5:15], y[5:15], extra=(mask[5:15],), sample_ids=ids)
    assert same_bits(streamed, direct)
    assert stream.seen == 15


def test_a_normalised_model_is_given_it_too(problem):
    model, x, mask, y = problem
    wrapped = fastadv.Normalized(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    labels = wrapped(x, mask).argmax(1)
    result = ATTACKS["pgd"].run(wrapped, x, labels, extra=(mask,))
    assert torch.equal(result.success, wrapped(result.x_adv, mask).argmax(1) != labels)


@pytest.mark.parametrize("run", ["attack", "evaluate", "train"])
def test_what_the_model_does_not_take_is_said(problem, run):
    model, x, mask, y = problem
    plain = nn.Sequential(nn.Flatten(), nn.Linear(108, 4))

    def call(net, extra):
        if run == "attack":
            ATTACKS["pgd"](net, x, y, extra=extra)
        elif run == "evaluate":
            fastadv.evaluate(net, (x, y, *extra), ATTACKS["pgd"], progress=False)
        else:
            fastadv.training.FastAT(THREAT).loss(net.train(), x, y, extra=extra)

    with pytest.raises(TypeError, match=r"given x and 1 more.*leave out what it does not take"):
        call(plain, (mask,))
    with pytest.raises(TypeError, match=r"given x alone.*extra=\(tensor, ...\)"):
        call(model, ())
