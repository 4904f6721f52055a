"""APGD takes the steps of its authors' code: stored trajectories, see tests/golden/README.md."""

import numpy as np
import pytest
import torch
from golden.problem import THREATS, Problem, arrays

import fastadv
from fastadv.ops import compiled
from fastadv.ops.steps import l1_projection

_LOSSES = {"ce": fastadv.apgd_ce, "dlr": fastadv.apgd_dlr}


class Trajectory:
    """What our APGD does from the stored start, in the order of the stored arrays."""

    def __init__(self, run: str, norm: str, device: str) -> None:
        stored = arrays(f"apgd_{run}_{norm}")
        self.stored = stored
        threat = THREATS[norm](float(stored["phase_eps"][-1]))
        phases = len(stored["phase_steps"])
        options = dict(keep="authors", large_radii=phases > 1)
        target = stored.get("target")
        if target is None:
            attack = _LOSSES[run](threat, **options)
        else:
            attack = fastadv.apgd_t(threat, n_target_classes=1, **options)
        self.iterates, self.starts, self.step_size = [], [], []
        self.start_loss, self.loss, self.loss_best, self.correct = [], [], [], []
        problem = Problem(device)
        with problem.started(attack, stored["x_init"][0], target) as (algorithm, state):
            common = state.common
            begins = True
            for moves in stored["phase_steps"]:
                for evaluation in range(moves + 1):
                    is_last = evaluation == moves
                    if is_last and len(self.loss) == 99:
                        algorithm.evaluate(state)
                    else:
                        algorithm.step(state)
                    self._look(common, begins, is_last)
                    begins = is_last
            self.x_best = common.x_best.cpu().numpy()
            self.x_best_adv = state.x_hit.cpu().numpy()
            self.success = (common.slots[:, 1] >= 0).cpu().numpy()

    def _look(self, common, begins: bool, is_last: bool) -> None:
        def read(values):
            return values.detach().cpu().numpy().copy()

        if begins:
            self.start_loss.append(read(common.loss))
        else:
            self.loss.append(read(common.loss))
            self.correct.append(read(common.correct))
            best = read(common.best_loss)
            if np.isinf(best).all():  # a phase has just ended, and forgets its best loss
                best = np.maximum(self.loss_best[-1], self.loss[-1])
            self.loss_best.append(best)
        if is_last:
            self.starts.append(read(common.x_adv))
        else:
            self.iterates.append(read(common.x_adv))
            self.step_size.append(read(common.step_size))


# samples whose path parts when the model rounds differently, see the README of the files
_PARTING = {("t2", "l2"): [1], ("t3", "l2"): [1], ("ce", "l1"): [7]}
_STEADY = {"linf": 1.2e-7, "l2": 3e-7, "l1": 6e-7}  # "linf": one ULP below 2; else a few


def compare(ours: Trajectory, norm: str, run: str, samples: list[int], until: int = 100) -> None:
    """Step sizes and flags equal, losses within 1e-5 of the stored ones, relative where large."""
    stored = ours.stored
    for name in ("step_size", "loss", "loss_best"):
        found = np.stack(getattr(ours, name))[:until, samples]
        np.testing.assert_allclose(
            found, stored[name][:until, samples], atol=1e-5, rtol=1e-5, err_msg=name
        )
    correct = np.stack(ours.correct)[:until, samples]
    np.testing.assert_array_equal(correct, stored["correct"][:until, samples])


def steady(run: str, norm: str) -> list[int]:
    return [sample for sample in range(8) if sample not in _PARTING.get((run, norm), [])]


def assert_iterates(ours: Trajectory, norm: str, steps: int = 20) -> None:
    stored = ours.stored
    early = stored["iterate_steps"] < steps
    found = np.stack(ours.iterates)[stored["iterate_steps"][early]][:, stored["shown"]]
    parted = np.abs(found - stored["iterates"][early]) > _STEADY[norm]
    assert parted.mean() <= 1e-4


@pytest.mark.parametrize("run", ["ce", "dlr", "t2", "t3"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_trajectories_are_the_authors(run, norm, device):
    ours = Trajectory(run, norm, device)
    assert_iterates(ours, norm)
    compare(ours, norm, run, steady(run, norm))
    stored = ours.stored
    np.testing.assert_array_equal(np.stack(ours.step_size)[0], stored["step_size"][0])
    np.testing.assert_array_equal(np.stack(ours.correct), stored["correct"])
    np.testing.assert_array_equal(ours.success, ~stored["acc"].astype(bool))


@pytest.mark.parametrize("run", ["ce", "dlr"])
def test_l1_trajectories_are_the_authors(run, device):
    ours = Trajectory(run, "l1", device)
    assert_iterates(ours, "l1")
    # sample 2 of "dlr" parts as in the next test, by a residue that counts as support
    compare(ours, "l1", run, [s for s in steady(run, "l1") if (run, s) != ("dlr", 2)])
    np.testing.assert_array_equal(ours.success, ~ours.stored["acc"].astype(bool))


def with_the_authors_residue(x_adv, move, x, eps, lo, hi):
    """`project_rows`, the sum rounded as theirs: x + u + p, where p takes u back to 0.

    What is left of x + u - u counts as support there, and so decides how many elements move next;
    ours puts exactly x back.
    """
    u = (x_adv + move) - x
    room = torch.where(u >= 0, hi - x, x - lo).clamp(min=0).double()
    magnitude = u.abs().double()
    t, outside = l1_projection._threshold(magnitude, room, eps.double())
    z = torch.minimum((magnitude - t).clamp(min=0), room)
    z = torch.where(u < 0, -z, z)
    p = torch.where(outside, z - u.double(), ((x + u).clamp(lo, hi) - (x + u)).double())
    return (x + u) + p.to(x.dtype)


@pytest.mark.parametrize("run", ["t2", "t3"])
def test_in_large_radii_only_the_authors_rounding_residue_sets_us_apart(run, monkeypatch):
    monkeypatch.setattr(l1_projection, "project_rows", with_the_authors_residue)
    with compiled.hidden():  # loops call no such function
        ours = Trajectory(run, "l1", "cpu")
    assert_iterates(ours, "l1")
    compare(ours, "l1", run, list(range(8)), until=30)
    parting = {"t2": 6, "t3": 3}[run]  # at the projection between two phases
    compare(ours, "l1", run, [sample for sample in range(8) if sample != parting])
    np.testing.assert_array_equal(ours.success, ~ours.stored["acc"].astype(bool))


@pytest.mark.parametrize("run", ["ce", "dlr", "t2", "t3"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_points_kept_are_what_they_are_kept_for(run, norm, device):
    ours = Trajectory(run, norm, device)
    problem = Problem(device)
    prediction = problem.model(problem.tensor(ours.x_best_adv)).argmax(1)
    fooled = (prediction != problem.y).cpu().numpy()
    np.testing.assert_array_equal(fooled[ours.success], True)
    np.testing.assert_array_equal(ours.success, ~ours.stored["acc"].astype(bool))
