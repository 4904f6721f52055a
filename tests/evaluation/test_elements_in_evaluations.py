"""Columns in units of their own, item E: radii and bounds of elements, for all samples."""

import pytest
import torch
from torch import nn

import fastadv
from fastadv.evaluation import Report, evaluate

UNITS = torch.tensor([[1.0, 100.0]])
RADII = torch.tensor([[0.125, 12.5]])
THREAT = fastadv.Linf(RADII, bounds=(torch.zeros(1, 2), UNITS))
ATTACK = fastadv.pgd(THREAT, steps=4, step_size=RADII / 2)


class Sum(nn.Module):
    """Class 1 where x_0 + x_1 / 100 > 1.2."""

    def forward(self, x):
        z = x[:, 0] + x[:, 1] / 100 - 1.2
        return torch.stack([-z, z], 1)


# the sum moves by 0.25 at most; the last two have a column at its bound, so that 0.125 is left
X = torch.tensor([[0.5, 60.0], [0.5, 40.0], [0.8, 70.0], [0.8, 60.0], [1.0, 5.0], [1.0, 10.0]])
Y = torch.tensor([0, 0, 1, 1, 0, 0])
ROBUST = [False, True, True, False, True, False]


def test_e_columns_move_by_their_own_radii_within_their_own_bounds(tmp_path):
    path = tmp_path / "c.pt"
    report = evaluate(Sum(), (X, Y), ATTACK, batch_size=1, checkpoint=path)
    assert report.robust.tolist() == ROBUST and report.clean_accuracy == 1.0
    assert report.eps is None and "[0.125, 12.5]" in report.threat
    assert evaluate(Sum(), (X, Y), ATTACK, batch_size=1, checkpoint=path) == report
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_e_a_curve_keeps_the_bounds_of_columns():
    attack = fastadv.pgd(fastadv.Linf(1.0, bounds=(torch.zeros(1, 2), UNITS)), steps=3)
    x, y = torch.tensor([[0.5, 69.9], [0.5, 60.0], [1.0, 10.0]]), torch.tensor([0, 0, 0])
    curve = fastadv.robustness_curve(Sum(), (x, y), attack, [0.05, 0.2])
    assert curve.robust.tolist() == [[False, False], [True, False], [True, True]]


@pytest.mark.parametrize(
    ("threat", "step", "said"),
    [
        (
            fastadv.Linf(RADII.expand(6, 2), bounds=None),
            None,
            r"one eps .*\(6, 2\)\. One for each element carries",
        ),
        (fastadv.Linf(0.1), RADII.expand(6, 2), r"one step_size for all samples; .* \(6, 2\)"),
        (fastadv.Linf(0.1, bounds=(X - 1, X + 1)), None, r"one bound for all samples; .* \(6, 2\)"),
    ],
)
def test_e_sizes_of_samples_are_refused(threat, step, said):
    attack = fastadv.pgd(threat, step_size=step)
    with pytest.raises(ValueError, match=said):
        evaluate(Sum(), (X, Y), attack)
