"""Loaders, learning rates and epochs of the textbook scripts."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.reference import PerSampleImages, interpolated_lr, preloaded, train
from fastadv.data import to_unit_interval


def test_a_sample_is_divided_by_255_as_the_whole_set_is():
    images = torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8)
    dataset = PerSampleImages(images, torch.tensor([3, 7]))
    x, y = next(iter(DataLoader(dataset, batch_size=2)))
    torch.testing.assert_close(x, to_unit_interval(images), rtol=0, atol=0)
    assert y.tolist() == [3, 7] and len(dataset) == 2


def test_floats_are_refused_as_samples():
    with pytest.raises(TypeError, match="images must be uint8, as on disk; got torch.float32"):
        PerSampleImages(torch.zeros(1, 1, 2, 2), torch.tensor([0]))


def test_an_epoch_has_every_sample_once_with_its_label():
    x = torch.arange(7, dtype=torch.float32)
    loader = preloaded(x, 10 * x, 3, torch.Generator().manual_seed(0))
    first, second = ([batch for batch in loader] for _ in range(2))
    assert [len(batch) for batch, _ in first] == [3, 3, 1] and len(loader) == 3
    for epoch in (first, second):
        assert sorted(torch.cat([batch for batch, _ in epoch]).tolist()) == x.tolist()
        assert all(torch.equal(y, 10 * batch) for batch, y in epoch)
    orders = [torch.cat([batch for batch, _ in epoch]).tolist() for epoch in (first, second)]
    assert orders[0] != orders[1]


def test_the_order_is_that_of_the_generator():
    images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)

    def order(seed: int) -> torch.Tensor:
        loader = preloaded(images, torch.arange(20), 6, torch.Generator().manual_seed(seed))
        return torch.cat([(x * 255).round().flatten() for x, _ in loader])

    assert torch.equal(order(1), order(1)) and not torch.equal(order(1), order(2))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero():
    lr = interpolated_lr(10, peak=5e-3, peak_at=4)
    assert [lr(t) for t in (0, 2, 4, 7, 10)] == pytest.approx([0, 2.5e-3, 5e-3, 2.5e-3, 0])


def test_an_epoch_sets_the_rate_of_each_end_of_a_batch_and_averages_over_samples():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    batches = [
        (torch.tensor([1.0, 1.0, 1.0]), torch.zeros(3)),
        (torch.tensor([5.0]), torch.zeros(1)),
    ]
    rates = []

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return x.mean()

    lr = interpolated_lr(2, peak=1.0, peak_at=1)
    assert train(step, batches, optimizer, epochs=2, lr=lr) == [2.0, 2.0]
    assert rates == [0.5, 1.0, 0.5, 0.0]
