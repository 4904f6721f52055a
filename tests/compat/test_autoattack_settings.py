"""fastadv.compat.autoattack: attributes and versions mean the attacks the authors would run."""

import subprocess
import sys

import pytest
import torch
from toy_models import mixed_problem

import fastadv
from fastadv.compat.autoattack import AutoAttack, checks, other_utils
from fastadv.compat.autoattack.autopgd_base import APGDAttack, APGDAttack_targeted, L1_projection
from fastadv.compat.autoattack.fab_pt import FABAttack_PT
from fastadv.compat.autoattack.square import SquareAttack

MODEL = torch.nn.Flatten()


def made(**more) -> AutoAttack:
    return AutoAttack(MODEL, **{"eps": 0.1, "device": "cpu", "verbose": False, **more})


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_a_version_is_fastadvs_version_as_the_authors_run_it(norm, version):
    threat = getattr(fastadv, norm)(0.1)
    expected = fastadv.autoattack(threat, version, keep="authors", seed=7).attacks
    assert made(norm=norm, version=version).attacks(7) == list(expected)


def test_attributes_set_after_construction_reach_the_attacks():
    adversary = made(version="custom", attacks_to_run=["apgd-ce", "apgd-dlr", "square", "apgd-t"])
    adversary.apgd.n_restarts, adversary.apgd.n_iter, adversary.apgd.eot_iter = 3, 17, 2
    adversary.apgd.rho = 0.5
    adversary.apgd_targeted.n_restarts, adversary.apgd_targeted.n_target_classes = 2, 4
    adversary.apgd_targeted.thr_decr = 0.25
    adversary.square.n_queries, adversary.square.p_init = 30, 0.3
    adversary.square.n_restarts, adversary.square.rescale_schedule = 2, True
    adversary.epsilon = 0.2
    threat, kept = fastadv.Linf(0.2), {"keep": "authors", "seed": 3}
    assert adversary.attacks(3) == [
        fastadv.apgd_ce(threat, restarts=3, steps=17, eot=2, rho=0.5, **kept),
        fastadv.apgd_dlr(threat, restarts=3, steps=17, eot=2, rho=0.5, **kept),
        fastadv.square(threat, queries=30, p_init=0.3, restarts=2, rescale=True, seed=3),
        fastadv.apgd_t(threat, restarts=2, n_target_classes=4, rho=0.25, **kept),
    ]


def test_fab_t_has_one_restart_and_so_has_fab_behind_it_in_that_run():
    adversary = made(version="custom", attacks_to_run=["fab", "fab-t", "fab"])
    adversary.fab.alpha_max, adversary.fab.eta, adversary.fab.beta = 0.2, 1.1, 0.8
    adversary.fab.n_iter, adversary.fab.n_target_classes = 9, 2
    kept = {"steps": 9, "alpha_max": 0.2, "eta": 1.1, "beta": 0.8, "keep": "authors", "seed": 0}
    threat = fastadv.Linf(0.1)
    expected = [
        fastadv.fab(threat, restarts=5, **kept),
        fastadv.fab_t(threat, n_target_classes=2, **kept),
        fastadv.fab(threat, **kept),
    ]
    assert adversary.attacks(0) == expected
    assert adversary.attacks(0) == expected  # the authors' second run would have one restart


def test_large_radii_follow_a_changed_eps():
    adversary = made(norm="L1")
    adversary.epsilon = 4.0
    assert adversary.attacks(0)[0] == fastadv.apgd_ce(
        fastadv.L1(4.0), restarts=5, large_radii=True, keep="authors"
    )


def test_versions_and_attacks_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="belongs to version='custom'"):
        made(attacks_to_run=["apgd-ce"])
    with pytest.raises(ValueError, match="version must be one of"):
        made(version="fast")
    with pytest.raises(ValueError, match="'fab-t' and 'square'; got 'pgd'"):
        made(version="custom", attacks_to_run=["pgd"]).attacks(0)


def test_attacks_of_one_run_share_ball_and_model():
    adversary = made()
    adversary.apgd.eps = 0.2
    with pytest.raises(ValueError, match="must agree on eps and norm"):
        adversary.attacks(0)
    adversary = made()
    adversary.fab.predict = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match="fab-t attacks another model"):
        adversary.attacks(0)


def test_what_is_not_there_says_so():
    with pytest.raises(NotImplementedError, match="is_tf_model"):
        made(is_tf_model=True)
    with pytest.raises(ValueError, match="norm must be one of"):
        made(norm="L0")
    with pytest.raises(ValueError, match="eps must be given"):
        APGDAttack(MODEL)
    for more in ({"loss": "ce"}, {"targeted": True}):
        with pytest.raises(NotImplementedError, match="untargeted and on the margin loss"):
            SquareAttack(MODEL, eps=0.1, **more).settings(keep="authors", seed=0)
    with pytest.raises(ValueError, match="loss must be one of"):
        APGDAttack(MODEL, eps=0.1, loss="dlr-targeted").settings(keep="authors", seed=0)


@pytest.fixture
def problem():
    return mixed_problem(20, (1, 8, 8))


def test_attacks_alone_return_what_fastadvs_return(problem):
    model, x, y = problem.model, problem.x, problem.y
    threat, kept = fastadv.Linf(0.06), {"keep": "authors", "seed": 5}
    pairs = [
        (APGDAttack(model, n_iter=6, eps=0.06, seed=5), fastadv.apgd_ce(threat, steps=6, **kept)),
        (
            APGDAttack_targeted(model, n_iter=4, eps=0.06, seed=5, n_target_classes=2),
            fastadv.apgd_t(threat, steps=4, n_target_classes=2, **kept),
        ),
        (
            FABAttack_PT(model, n_iter=4, n_restarts=2, eps=0.06, seed=5),
            fastadv.fab(threat, steps=4, restarts=2, **kept),
        ),
        (
            FABAttack_PT(model, n_iter=4, eps=0.06, seed=5, targeted=True, n_target_classes=2),
            fastadv.fab_t(threat, steps=4, n_target_classes=2, **kept),
        ),
        (
            SquareAttack(model, n_queries=20, eps=0.06, seed=5),
            fastadv.square(threat, queries=20, rescale=True, seed=5),
        ),
    ]
    for ours, attack in pairs:
        x_adv = ours.perturb(x, y)
        assert torch.equal(x_adv, attack(model, x, y))
        assert 0 < int((x_adv != x).flatten(1).any(1).sum()) < len(x)


def test_best_loss_returns_the_points_of_highest_loss(problem):
    x_adv = APGDAttack(problem.model, n_iter=6, eps=0.06, seed=5).perturb(
        problem.x, problem.y, best_loss=True
    )
    best = fastadv.apgd_ce(fastadv.Linf(0.06), steps=6, keep="best", seed=5)
    assert torch.equal(x_adv, best(problem.model, problem.x, problem.y))


def test_x_init_is_where_apgd_starts(problem):
    start = (problem.x + 0.03).clamp(0, 1)
    attack = APGDAttack(problem.model, n_iter=3, eps=0.06, seed=5)
    expected = fastadv.apgd_ce(fastadv.Linf(0.06), steps=3, keep="authors", seed=5)(
        problem.model, problem.x, problem.y, x_init=start
    )
    assert torch.equal(attack.perturb(problem.x, problem.y, x_init=start), expected)
    assert not torch.equal(attack.perturb(problem.x, problem.y), expected)


def test_labels_default_to_the_models_predictions_and_one_sample_needs_no_batch(problem):
    attack = SquareAttack(problem.model, n_queries=20, eps=0.06)
    prediction = problem.model(problem.x).argmax(1)
    assert torch.equal(attack.perturb(problem.x), attack.perturb(problem.x, prediction))
    alone = attack.perturb(problem.x[1], prediction[1])
    assert torch.equal(alone, attack.perturb(problem.x[1:2], prediction[1:2]))


def test_cuda_without_cuda_is_the_models_device(problem):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    attack = SquareAttack(problem.model, n_queries=5, eps=0.06, device="cuda")
    on_cpu = SquareAttack(problem.model, n_queries=5, eps=0.06, device="cpu")
    assert torch.equal(attack.perturb(problem.x, problem.y), on_cpu.perturb(problem.x, problem.y))


def test_l1_projection_lands_on_ball_and_box():
    x = torch.tensor([[0.5, 0.5, 0.9]])
    delta = torch.tensor([[1.0, -0.25, 0.0]])
    # room 0.5 in the first; 1.0 - t capped at 0.5 and 0.25 - t sum to 0.6 at t = 0.15
    moved = delta + L1_projection(x, delta, 0.6)
    torch.testing.assert_close(moved, torch.tensor([[0.5, -0.1, 0.0]]))


class Lines(list):
    def log(self, line: str) -> None:
        self.append(line)


def test_checks_find_what_they_look_for_and_nothing_else(problem):
    model, x, y = problem.model, problem.x, problem.y
    for found, defence in (
        ("randomized defense", lambda z: model(z) + 0.01 * torch.randn(len(z), 5)),
        ("", model),
    ):
        log = Lines()
        checks.check_randomized(defence, x, y, logger=log)
        assert [found in line for line in log] == [True] * bool(found)
    log = Lines()
    assert checks.check_range_output(model, x, logger=log) == 5 and log == []
    assert checks.check_range_output(lambda z: model(z).softmax(1), x, logger=log) == 5
    assert "probability distribution" in log.pop()
    grad = torch.ones(3, 2)
    checks.check_zero_gradients(grad, logger=log)
    grad[1] = 0
    checks.check_zero_gradients(grad, logger=log)
    assert [line.split("!")[0] for line in log] == [
        "Warning: there are 1 points with zero gradient"
    ]
    with pytest.warns(Warning, match="decreased the robust accuracy of 3.00%"):
        checks.check_square_sr({"clean": 0.9, "apgd-ce": 0.53, "square": 0.5})


def test_a_model_that_differentiates_inside_is_dynamic(problem):
    def adapting(z: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            leaf = z.clone().requires_grad_()
            problem.model(leaf).sum().backward()
        return problem.model(z)

    log = Lines()
    checks.check_dynamic(problem.model, problem.x, logger=log)
    assert log == []
    checks.check_dynamic(adapting, problem.x, logger=log)
    assert "dynamic defense" in log[0]


def test_norms_of_other_utils(capsys):
    x = torch.tensor([[[3.0, -4.0]], [[0.0, 1.0]]])
    assert other_utils.L2_norm(x).tolist() == [5, 1]
    assert other_utils.L1_norm(x, keepdim=True).shape == (2, 1, 1)
    assert other_utils.L0_norm(x).tolist() == [2, 1]
    line = other_utils.check_imgs(x, torch.zeros_like(x), "L1")
    assert line == (
        "max L1 pert: 7.00000, nan in imgs: 0, max in imgs: 3.00000, min in imgs: -4.00000"
    )
    assert capsys.readouterr().out == line + "\n"


def test_it_stands_in_for_the_module_autoattack():
    code = (
        "import sys, fastadv.compat.autoattack as ours; sys.modules['autoattack'] = ours\n"
        "from autoattack import AutoAttack, checks\n"
        "from autoattack.state import EvaluationState\n"
        "from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted\n"
        "from autoattack.fab_pt import FABAttack_PT\n"
        "from autoattack.square import SquareAttack\n"
        "from autoattack.other_utils import Logger, L2_norm\n"
        "assert AutoAttack is ours.AutoAttack and hasattr(EvaluationState, 'from_disk')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
