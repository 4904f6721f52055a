"""FAB takes the steps of its authors' code: stored trajectories, see tests/golden/README.md."""

import copy

import numpy as np
import pytest
import torch
from golden.problem import THREATS, Problem, arrays

import fastadv
from fastadv.kernels import slots as columns

# rounding alone moves the points of the authors' own code by as much, see the README of the files
_ROUNDING = {"linf": 1e-6, "l2": 1e-6, "l1": 5e-6}
# (iteration, sample) whose point lies on the boundary within rounding, by the path that is taken:
# in numpy, and by what runs by default (compiled loops have the bits of the eager reference)
_ON_THE_BOUNDARY = {"cpu": {(2, 1)}, "auto": {(2, 1), (3, 1), (2, 5)}}


class Trajectory:
    """What our FAB does from the clean samples, in the order of the stored arrays."""

    def __init__(self, run: str, norm: str, device: str) -> None:
        stored = arrays(f"fab_{run}_{norm}")
        problem = Problem(device)
        attack = fastadv.fab_t(THREATS[norm](1e-3), n_target_classes=1, keep="best")
        self.stored = stored
        self.moved, self.left, self.is_adv, self.distance, self.difference = [], [], [], [], []
        with problem.started(attack, None, stored["target"]) as (algorithm, state):
            look = algorithm._look

            def watched_look(state) -> None:
                self.moved.append(state.common.x_adv.detach().cpu().numpy().copy())
                look(state)

            algorithm._look = watched_look
            gradient = algorithm.oracle.gradient

            def watched_gradient(common, rules):
                grad = gradient(common, rules)
                self.difference.append(common.loss.cpu().numpy().copy())
                return grad

            algorithm.oracle.gradient = watched_gradient
            for step in range(100):
                algorithm.step(state)
                self.left.append(state.common.x_adv.detach().cpu().numpy().copy())
                self.distance.append(state.distance.cpu().numpy().copy())
                # at the last step a slot ends instead of being pulled back
                pulled = state.pulled_back if step < 99 else ~state.common.correct
                self.is_adv.append(pulled.cpu().numpy().copy())
            self.active = (state.slots[:, columns.ACTIVE] != 0).cpu().numpy()
            self.closest = state.closest.cpu().numpy()
        self.exact = copy.deepcopy(problem.model).double()
        self.labels = problem.y

    def margin(self, step: int, sample: int) -> float:
        """By how much the point of a step is misclassified, in float64."""
        at = torch.from_numpy(self.moved[step][sample : sample + 1]).to(self.labels.device)
        logits = self.exact(at.double())[0].detach()
        own = logits[self.labels[sample]].clone()
        logits[self.labels[sample]] = -torch.inf
        return float(logits.max() - own)


@pytest.mark.parametrize("implementation", ["cpu", "auto"], indirect=True)
@pytest.mark.parametrize("run", ["t2", "t3"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_trajectories_are_the_authors(run, norm, implementation, device):
    ours = Trajectory(run, norm, device)
    stored, shown, steps = ours.stored, ours.stored["shown"], 20
    differs = np.stack(ours.is_adv) != stored["is_adv"]
    unsteady = _ON_THE_BOUNDARY[implementation] if (run, norm) == ("t3", "linf") else set()
    other = set(zip(*np.nonzero(differs), strict=True))
    assert other <= unsteady
    assert all(abs(ours.margin(*at)) < 3e-7 for at in other)  # rounding of logits
    for found, kind in ((ours.moved, 0), (ours.left, 1)):
        found = np.stack(found)[:steps, shown]
        error = np.abs(found - stored["iterates"][:, kind])
        assert (error > _ROUNDING[norm]).mean() <= 1e-4
    # from there on a sample takes another way, to the same distance
    parted = sorted({sample for _, sample in other})
    same = [s for s in range(8) if s not in parted]
    np.testing.assert_allclose(
        np.stack(ours.difference)[:steps, same], stored["df"][:steps, same], atol=5e-5, rtol=0
    )
    expected = np.where(stored["res2"] > 1e9, np.inf, stored["res2"])
    steady = sorted(set(range(8)) - {sample for _, sample in unsteady})
    np.testing.assert_allclose(
        np.stack(ours.distance)[:, steady], expected[:, steady], rtol=1e-3, atol=0
    )
    np.testing.assert_allclose(ours.distance[-1], expected[-1], rtol=1e-3, atol=0)
    assert not ours.active.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_closest_point_is_adversarial_and_as_close_as_it_says(norm, device):
    ours = Trajectory("t2", norm, device)
    problem = Problem(device)
    closest = problem.tensor(ours.closest)
    assert bool((problem.model(closest).argmax(1) != problem.y).all())
    distance = THREATS[norm](1e-3).distance(closest, problem.x)
    torch.testing.assert_close(
        distance.cpu(), torch.from_numpy(ours.distance[-1]).double(), rtol=1e-6, atol=0
    )
