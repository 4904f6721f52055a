"""What the two processes of test_ddp.py run, and the same batches in one process."""

import copy
import datetime
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fastadv
from fastadv import objectives
from fastadv.models.initialisation import build_seeded
from fastadv.training import (
    AWP,
    MART,
    NFGSM,
    PGDAT,
    TRADES,
    YOPO,
    CleanMixing,
    FastAT,
    FreeAT,
    GradAlign,
)

WORLD = 2
BATCH = 12  # samples of a global batch
BATCHES = 5
_LEARNING_RATE = 0.1
_PATIENCE = datetime.timedelta(seconds=60)  # a rank that fails must not hang the other for long

THREAT = fastadv.Linf(0.1)
STEPS: dict[str, Callable[[], object]] = {
    "FastAT": lambda: FastAT(THREAT),
    "NFGSM": lambda: NFGSM(THREAT),
    "PGDAT": lambda: PGDAT(THREAT, steps=3),
    "TRADES": lambda: TRADES(THREAT, steps=3),
    "MART": lambda: MART(THREAT, steps=3),
    "YOPO": lambda: YOPO(THREAT, first_layer="0", outer=3, inner=2),
    "FreeAT": lambda: FreeAT(THREAT, replays=3),
    "PGDAT of an objective": lambda: PGDAT(
        THREAT, steps=2, loss=objectives.weighted((1.0, 2.0, 0.5, 1.0))
    ),
    "AWP": lambda: FastAT(THREAT, modifiers=[AWP(0.01)]),
    "TRADES with AWP": lambda: TRADES(THREAT, steps=2, modifiers=[AWP(0.005)]),
    "GradAlign": lambda: FastAT(THREAT, modifiers=[GradAlign(0.2)]),
    "CleanMixing": lambda: FastAT(THREAT, modifiers=[CleanMixing(0.5)]),
    "all modifiers": lambda: NFGSM(THREAT, modifiers=[CleanMixing(0.5), GradAlign(0.2), AWP(0.01)]),
}


def small_net(*, batchnorm: bool = False) -> nn.Sequential:
    """(B, 2, 8, 8) to (B, 4) logits in float64, the same weights in every process."""
    norm = nn.BatchNorm2d(6) if batchnorm else nn.Identity()
    # two channels: of one, GradAlign's double backward gives convolutions gradients whose stride
    # of the dimension of size 1 is not the parameter's, and DDP warns (torch 2.13)
    return build_seeded(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2, padding=1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)
        ),
        seed=0,
    ).double()


def batches(count: int = BATCHES) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Global batches of (BATCH, 2, 8, 8) float64 images in [0, 1] and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, BATCH, 2, 8, 8, dtype=torch.float64, generator=generator)
    return list(zip(x, torch.randint(4, (count, BATCH), generator=generator), strict=True))


def share(batch: tuple, rank: int) -> tuple[torch.Tensor, ...]:
    """The rank-th contiguous part of a global batch; all of it for a lone process."""
    return tuple(part.chunk(WORLD)[rank] for part in batch) if dist.is_initialized() else batch


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=_LEARNING_RATE, momentum=0.9)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def train(model: nn.Module, optimizer, step, data: list, *, rank: int = 0) -> int:
    """The user's own loop; the number of optimizer steps."""
    updates = 0
    for batch in data:
        for loss in step(model, *share(batch, rank)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            updates += 1
    return updates


def accumulate(model: nn.Module, optimizer, step, data: list, *, rank: int = 0) -> int:
    """Two batches an update; the first of them under no_sync where the model is wrapped."""
    updates = 0
    for first, second in zip(data[::2], data[1::2], strict=False):
        optimizer.zero_grad()
        if isinstance(model, DistributedDataParallel):
            with model.no_sync():  # around the forward too: DDP decides there
                (step.loss(model, *share(first, rank)) / 2).backward()
        else:
            (step.loss(model, *share(first, rank)) / 2).backward()
        (step.loss(model, *share(second, rank)) / 2).backward()
        optimizer.step()
        updates += 1
    return updates


def wrapped(model: nn.Module) -> tuple[DistributedDataParallel, list[int], list[int]]:
    """The model in DDP; two lists: the sizes of all-reduced buckets, and of batches through DDP."""
    ddp = DistributedDataParallel(model)
    reduced: list[int] = []
    calls: list[int] = []

    def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.append(bucket.buffer().numel())
        total = dist.all_reduce(bucket.buffer().div_(WORLD), async_op=True).get_future()
        return total.then(lambda done: done.value()[0])

    ddp.register_comm_hook(None, count)
    ddp.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    return ddp, reduced, calls


def run(name: str, rank: int, *, loop=train, batchnorm: bool = False, count: int = BATCHES) -> dict:
    """Train in DDP: weights, updates, all-reduces, calls of DDP, state of the step, buffers."""
    model, step = small_net(batchnorm=batchnorm), STEPS[name]()
    ddp, reduced, calls = wrapped(model)
    updates = loop(ddp, sgd(ddp), step, batches(count), rank=rank)
    return dict(
        weights=flat(model),
        updates=updates,
        reduced=reduced,
        calls=calls,
        state=step.state_dict(),
        buffers=dict(model.named_buffers()),
    )


def resumed(name: str, rank: int, folder: Path) -> dict:
    """As `run`, but saved after three batches, one file a rank, and continued from the files."""
    file = folder / f"resumed-{rank}.pt"
    model, step = small_net(), STEPS[name]()
    ddp, _, _ = wrapped(model)
    optimizer = sgd(ddp)
    train(ddp, optimizer, step, batches()[:3], rank=rank)
    state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step.state_dict())
    torch.save(state, file)

    model, step, state = small_net(), STEPS[name](), torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    ddp, _, _ = wrapped(model)
    optimizer = sgd(ddp)
    optimizer.load_state_dict(state["optimizer"])
    step.load_state_dict(state["step"])
    train(ddp, optimizer, step, batches()[3:], rank=rank)
    return dict(weights=flat(model), state=step.state_dict())


def mean_of_shares(name: str, *, count: int, batchnorm: bool = False) -> torch.Tensor:
    """Weights of one process that averages the gradients of the shares, each computed alone."""
    model = small_net(batchnorm=batchnorm)
    optimizer, steps = sgd(model), [STEPS[name]() for _ in range(WORLD)]
    for x, y in batches(count):
        optimizer.zero_grad()
        ids = torch.arange(BATCH).chunk(WORLD)
        for rank, step in enumerate(steps):
            replica = copy.deepcopy(model)
            loss = step.loss(
                replica, x.chunk(WORLD)[rank], y.chunk(WORLD)[rank], sample_ids=ids[rank]
            )
            loss.backward()
            for p, own in zip(model.parameters(), replica.parameters(), strict=True):
                p.grad = (0 if p.grad is None else p.grad) + own.grad / WORLD
        optimizer.step()
    return flat(model)


def _main(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=WORLD,
        timeout=_PATIENCE,
    )
    one_loss = [name for name in STEPS if name != "FreeAT"]
    runs: dict[str, Callable[[], dict]] = {
        **{name: lambda name=name: run(name, rank) for name in STEPS},
        **{
            f"{n}, accumulated": lambda n=n: run(n, rank, loop=accumulate, count=6)
            for n in one_loss
        },
        **{f"{n}, BatchNorm": lambda n=n: run(n, rank, batchnorm=True) for n in STEPS},
        **{
            f"{n}, BatchNorm, 1 batch": lambda n=n: run(n, rank, batchnorm=True, count=1)
            for n in one_loss
        },
        "FreeAT, resumed": lambda: resumed("FreeAT", rank, folder),
    }
    results = {}
    for name, scenario in runs.items():
        try:
            results[name] = scenario()
        except Exception:
            results[name] = dict(error=traceback.format_exc())
    torch.save(results, folder / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
