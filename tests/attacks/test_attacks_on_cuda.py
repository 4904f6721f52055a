"""Attacks on a GPU: recorded steps give the bits of eager ones, or are given up, and say so."""

import warnings
from dataclasses import replace

import pytest
import torch
from cuda_attacks import BATCHING, PGD, WISHES, captures, cuda, graphs_of, on, run, total_captures
from members import MEMBERS, custom_ensemble, member, member_problem
from torch import nn
from toy_models import NORMS, RESULT_TENSORS, differing_fields, mixed_problem, threat_of

import fastadv
from fastadv.attacks.call import preparation
from fastadv.diagnostics import ExecutionWarning
from fastadv.ops import backend

__all__ = ["cuda"]  # a fixture


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", PGD)
def test_the_pgd_family_gives_the_same_bits(cuda, name, norm, batching):
    problem = on(cuda, mixed_problem(40))
    attack = PGD[name](threat_of(norm))
    for size in (16, 7):  # 40 samples: the last batch is an odd one
        how = dict(batching=batching, batch_size=size)
        eager = run(attack, problem, graph=False, **how)
        for wish in WISHES:
            for _ in range(2):
                assert differing_fields(eager, run(attack, problem, graph=wish, **how)) == []
    graphs_of(problem.model)


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_the_attacks_of_autoattack_give_the_same_bits(cuda, name, norm, batching):
    problem = on(cuda, member_problem(24))
    attack = member(name, norm)
    how = dict(batching=batching, batch_size=9)
    eager = run(attack, problem, graph=False, **how)
    for wish in WISHES:
        for _ in range(2):
            assert differing_fields(eager, run(attack, problem, graph=wish, **how)) == []
    # the few steps of a small budget are warm-up and capture as much as replay
    for one in (kept.graphs for kept in preparation._KEPT[problem.model].values()):
        assert one is not None and one.refusal is None and one.captures > 0 and one.replays > 0


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("norm", NORMS)
def test_an_ensemble_gives_the_same_bits(cuda, norm, wish):
    problem = on(cuda, member_problem(24))
    attack = custom_ensemble(norm)
    eager = run(attack, problem, graph=False, batch_size=9)
    for _ in range(2):
        replayed = run(attack, problem, graph=wish, batch_size=9)
        assert differing_fields(eager, replayed) == []
        assert torch.equal(eager.broken_by, replayed.broken_by)
    assert captures(problem.model) > 0


@pytest.mark.parametrize("batching", BATCHING)
@pytest.mark.parametrize("name", ["pgd", *MEMBERS])
def test_a_warmed_attack_records_nothing_new(cuda, name, batching):
    problem = on(cuda, member_problem(24))
    attack = PGD["pgd"](threat_of("linf")) if name == "pgd" else member(name, "linf")
    counts = []
    for _ in range(5):
        run(attack, problem, batching=batching, batch_size=9)
        counts.append(total_captures(problem.model))
    assert counts[-1] == counts[-2] > 0


def test_weights_changed_in_place_are_seen(cuda):
    problem = on(cuda, mixed_problem(40))
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    before = run(attack, problem, batch_size=8)
    recorded = captures(problem.model)
    with torch.no_grad():
        for p in problem.model.parameters():
            p.mul_(-0.7)
    eager = run(attack, problem, graph=False, batch_size=8)
    replayed = run(attack, problem, batch_size=8)
    assert differing_fields(eager, replayed) == []
    assert differing_fields(before, replayed) != []
    assert captures(problem.model) == recorded


class Asking(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x) * (2.0 if x.mean().item() > -1 else 1.0)


class Waiting(nn.Module):
    """What only CUDA itself sees: it ends the recording in an error."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        logits = self.model(x)
        torch.cuda.synchronize()
        return logits


@pytest.mark.parametrize(("kind", "said"), [(Asking, r".*item\(\)"), (Waiting, ".*")])
def test_a_model_that_synchronises_is_attacked_eagerly_and_told_once(cuda, kind, said):
    problem = on(cuda, mixed_problem(40))
    model = kind(problem.model)
    attack = fastadv.pgd(threat_of("linf"), steps=8)
    eager = run(attack, problem, model, graph=False, batch_size=8)
    with pytest.warns(ExecutionWarning, match=f"not captured, because {said}") as caught:
        got = run(attack, problem, model, batch_size=8)
    assert len(caught) == 1
    assert differing_fields(eager, got) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differing_fields(eager, run(attack, problem, model, batch_size=8)) == []
    with pytest.raises(RuntimeError, match="not captured, because"):
        run(attack, problem, model, graph=True, batch_size=8)
    # another model is recorded as ever
    run(attack, problem, batch_size=8)
    assert captures(problem.model) > 0


class Noisy(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x + 0.01 * torch.randn_like(x))


@pytest.mark.filterwarnings("ignore:unconfirmed")  # of a model that answers by chance
def test_the_default_generators_are_as_before_and_noise_is_drawn_anew(cuda):
    problem = on(cuda, mixed_problem(40))
    model = Noisy(problem.model)
    states = torch.get_rng_state(), torch.cuda.get_rng_state()
    threat = threat_of("linf")
    for attack in (PGD["pgd"](threat), PGD["eot"](threat), member("square", "linf")):
        run(attack, problem, batch_size=9)
        runs = [run(attack, problem, model, batch_size=9) for _ in range(4)]
        assert (
            differing_fields(runs[2], runs[3]) == []
        )  # seeded at every call, whatever is replayed
        now = torch.get_rng_state(), torch.cuda.get_rng_state()
        assert all(torch.equal(a, b) for a, b in zip(states, now, strict=True))
    assert captures(model) > 0


@pytest.mark.parametrize("chosen", ["reference", "triton"])
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_a_gpu_gives_what_a_cpu_gives(cuda, chosen, loss):
    """Elementwise operations round alike. exp and log of the cross-entropy differ by a few ulp,
    which may turn the sign of a gradient next to zero: in one sample of 40 at most."""
    attack = fastadv.pgd(threat_of("linf"), steps=8, restarts=2, loss=loss)
    with backend.use_backend("reference"):
        expected = run(attack, mixed_problem(40), graph=False)
    problem = on(cuda, mixed_problem(40))
    for graph in (False, "auto", "auto"):
        with backend.use_backend(chosen):
            result = run(attack, problem, graph=graph)
        fields = {name: getattr(result, name).cpu() for name in RESULT_TENSORS}
        result = replace(result, **fields)
        if loss == "margin":
            assert differing_fields(expected, result) == []
            continue
        for name in ("success", "step", "prediction", "clean_prediction"):
            assert torch.equal(getattr(expected, name), fields[name])
        same = (expected.x_adv == result.x_adv).flatten(1).all(1)
        assert int(same.sum()) >= 39
        torch.testing.assert_close(expected.loss[same], result.loss[same], rtol=1e-6, atol=1e-6)
