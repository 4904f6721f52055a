"""Models that clamp their input: the same robust accuracy as without the clamp, on any torch."""

import copy
import functools
import sys
import warnings
from pathlib import Path

import pytest
import torch
from clamping_models import FORMS, Behind, Cropped, clamping, trained
from toy_models import Counting, differing_fields, rows_of, same_bits

import fastadv
from fastadv.attacks.call import preparation
from fastadv.data import load_digits
from fastadv.diagnostics import AttackWarning
from fastadv.evaluation import evaluate
from fastadv.oracle import clamping as vocabulary

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graphs"))

from tape import Tape  # noqa: E402

N = 180
EPS, EPS_L2, EPS_L1 = fastadv.Linf(0.12), fastadv.L2(0.6), fastadv.L1(1.5)
STEPS = dict(steps=10)
ATTACKS = {
    "fgsm": fastadv.fgsm(EPS),
    "bim": fastadv.bim(EPS, **STEPS),
    "pgd": fastadv.pgd(EPS, **STEPS),
    "pgd, last": fastadv.pgd(EPS, keep="last", **STEPS),
    "pgd, best": fastadv.pgd(EPS, keep="best", restarts=2, steps=6),
    "pgd, eot": fastadv.pgd(EPS, eot=2, steps=6),
    "mifgsm": fastadv.mifgsm(EPS, **STEPS),
    "pgd, l2": fastadv.pgd(EPS_L2, **STEPS),
    "pgd, l1": fastadv.pgd(EPS_L1, **STEPS),
    "apgd_ce": fastadv.apgd_ce(EPS, **STEPS),
    "apgd_ce, l2": fastadv.apgd_ce(EPS_L2, **STEPS),
    "apgd_ce, l1": fastadv.apgd_ce(EPS_L1, **STEPS),
    "apgd_t": fastadv.apgd_t(EPS, n_target_classes=3, **STEPS),
    "fab_t": fastadv.fab_t(EPS, n_target_classes=3, **STEPS),
    "fab": fastadv.fab(EPS_L2, steps=6),
    "authors": fastadv.apgd_ce(EPS, keep="authors", **STEPS),
    "autoattack": fastadv.autoattack(
        EPS,
        version="custom",
        attacks=[fastadv.apgd_ce(EPS, **STEPS), fastadv.fab_t(EPS, n_target_classes=2, steps=6)],
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def looks(monkeypatch):
    """What every second look found."""
    found = []
    look = vocabulary.lost_at_bounds

    def spied(*given):
        found.append(look(*given))
        return found[-1]

    monkeypatch.setattr(vocabulary, "lost_at_bounds", spied)
    return found


def _digits(n=N):
    x, y = load_digits("test")
    return x[:n], y[:n]


def _run(attack, model, x, y, **more):
    """(result, codes of the warnings)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = attack.run(model, x, y, **more)
    return result, [getattr(w.message, "code", str(w.message)) for w in caught]


@functools.cache
def _bare(name):
    """What attack `name` finds on the network itself, in which no clamp rule has a part."""
    return _run(ATTACKS[name], trained(), *_digits())


def _assert_alike(result, codes, bare, lost):
    assert codes == ["clamped_input"] * lost
    assert (result.inset > 0) == lost
    assert int((result.success != bare.success).sum()) <= 1


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_finds_what_it_finds_without_the_clamp(name, clamp_rule_in_force):
    x, y = _digits()
    bare, codes = _bare(name)
    assert codes == [] and bare.inset == 0.0
    assert 20 < int(bare.success.sum()) < N - 20
    for form in ("clamp", "hardtanh", "inside Normalized"):
        model, lossy = clamping(form, trained())
        result, codes = _run(ATTACKS[name], model, x, y)
        _assert_alike(result, codes, bare, clamp_rule_in_force in lossy)


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_clamp_is_seen_through(form, clamp_rule_in_force, looks):
    x, y = _digits()
    model, lossy = clamping(form, trained())
    lost = clamp_rule_in_force in lossy
    for name in ("fgsm", "pgd", "pgd, l2"):
        bare, _ = _bare(name)
        looks.clear()
        result, codes = _run(ATTACKS[name], model, x, y)
        _assert_alike(result, codes, bare, lost)
        assert len(looks) == lost


@pytest.mark.parametrize("name", ["fgsm", "pgd", "mifgsm", "pgd, l2", "apgd_ce", "fab_t"])
def test_without_the_mend_the_clamp_costs_the_attack_its_strength(name, clamp_rule_in_force):
    """Else the tests above could not fail."""
    x, y = _digits()
    bare, _ = _run(ATTACKS[name], trained(), x, y)
    blind, codes = _run(
        ATTACKS[name],
        clamping("hardtanh", trained())[0],
        x,
        y,
        execution=fastadv.Execution(inset=0.0),
    )
    assert codes == [] and blind.inset == 0.0
    assert int(blind.success.sum()) < int(bare.success.sum()) - 3


def test_what_is_returned_is_the_iterate_itself_not_the_point_moved_inside(clamp_rule_in_force):
    net = trained().double()
    try:
        x, y = _digits()
        x = x.double()
        model, _ = clamping("hardtanh", net)
        for attack in (ATTACKS["fgsm"], ATTACKS["pgd, last"], ATTACKS["mifgsm"]):
            bare, _ = _run(attack, net, x, y)
            result, codes = _run(attack, model, x, y)
            assert codes == ["clamped_input"]
            assert same_bits(result.x_adv, bare.x_adv)  # in L-infinity only signs count
            assert bool((result.x_adv == 0).any()) and bool((result.x_adv == 1).any())
            torch.testing.assert_close(result.loss, bare.loss, rtol=1e-12, atol=1e-12)
            assert torch.equal(result.step, bare.step)
    finally:
        net.float()


@pytest.mark.parametrize("batching", ["continuous", "plain"])
@pytest.mark.parametrize("keep", ["first_success", "last"])
def test_entries_that_come_to_a_bound_later_are_noticed_too(keep, batching, looks):
    x, y = _digits()
    x = 0.1 + 0.8 * x  # steps of 0.03 from there: none is at a bound before the fourth
    model, _ = clamping("hardtanh", trained())
    attack = fastadv.bim(EPS, steps=12, step_size=0.03, keep=keep)
    how = fastadv.Execution(batching=batching, batch_size=50)
    bare, _ = _run(attack, trained(), x, y, execution=how)
    result, codes = _run(attack, model, x, y, execution=how)
    _assert_alike(result, codes, bare, True)


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


@pytest.mark.parametrize("name", PLAIN)
def test_there_is_no_false_alarm_and_no_second_look(name, clamp_rule_in_force, looks):
    make, seen = PLAIN[name]
    x, y = _digits(24)
    x = seen(x)
    for attack in ("fgsm", "pgd, last", "pgd, l2", "apgd_ce", "fab_t"):
        for n, size in ((24, None), (6, 1)):
            how = fastadv.Execution(batch_size=size)
            codes = _run(ATTACKS[attack], make(), x[:n], y[:n], execution=how)[1]
            assert "clamped_input" not in codes and looks == [], attack


def test_third_party_networks_are_not_looked_at_twice(looks):
    models = Path(__file__).resolve().parents[3] / "shared" / "models"
    if not models.exists():
        pytest.skip("needs the third-party networks beside the repository")
    sys.path.insert(0, str(models))
    from load_models import load, names

    for name in names():
        model, x, y = load(name, n=24)
        for eps in (0.01, 0.1):
            for attack in (
                fastadv.fgsm(fastadv.Linf(eps)),
                fastadv.apgd_ce(fastadv.L2(eps), steps=4),
            ):
                for n, size in ((24, None), (6, 1)):
                    how = fastadv.Execution(batch_size=size)
                    assert _run(attack, model, x[:n], y[:n], execution=how)[0].inset == 0.0
    assert looks == []


def test_a_gradient_that_truly_vanishes_at_the_bound_is_no_clamp(looks):
    """Of x^2 at 0: a second look, and what it finds is too faint to be what a clamp hides."""
    x, y = _digits()
    result, codes = _run(ATTACKS["pgd"], Behind(lambda x: x * x, trained()), x, y)
    assert codes == [] and result.inset == 0.0
    assert looks in ([], [0.0])


def test_the_plain_case_makes_no_further_pass(clamp_rule_in_force):
    x, y = _digits(40)
    for attack in (ATTACKS["fgsm"], ATTACKS["pgd, last"]):
        model = Counting(trained())
        result, _ = _run(attack, model, x, y)
        backwards = 40 * attack.steps if attack.keep == "last" else result.backwards
        assert model.backwards == backwards == result.backwards
        assert model.forwards == result.forwards


@pytest.mark.parametrize(
    "how",
    [
        dict(precision="bf16"),
        dict(precision="bf16", channels_last=True, final_pass=True),
        dict(channels_last=True),
    ],
    ids=str,
)
def test_a_fast_search_is_mended_too(how):
    x, y = _digits()
    model, _ = clamping("hardtanh", trained())
    how = fastadv.Execution(batch_size=64, **how)
    for name in ("pgd", "apgd_ce", "fab_t"):
        bare, _ = _run(ATTACKS[name], trained(), x, y, execution=how)
        result, codes = _run(ATTACKS[name], model, x, y, execution=how)
        assert codes == ["clamped_input"] and result.inset > 0
        # half precision answers otherwise where the last bits do
        assert int((result.success != bare.success).sum()) <= (3 if how.precision == "bf16" else 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_are_mended_too(dtype):
    """Moved by a rounding of theirs, which is more than 1e-6 of the range."""
    x, y = _digits(120)
    net = copy.deepcopy(trained()).to(dtype)
    model, _ = clamping("hardtanh", net)
    for name in ("fgsm", "pgd", "apgd_ce"):
        bare, _ = _run(ATTACKS[name], net, x.to(dtype), y)
        result, codes = _run(ATTACKS[name], model, x.to(dtype), y)
        assert codes == ["clamped_input"]
        assert int((result.success != bare.success).sum()) <= 2


def test_recorded_steps_are_mended_too(monkeypatch):
    made = []
    monkeypatch.setattr(
        preparation,
        "backend_for",
        lambda device, graph: None if graph is False else made.append(Tape()) or made[-1],
    )
    x, y = _digits(60)
    model, _ = clamping("hardtanh", trained())
    try:
        for name in ("pgd", "apgd_ce", "pgd, last", "fab_t"):
            for _ in range(2):
                eager, _ = _run(
                    ATTACKS[name], model, x, y, execution=fastadv.Execution(cuda_graph=False)
                )
                replayed, codes = _run(ATTACKS[name], model, x, y)
                assert codes == ["clamped_input"]
                assert differing_fields(eager, replayed) == []
    finally:
        preparation.release()
    assert made[0].replayed > made[0].captured > 0


def test_the_result_does_not_depend_on_batches(clamp_rule_in_force):
    x, y = _digits(40)
    model, _ = clamping("hardtanh", trained().double())
    try:
        attack = ATTACKS["pgd"]
        whole, _ = _run(attack, model, x.double(), y)
        for how in (dict(batch_size=7), dict(batch_size=7, batching="plain"), dict(batch_size=1)):
            part, codes = _run(attack, model, x.double(), y, execution=fastadv.Execution(**how))
            assert codes == ["clamped_input"] and part.inset == whole.inset
            assert differing_fields(rows_of(whole, torch.arange(40)), part) in ([], ["loss"])
    finally:
        trained().float()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd, last"])
def test_samples_without_a_pixel_at_a_bound_do_not_speak_for_the_others(name):
    x, y = _digits(96)
    x = torch.cat([0.14 + 0.7 * x[:48], x[48:]])
    model, _ = clamping("hardtanh", trained())
    bare, _ = _run(ATTACKS[name], trained(), x, y)
    for how in (dict(), dict(batch_size=16), dict(batch_size=16, batching="plain")):
        result, codes = _run(ATTACKS[name], model, x, y, execution=fastadv.Execution(**how))
        _assert_alike(result, codes, bare, True)


def test_a_clamp_of_one_bound_is_found_when_its_samples_come():
    x, y = _digits(64)
    x = torch.cat([0.2 + 0.8 * x[:16], x[16:]])  # white pixels, but no black ones
    model = Behind(torch.relu, trained())
    bare, _ = _run(ATTACKS["bim"], trained(), x, y)
    for size in (None, 8):
        how = fastadv.Execution(batch_size=size)
        result, codes = _run(ATTACKS["bim"], model, x, y, execution=how)
        _assert_alike(result, codes, bare, True)


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

    x, y = _digits(60)
    bare, _ = _run(ATTACKS[name], trained(), x, y)
    result, codes = _run(ATTACKS[name], Narrow(clamping("hardtanh", trained())[0]), x, y)
    _assert_alike(result, codes, bare, True)


def test_an_inset_that_makes_no_sense_is_refused_and_one_that_is_given_is_used():
    x, y = _digits(20)
    for value in (True, -1.0, float("inf"), "auto"):
        with pytest.raises(ValueError, match="inset must be None or a number of at least 0; got"):
            fastadv.Execution(inset=value)
    with pytest.raises(ValueError, match="inset must be less than half of the range of bounds"):
        ATTACKS["pgd"].run(trained(), x, y, execution=fastadv.Execution(inset=0.5))
    given = fastadv.Execution(inset=1e-6)
    model, _ = clamping("hardtanh", trained())
    result, codes = _run(ATTACKS["pgd"], model, x, y, execution=given)
    assert codes == [] and result.inset == 1e-6  # nothing was found: it was asked for
    assert torch.equal(result.success, _run(ATTACKS["pgd"], trained(), x, y)[0].success)
    free = fastadv.pgd(fastadv.Linf(0.12, bounds=None), **STEPS)
    assert _run(free, trained(), x, y, execution=given)[0].inset == 0.0


def test_a_curve_counts_each_sample_once():
    x, y = _digits(40)
    model, _ = clamping("hardtanh", trained())
    with pytest.warns(AttackWarning, match="clamped_input: 40 of 40 samples") as caught:
        curve = fastadv.robustness_curve(
            model, (x, y), ATTACKS["pgd"], eps=[0.05, 0.12], batch_size=5, progress=False
        )
    assert curve.warnings == {"clamped_input": 40} and len(caught) == 1


def test_targets_and_radii_of_samples_are_mended_too():
    x, y = _digits()
    model, _ = clamping("hardtanh", trained())
    eps = torch.linspace(0.05, 0.3, N)
    for attack in (fastadv.pgd(fastadv.Linf(eps), **STEPS), fastadv.apgd_ce(fastadv.Linf(eps))):
        bare, _ = _run(attack, trained(), x, y, target="second_best")
        result, codes = _run(attack, model, x, y, target="second_best")
        _assert_alike(result, codes, bare, True)


def test_calls_without_a_result_warn_as_well():
    x, y = _digits(40)
    model, _ = clamping("hardtanh", trained())
    with pytest.warns(AttackWarning, match="clamped_input: 40 of 40 samples") as caught:
        x_adv = ATTACKS["pgd, last"](model, x, y)
    assert len(caught) == 1
    assert int((trained()(x_adv).argmax(1) != y).sum()) > 10


def test_other_bounds_and_none():
    x, y = _digits(90)
    scaled = Behind(lambda x: x / 255, trained())
    model = Behind(lambda x: torch.nn.functional.hardtanh(x, 0, 255), scaled)
    attack = fastadv.pgd(fastadv.Linf(0.12 * 255, bounds=(0, 255)), **STEPS)
    bare, _ = _run(attack, scaled, 255 * x, y)
    result, codes = _run(attack, model, 255 * x, y)
    _assert_alike(result, codes, bare, True)
    assert 0 < result.inset <= 1e-6 * 255
    free = fastadv.pgd(fastadv.Linf(0.12, bounds=None), **STEPS)
    assert _run(free, clamping("hardtanh", trained())[0], x, y)[0].inset == 0.0


def test_bounds_far_from_zero_are_moved_by_one_rounding_there():
    x, y = _digits(90)
    far = Behind(lambda z: z - 100, trained())
    model = Behind(lambda z: torch.nn.functional.hardtanh(z, 100, 101), far)
    attack = fastadv.pgd(fastadv.Linf(0.12, bounds=(100, 101)), **STEPS)
    bare, _ = _run(attack, far, 100 + x, y)
    result, codes = _run(attack, model, 100 + x, y)
    _assert_alike(result, codes, bare, True)


def test_an_evaluation_keeps_the_decision_with_its_checkpoint(tmp_path, looks):
    x, y = _digits(120)
    model, _ = clamping("hardtanh", trained())
    attack, how = ATTACKS["autoattack"], dict(batch_size=5, progress=False)
    with pytest.warns(AttackWarning, match="clamped_input: 120 of 120 samples"):
        whole = evaluate(model, (x, y), attack, **how)
    assert looks == [whole_inset := looks[0]] and whole_inset > 0 and len(looks) == 1
    assert whole.warnings["clamped_input"] == 120
    looks.clear()

    class Interrupted(Exception):
        pass

    blocks = []

    def stop(status):
        blocks.append(status)
        if status.done >= 40:
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
    x, y = _digits(20)
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
