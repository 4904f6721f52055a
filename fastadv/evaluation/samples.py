"""Samples of a data set as a stream of rows, cut into blocks of any size."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Subset

from fastadv.evaluation.checkpoint import DataDigest

_BATCH_SIZE = 128  # where neither the caller nor the loader says

Data = tuple[torch.Tensor, torch.Tensor] | DataLoader | Dataset


class Samples:
    """Takes any number of rows at a time from (x, y) tensors, a DataLoader or a Dataset.

    Holds one batch and one block at most. batch_size: as given, else the loader's, else 128.
    length: of all data, where it is certain before reading, so not for a loader. expected: a guess
    of the rows, for progress bars. Of `world` processes the one of number `rank` takes the samples
    rank, rank + world, ...: of a Dataset it reads only these, of a loader all, and `stream` is the
    digest of all. Raises TypeError for other data, ValueError for batches without one label a
    sample, and for a loader that would give every process other samples.
    """

    def __init__(
        self, data: Data, *, batch_size: int | None, rank: int = 0, world: int = 1
    ) -> None:
        self.length: int | None = None
        self.expected: int | None = None
        self.device = torch.device("cpu")  # of the last block
        self.batch_size = _BATCH_SIZE if batch_size is None else batch_size
        self.stream = DataDigest()  # of several processes, which must read the same
        self._rest: tuple[torch.Tensor, torch.Tensor] | None = None
        skips = world > 1
        if _is_pair(data):
            batches: Any = [data]
            self.length = self.expected = len(data[0])  # type: ignore[index]
        elif isinstance(data, DataLoader):
            if world > 1:
                _check_order(data)
            batches = data
            self.expected = _expected(data)
            if batch_size is None and data.batch_size is not None:
                self.batch_size = data.batch_size
        elif _is_map(data):
            # a generator of its own: a loader draws a seed, and the global one is the user's
            own = torch.Generator()
            self.length = self.expected = len(data)  # type: ignore[arg-type]
            share = data if world == 1 else Subset(data, range(rank, self.length, world))  # type: ignore[arg-type]
            batches = DataLoader(share, batch_size=self.batch_size, generator=own)  # type: ignore[arg-type]
            skips = False
        else:
            raise TypeError(
                "data must be (x, y) tensors, a DataLoader or a Dataset with a length; got "
                + _describe(data)
            )
        if self.expected is not None:
            self.expected = len(range(rank, self.expected, world))
        self._batches = _checked(batches)
        if skips:
            self._batches = self._share(self._batches, rank, world, digest=batches is data)

    def take(self, count: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The next `count` samples, fewer at the end, None after it."""
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        missing = count
        while missing:
            if self._rest is None:
                self._rest = next(self._batches, None)
            if self._rest is None:
                break
            x, y = self._rest
            parts.append((x[:missing], y[:missing]))
            self._rest = (x[missing:], y[missing:]) if len(x) > missing else None
            missing -= len(parts[-1][0])
        if not parts:
            return None
        self.device = parts[0][0].device
        if len(parts) == 1:
            return parts[0]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def _share(
        self, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], rank: int, world: int, *,
        digest: bool,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
        """Every `world`-th sample, from number `rank` on."""
        seen = 0
        for x, y in batches:
            if digest:
                self.stream.update(x, y)
            first = (rank - seen) % world
            seen += len(x)
            if first < len(x):
                yield x[first::world], y[first::world]


def _check_order(loader: DataLoader) -> None:
    """Raises ValueError for a loader that gives each process samples of its own."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler):
        raise ValueError(
            "data has a DistributedSampler, which gives every process other samples; evaluate "
            "shares them itself: give every process the same loader, without it"
        )
    if isinstance(sampler, RandomSampler) and sampler.generator is None:
        raise ValueError(
            "data shuffles, in another order in every process: use shuffle=False, or give the "
            "loader a generator with the same seed in every process"
        )


def _checked(batches: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for batch in batches:
        if not _is_pair(batch):
            raise TypeError(f"data must yield (x, y) tensors; got {_describe(batch)}")
        x, y = batch
        if x.ndim == 0 or y.shape != x.shape[:1]:
            raise ValueError(
                f"data must yield one label a sample; got x {tuple(x.shape)} and y {tuple(y.shape)}"
            )
        if len(x):
            yield x.detach(), y.detach()


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(part, torch.Tensor) for part in value)
    )


def _is_map(value: object) -> bool:
    has_both = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return has_both and not isinstance(value, tuple | list | dict | str | torch.Tensor)


def _describe(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, tuple | list) and len(value) < 10:
        return f"{name} of ({', '.join(type(part).__name__ for part in value)})"
    return name


def _expected(loader: DataLoader) -> int | None:
    try:
        return len(loader) * (loader.batch_size or 1)
    except TypeError:  # an iterable data set without a length
        return None
