"""Fast-AT on a few digits: python torchrun_script.py OUT, alone or under torchrun."""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import fastadv
from fastadv.data import load_digits
from fastadv.data.device_loader import DeviceLoader
from fastadv.models import digits_net
from fastadv.training import FastAT

EPOCHS = 2


def train(model: torch.nn.Module, *, rank: int, world_size: int) -> list[int]:
    """The indices of the samples that this process saw; trains the model in place."""
    x, y = load_digits("train")
    loader = DeviceLoader(
        (x[:192] * 16).round().to(torch.uint8) * 15,
        y[:192],
        batch_size=48,
        crop=1,
        indexed=True,
        rank=rank,
        world_size=world_size,
    )
    step = FastAT(fastadv.Linf(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[int] = []
    for _ in range(EPOCHS):
        for images, labels, index in loader:
            loss = step.loss(model, images.double(), labels, sample_ids=index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += index.tolist()
    return seen


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    net = digits_net(seed=0).double()
    seen = train(DistributedDataParallel(net), rank=rank, world_size=world_size)
    torch.save(dict(seen=seen, weights=net.state_dict()), os.path.join(sys.argv[1], f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
