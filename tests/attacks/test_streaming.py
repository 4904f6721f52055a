"""`streaming()`: samples are counted, so that neither batches nor passes decide the noise."""

import pytest
import torch
from members import member, one_of_each_kind
from torch.utils.data import DataLoader, TensorDataset
from toy_models import FailingAt, differing_fields, joined, mixed_problem, same_bits, threat_of

import fastadv
from fastadv.attacks.attack import norms_of


def _fit(name, threat):
    """`threat`, or one of a norm that the attack has."""
    norms = norms_of(name)
    return threat if threat.norm in norms else threat_of(norms[0])


CONSTRUCTORS = {
    "pgd": lambda threat: fastadv.pgd(threat, steps=4, restarts=2, seed=3),
    "last": lambda threat: fastadv.pgd(threat, steps=3, keep="last"),
    **{
        name: lambda threat, name=name: member(name, threat.norm, threat=_fit(name, threat))
        for name in one_of_each_kind()
    },
    "autoattack": lambda threat: fastadv.autoattack(
        threat,
        "custom",
        attacks=[fastadv.apgd_ce(threat, steps=5), fastadv.square(threat, queries=10)],
    ),
}
N = 40


def problem():
    return mixed_problem(N)


def loader(p, batch_size):
    return DataLoader(TensorDataset(p.x, p.y), batch_size=batch_size)


def test_a_data_set_gives_the_same_bits_however_it_is_cut():
    p, attack = problem(), fastadv.pgd(threat_of("linf"), steps=4)
    whole = attack.run(p.model, p.x, p.y, sample_ids=torch.arange(N))
    for batch_size in (7, 32):
        stream = attack.streaming()
        results = [stream.run(p.model, x, y) for x, y in loader(p, batch_size)]
        assert differing_fields(joined(results), whole) == []
        assert stream.seen == N


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_attack_counts(name):
    p, attack = problem(), CONSTRUCTORS[name](threat_of("linf"))
    whole = attack(p.model, p.x, p.y, sample_ids=torch.arange(N))
    stream = attack.streaming()
    found = [stream(p.model, x, y) for x, y in loader(p, 13)]
    assert same_bits(torch.cat(found), whole)


def test_without_it_batches_decide_and_passes_repeat():
    """What the count is for."""
    p = problem()
    attack = fastadv.pgd(threat_of("linf"), steps=1, step_size=0.0, keep="last")
    in_batches = torch.cat([attack(p.model, x, y) for x, y in loader(p, 13)])
    assert not same_bits(in_batches, attack(p.model, p.x, p.y))
    assert same_bits(attack(p.model, p.x, p.y), attack(p.model, p.x, p.y))


def test_a_second_pass_draws_other_noise():
    noise = fastadv.pgd(threat_of("linf"), steps=1, step_size=0.0, keep="last")  # ends at its start
    p, stream = problem(), noise.streaming()
    first, second = (torch.cat([stream(p.model, *b) for b in loader(p, 7)]) for _ in range(2))
    assert stream.seen == 2 * N
    assert bool((first != second).flatten(1).any(1).all())
    stream.seen = 0
    assert same_bits(torch.cat([stream(p.model, *b) for b in loader(p, 7)]), first)


def test_a_resumed_loop_goes_on():
    p, attack = problem(), fastadv.pgd(threat_of("linf"), steps=2)
    stream = attack.streaming()
    stream(p.model, p.x[:30], p.y[:30])
    resumed = attack.streaming(seen=stream.seen)
    rest = (p.model, p.x[30:], p.y[30:])
    assert same_bits(resumed(*rest), stream(*rest))
    assert resumed.seen == stream.seen == N


def test_a_call_that_raised_has_not_counted():
    p, stream = problem(), fastadv.pgd(threat_of("linf"), steps=2).streaming(seen=5)
    with pytest.raises(ValueError, match="x must lie in bounds"):
        stream(p.model, p.x + 2, p.y)
    with pytest.raises(TypeError, match="x must be a torch.Tensor"):
        stream.run(p.model, p.x.tolist(), p.y)
    with pytest.raises(RuntimeError):
        stream.run(FailingAt(p.model, 2, RuntimeError("of the model")), p.x, p.y)
    assert stream.seen == 5
    assert stream(p.model, p.x[:0], p.y[:0]).shape == p.x[:0].shape and stream.seen == 5


def test_other_arguments_reach_the_attack():
    p, attack = problem(), fastadv.pgd(threat_of("linf"), steps=2)
    how = dict(target="random", x_init=p.x, execution=fastadv.Execution(batch_size=3))
    expected = attack.run(p.model, p.x, p.y, sample_ids=torch.arange(9, 9 + N), **how)
    assert differing_fields(attack.streaming(seen=9).run(p.model, p.x, p.y, **how), expected) == []


def test_ids_of_the_users_own_are_refused():
    p, stream = problem(), fastadv.pgd(threat_of("linf"), steps=2).streaming()
    with pytest.raises(ValueError, match="counts samples itself and takes no sample_ids"):
        stream(p.model, p.x, p.y, sample_ids=torch.arange(N))
    with pytest.raises(TypeError, match=r"the attack that it was made of, fastadv\.pgd"):
        fastadv.evaluate(p.model, (p.x, p.y), stream)
    assert stream.seen == 0


@pytest.mark.parametrize("seen", [-1, 1.0, True, None, 2**63])
def test_a_count_that_is_none_is_refused(seen):
    stream = fastadv.fgsm(fastadv.Linf(0.1)).streaming()
    with pytest.raises(ValueError, match="seen must be an integer of at least 0"):
        stream.seen = seen
    with pytest.raises(ValueError, match="seen must be an integer of at least 0"):
        fastadv.fgsm(fastadv.Linf(0.1)).streaming(seen=seen)


def test_ids_end_where_int64_does():
    p, stream = problem(), fastadv.fgsm(threat_of("linf")).streaming(seen=2**63 - 1)
    with pytest.raises(ValueError, match="have no id below 2..63"):
        stream(p.model, p.x, p.y)
    assert stream.seen == 2**63 - 1


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_repr_can_be_pasted_back(name):
    stream = CONSTRUCTORS[name](fastadv.Linf(0.1)).streaming()
    for seen in (0, 7):
        stream.seen = seen
        again = eval(repr(stream))
        assert (repr(again), again.seen, again.attack) == (repr(stream), seen, stream.attack)
