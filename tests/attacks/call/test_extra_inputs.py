"""A. `extra=`: what the model takes beside x goes with its samples, wherever these go."""

import pytest
import torch
from toy_models import Quadratic, differing_fields, joined, same_bits, threat_of

import fastadv
from fastadv import Execution

N = 11


class Told(torch.nn.Module):
    """A classifier whose answer depends on a map of gains and on a kind, both given a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Quadratic(3 * 5 * 5, 5, seed=1, curvature=3.0)
        self.bias = torch.nn.Parameter(torch.linspace(-0.1, 0.1, 15).reshape(3, 5))

    def forward(self, x: torch.Tensor, gain: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
        return self.inner(x * gain) + self.bias[kind.long()]


def _problem():
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(N, 3, 5, 5, generator=generator)
    extra = (torch.rand(N, 1, 5, 5, generator=generator) + 0.5, (torch.arange(N) % 3).byte())
    model = Told()
    with torch.no_grad():
        y = model(x, *extra).argmax(1)
    y[::6] = (y[::6] + 1) % 5
    return model, x, y, extra


_LINF, _FAR = threat_of("linf", 0.6), threat_of("linf", 2.2)
ATTACKS = {
    "pgd": fastadv.pgd(_LINF, steps=6, restarts=2),
    "pgd, last": fastadv.pgd(_LINF, steps=4, keep="last"),
    "pgd, best": fastadv.pgd(_LINF, steps=4, keep="best"),
    "pgd, EOT": fastadv.pgd(_LINF, steps=4, eot=2),
    "apgd_ce": fastadv.apgd_ce(_LINF, steps=6),
    "fab_t": fastadv.fab_t(_LINF, steps=4, n_target_classes=2),
    "fab": fastadv.fab(_LINF, steps=3),
    "square": fastadv.square(_FAR, queries=16),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_extra_goes_with_its_samples(name):
    """Slots are filled anew, rows dropped, batches cut: each finds what it finds alone."""
    model, x, y, extra = _problem()
    attack = ATTACKS[name]
    if name == "pgd, last":
        alone = attack.run(model, x, y, extra=extra)
    else:
        parts = (slice(k, k + 1) for k in range(N))
        alone = joined(
            [
                attack.run(
                    model,
                    x[k],
                    y[k],
                    sample_ids=torch.arange(N)[k],
                    extra=tuple(rows[k] for rows in extra),
                )
                for k in parts
            ]
        )
    with torch.no_grad():
        prediction = model(alone.x_adv, *extra).argmax(1)
    assert torch.equal(alone.success, prediction != y)
    assert 2 < int(alone.success.sum()) < N
    for batching in ("continuous", "plain"):
        execution = Execution(batch_size=4, batching=batching)
        given = tuple(rows.clone() for rows in extra)
        got = attack.run(model, x, y, extra=extra, execution=execution)
        assert differing_fields(got, alone) == [], batching
        assert all(same_bits(one, other) for one, other in zip(given, extra, strict=True))
    assert same_bits(attack(model, x, y, extra=extra), alone.x_adv)


def test_the_rows_of_extra_are_another_sample_s_elsewhere():
    """Or the test above could not fail: with extra's rows in another order all is different."""
    model, x, y, extra = _problem()
    attack = ATTACKS["pgd"]
    turned = tuple(rows.roll(1, 0) for rows in extra)
    one, other = attack.run(model, x, y, extra=extra), attack.run(model, x, y, extra=turned)
    assert not same_bits(one.x_adv, other.x_adv)


def test_extra_is_what_a_closure_over_the_whole_batch_would_give():
    model, x, y, extra = _problem()
    attack = ATTACKS["pgd, last"]
    closed_over = attack(lambda x: model(x, *extra), x, y)
    assert same_bits(attack(model, x, y, extra=extra), closed_over)


def test_models_that_take_labels_and_objectives_alike():
    model, x, _, extra = _problem()
    with torch.no_grad():
        wanted = model(x, *extra).softmax(1)
    attack = fastadv.pgd(_LINF, steps=6, loss=fastadv.objectives.soft())
    result = attack.run(model, x, wanted, extra=extra)
    again = attack.run(model, x, wanted, extra=extra, execution=Execution(batch_size=3))
    assert differing_fields(again, result) == [] and result.success.any()


def test_mistakes_in_extra_are_named():
    model, x, y, extra = _problem()
    attack = ATTACKS["pgd"]
    for given, error, text in (
        (extra[0], TypeError, r"extra must be a tuple of tensors.*extra=\(tensor,\); got Tensor"),
        ({"gain": extra[0]}, TypeError, "extra must be a tuple of tensors.*got dict"),
        ((extra[0], 3), TypeError, r"extra\[1\] must be a tensor; got int"),
        ((extra[0], extra[1][:4]), ValueError, r"extra\[1\] must have a row a sample, \(11, ...\)"),
        ((torch.tensor(1.0),), ValueError, r"extra\[0\] must have a row a sample.*got \(\)"),
        ((extra[0].to("meta"),), ValueError, r"extra\[0\] must be on the device of x, cpu; got me"),
    ):
        with pytest.raises(error, match=text):
            attack.run(model, x, y, extra=given)


@pytest.mark.filterwarnings("error::fastadv.ExecutionWarning")
@pytest.mark.parametrize("how", [dict(precision="bf16"), dict(channels_last=True)], ids=str)
def test_a_faster_copy_is_given_extra_too_and_confirmed_with_it(how):
    model, x, y, extra = _problem()
    attack = ATTACKS["pgd"]
    exact = attack.run(model, x, y, extra=extra)
    result = attack.run(model, x, y, extra=extra, execution=Execution(batch_size=4, **how))
    with torch.no_grad():
        prediction = model(result.x_adv, *extra).argmax(1)
    assert torch.equal(result.success, prediction != y)
    assert abs(int(result.success.sum()) - int(exact.success.sum())) <= 1


def test_extra_that_requires_a_gradient_gets_none():
    model, x, y, extra = _problem()
    gain = extra[0].requires_grad_()
    ATTACKS["pgd"].run(model, x, y, extra=(gain, extra[1]))
    assert gain.grad is None and gain.requires_grad
