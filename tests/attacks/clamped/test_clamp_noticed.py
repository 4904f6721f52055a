"""When a clamp is noticed: once a run, whatever its batches, and never where there is none."""

import sys
from pathlib import Path

import pytest
import torch
from clamped_runs import ATTACKS, EPS, assert_alike, digits, run
from clamping_models import Behind, Cropped, clamping, trained
from toy_models import Counting, differing_fields, rows_of, same_bits

import fastadv
from benchmarks.clamping.rules import clamp_rule
from fastadv.diagnostics import AttackWarning
from fastadv.evaluation import evaluate
from fastadv.oracle import clamping as vocabulary


@pytest.mark.parametrize("batching", ["continuous", "plain"])
@pytest.mark.parametrize("keep", ["first_success", "last"])
def test_entries_that_come_to_a_bound_later_are_noticed_too(keep, batching, looks):
    x, y = digits()
    x = 0.1 + 0.8 * x  # steps of 0.03 from there: none is at a bound before the fourth
    model, _ = clamping("hardtanh", trained())
    attack = fastadv.bim(EPS, steps=12, step_size=0.03, keep=keep)
    how = fastadv.Execution(batching=batching, batch_size=30)
    bare, _ = run(attack, trained(), x, y, execution=how)
    result, codes = run(attack, model, x, y, execution=how)
    assert_alike(result, codes, bare, True)


def _nothing_at_a_bound(x):
    return 0.25 + 0.5 * x


class _Blind(torch.nn.Module):
    """First-layer weights that are zero on some pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(64, 32)
        with torch.no_grad():
            self.first.weight[:, ::3] = 0
            self.first.weight[:, :10] = 0
        self.last = torch.nn.Linear(32, 10)

    def forward(self, x):
        return self.last(torch.relu(self.first(x.flatten(1))))


PLAIN = {
    "a ReLU network": (lambda: trained(), lambda x: x),
    "a cropped border": (lambda: Cropped(trained()), lambda x: x),
    "pixels without a weight": (_Blind, lambda x: x),
    "no pixel at a bound": (lambda: clamping("hardtanh", trained())[0], _nothing_at_a_bound),
    "normalised": (lambda: fastadv.Normalized(trained(), (0.1,), (0.9,)), lambda x: x),
}


@pytest.mark.parametrize(
    ("rule", "name"),
    [("new", name) for name in PLAIN] + [("old", "no pixel at a bound"), ("old", "a ReLU network")],
)
def test_there_is_no_false_alarm_and_no_second_look(rule, name, looks):
    make, seen = PLAIN[name]
    x, y = digits(24)
    x = seen(x)
    for attack in ("fgsm", "pgd, last", "pgd, l2", "apgd_ce", "fab_t"):
        for n, size in ((24, None), (3, 1)):
            how = fastadv.Execution(batch_size=size)
            with clamp_rule(rule):
                codes = run(ATTACKS[attack], make(), x[:n], y[:n], execution=how)[1]
            assert "clamped_input" not in codes and looks == [], attack


def test_third_party_networks_are_not_looked_at_twice(looks):
    models = Path(__file__).resolve().parents[4] / "shared" / "models"
    if not models.exists():
        pytest.skip("needs the third-party networks beside the repository")
    sys.path.insert(0, str(models))
    from load_models import load, names

    for name in names():
        model, x, y = load(name, n=12)
        for eps in (0.01, 0.1):
            for attack in (
                fastadv.fgsm(fastadv.Linf(eps)),
                fastadv.apgd_ce(fastadv.L2(eps), steps=4),
            ):
                for n, size in ((12, None), (3, 1)):
                    how = fastadv.Execution(batch_size=size)
                    assert run(attack, model, x[:n], y[:n], execution=how)[0].inset == 0.0
    assert looks == []


def test_a_gradient_that_truly_vanishes_at_the_bound_is_no_clamp(looks):
    """Of x^2 at 0: a second look, and what it finds is too faint to be what a clamp hides."""
    x, y = digits()
    result, codes = run(ATTACKS["pgd"], Behind(lambda x: x * x, trained()), x, y)
    assert codes == [] and result.inset == 0.0
    assert looks in ([], [0.0])


def test_the_plain_case_makes_no_further_pass(clamp_rule_in_force):
    x, y = digits(40)
    for attack in (ATTACKS["fgsm"], ATTACKS["pgd, last"]):
        model = Counting(trained())
        result, _ = run(attack, model, x, y)
        backwards = 40 * attack.steps if attack.keep == "last" else result.backwards
        assert model.backwards == backwards == result.backwards
        assert model.forwards == result.forwards


def test_the_result_does_not_depend_on_batches():
    x, y = digits(20)
    model, _ = clamping("hardtanh", trained().double())
    try:
        attack = ATTACKS["pgd"]
        whole, _ = run(attack, model, x.double(), y)
        for how in (dict(batch_size=7), dict(batch_size=7, batching="plain"), dict(batch_size=1)):
            part, codes = run(attack, model, x.double(), y, execution=fastadv.Execution(**how))
            assert codes == ["clamped_input"] and part.inset == whole.inset
            assert differing_fields(rows_of(whole, torch.arange(20)), part) in ([], ["loss"])
    finally:
        trained().float()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd, last"])
def test_samples_without_a_pixel_at_a_bound_do_not_speak_for_the_others(name):
    x, y = digits(64)
    x = torch.cat([0.14 + 0.7 * x[:32], x[32:]])
    model, _ = clamping("hardtanh", trained())
    bare, _ = run(ATTACKS[name], trained(), x, y)
    for how in (dict(), dict(batch_size=16), dict(batch_size=16, batching="plain")):
        result, codes = run(ATTACKS[name], model, x, y, execution=fastadv.Execution(**how))
        assert_alike(result, codes, bare, True)


def test_a_clamp_of_one_bound_is_found_when_its_samples_come():
    x, y = digits(64)
    x = torch.cat([0.2 + 0.8 * x[:16], x[16:]])  # white pixels, but no black ones
    model = Behind(torch.relu, trained())
    bare, _ = run(ATTACKS["bim"], trained(), x, y)
    for size in (None, 8):
        how = fastadv.Execution(batch_size=size)
        result, codes = run(ATTACKS["bim"], model, x, y, execution=how)
        assert_alike(result, codes, bare, True)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd, last"])
def test_memory_that_runs_out_in_the_second_look_hides_no_clamp(name):
    class Narrow(torch.nn.Module):
        """Room for eight rows with a graph."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            if torch.is_grad_enabled() and x.requires_grad and len(x) > 8:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return self.model(x)

    x, y = digits(60)
    bare, _ = run(ATTACKS[name], trained(), x, y)
    result, codes = run(ATTACKS[name], Narrow(clamping("hardtanh", trained())[0]), x, y)
    assert_alike(result, codes, bare, True)


def test_a_curve_counts_each_sample_once():
    x, y = digits(40)
    model, _ = clamping("hardtanh", trained())
    with pytest.warns(AttackWarning, match="clamped_input: 40 of 40 samples") as caught:
        curve = fastadv.robustness_curve(
            model, (x, y), ATTACKS["pgd"], eps=[0.05, 0.12], batch_size=5, progress=False
        )
    assert curve.warnings == {"clamped_input": 40} and len(caught) == 1


def test_an_evaluation_keeps_the_decision_with_its_checkpoint(tmp_path, looks):
    x, y = digits(40)
    model, _ = clamping("hardtanh", trained())
    attack, how = ATTACKS["autoattack"], dict(batch_size=5, progress=False)
    with pytest.warns(AttackWarning, match="clamped_input: 40 of 40 samples"):
        whole = evaluate(model, (x, y), attack, **how)
    assert looks == [whole_inset := looks[0]] and whole_inset > 0 and len(looks) == 1
    assert whole.warnings["clamped_input"] == 40
    looks.clear()

    class Interrupted(Exception):
        pass

    blocks = []

    def stop(status):
        blocks.append(status)
        if status.done >= 15:
            raise Interrupted

    path = tmp_path / "run.pt"
    with pytest.raises(Interrupted):
        evaluate(model, (x, y), attack, checkpoint=path, batch_size=5, progress=stop)
    assert len(looks) == 1 and torch.load(path, weights_only=True)["inset"] == whole_inset
    with pytest.warns(AttackWarning, match="clamped_input"):
        resumed = evaluate(model, (x, y), attack, checkpoint=path, **how)
    assert len(looks) == 1  # nobody looked again
    assert torch.equal(resumed.robust, whole.robust)
    assert same_bits(resumed.distance, whole.distance)


def test_an_error_in_the_second_look_leaves_the_model_as_it_was(monkeypatch):
    x, y = digits(20)
    model, _ = clamping("hardtanh", trained())
    model.train()
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]

    def fails(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(vocabulary, "lost_at_bounds", fails)
    try:
        with pytest.raises(KeyboardInterrupt):
            ATTACKS["pgd"].run(model, x, y)
        assert [m.training for m in model.modules()] == modes
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        model.eval()
