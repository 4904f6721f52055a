"""A sample's loss under an objective does not depend on the samples beside it."""

import pytest
import torch

from fastadv import objectives

LONG = 40_000  # torch shares rows of 32,768 and more out among threads


@pytest.mark.parametrize(
    ("objective", "y"),
    [
        (objectives.multilabel(), torch.ones(3, LONG)),
        (objectives.regression(tolerance=1), torch.zeros(3, LONG)),
        (objectives.soft(), torch.ones(3, LONG) / LONG),
        (objectives.segmentation(), torch.zeros(3, LONG, dtype=torch.long)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_sample_has_the_loss_that_it_has_alone(objective, y):
    """Bit for bit, for any number of threads."""
    output = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    if objective.name == "segmentation":
        output = torch.stack([output, output.flip(1)], 1)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(objective.losses(output, y))
            alone = [objective.losses(output[k : k + 1], y[k : k + 1]) for k in range(3)]
            found.append(torch.cat(alone))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(losses, found[0]) for losses in found)
