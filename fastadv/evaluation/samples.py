"""Samples of a data set as a stream of rows, cut into blocks of any size."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeGuard

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, Subset

from fastadv.evaluation.checkpoint import DataDigest
from fastadv.ops import layout

_BATCH_SIZE = 128  # where neither the caller nor the loader says
BATCHES_A_BLOCK = 8  # samples queue for the slots of continuous batching; a checkpoint a block

Data = tuple[torch.Tensor, ...] | DataLoader[Any] | Dataset[Any]


class Rows(NamedTuple):
    """Samples and their positions in the data, ascending, on the CPU.

    extra: what the model takes beside x, a row a sample in each.
    """

    ids: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    extra: tuple[torch.Tensor, ...] = ()

    @property
    def columns(self) -> tuple[torch.Tensor, ...]:
        return self.ids, self.x, self.y, *self.extra

    @classmethod
    def of(cls, ids: torch.Tensor, x: torch.Tensor, y: torch.Tensor, *extra: torch.Tensor) -> Self:
        return cls(ids, x, y, extra)

    def to(self, device: torch.device | None) -> "Rows":
        """All but the positions there; None: where they are."""
        if device is None:
            return self
        return Rows.of(self.ids, *(column.to(device) for column in self.columns[1:]))

    def where(self, chosen: torch.Tensor) -> "Rows":
        """The rows where `chosen`, on the CPU, is true; x in its memory format."""
        if bool(chosen.all()):
            return self
        rows = chosen.nonzero()[:, 0]
        others = (column[rows.to(column.device)] for column in (self.y, *self.extra))
        x = layout.gather_rows(self.x, rows.to(self.x.device))
        return Rows.of(self.ids[rows], x, *others)


class Pending:
    """Rows that wait until there are enough of them."""

    def __init__(self) -> None:
        self._parts: list[Rows] = []

    def __len__(self) -> int:
        return sum(len(part.ids) for part in self._parts)

    def add(self, rows: Rows) -> None:
        if len(rows.ids):
            self._parts.append(rows)

    def take(self, count: int) -> Rows:
        """The first `count` rows, fewer if there are no more, but one at least."""
        parts: list[Rows] = []
        while count and self._parts:
            first = self._parts.pop(0)
            if len(first.ids) > count:
                self._parts.insert(0, Rows.of(*(column[count:] for column in first.columns)))
                first = Rows.of(*(column[:count] for column in first.columns))
            parts.append(first)
            count -= len(first.ids)
        if len(parts) == 1:
            return parts[0]
        columns = zip(*(part.columns for part in parts), strict=True)
        return Rows.of(*(torch.cat(column) for column in columns))


class Samples:
    """Rows of (x, y) or (x, y, *extra) tensors, a DataLoader or a Dataset, in their order.

    Holds one batch at most. batch_size: as given, else the loader's, else 128, where is_sized is
    False; block_size: 8 of them. length: of all data, where it is certain before reading, so not
    for a loader. expected: a guess of the rows, for progress bars. seen: samples so far, also those
    that were not asked for. judged: by an objective, which takes y of any shape (B, ...). shared:
    every process reads them; `stream` is then the digest of all that a loader gives. Raises
    TypeError for other data, ValueError for batches without one label a sample, or without a row of
    each extra, and for a loader that would give every process other samples.
    """

    def __init__(
        self,
        data: Data,
        *,
        batch_size: int | None,
        judged: bool = False,
        shared: bool = False,
    ) -> None:
        self.length: int | None = None
        self.expected: int | None = None
        self.device: torch.device = torch.device("cpu")  # of the last batch
        self.batch_size: int = _BATCH_SIZE if batch_size is None else batch_size
        self.is_sized: bool = batch_size is not None
        self.stream: DataDigest = DataDigest()  # of several processes, which must read the same
        self.seen: int = 0
        self._data, self._shared, self._judged = data, shared, judged
        if are_tensors(data):
            self.length = self.expected = len(data[0])
        elif isinstance(data, DataLoader):
            if shared:
                _check_order(data)
            self.expected = _expected(data)
            if batch_size is None and data.batch_size is not None:
                self.batch_size, self.is_sized = data.batch_size, True
        elif _is_map(data):
            self.length = self.expected = len(data)  # type: ignore[arg-type]
        else:
            raise TypeError(
                "data must be (x, y) or (x, y, *extra) tensors, a DataLoader or a Dataset with a "
                "length; got " + _describe(data)
            )
        self.block_size: int = self.batch_size * BATCHES_A_BLOCK

    def batches(
        self, takes: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> Iterator[Rows]:
        """The rows whose ids `takes` picks, all by default; of a Dataset no others are read."""
        if self._is_data_set():
            yield from self._of_data_set(takes)
            return
        for batch in self._checked(self._cut()):
            if self._shared and isinstance(self._data, DataLoader):
                self.stream.update(*batch)
            rows = Rows.of(torch.arange(self.seen, self.seen + len(batch[0])), *batch)
            self.seen += len(rows.ids)
            self.device = rows.x.device
            yield rows if takes is None else rows.where(takes(rows.ids))

    def blocks(self) -> Iterator[Rows]:
        """All rows, `block_size` at a time, fewer at the end."""
        pending = Pending()
        for rows in self.batches():
            pending.add(rows)
            while len(pending) >= self.block_size:
                yield pending.take(self.block_size)
        if len(pending):
            yield pending.take(self.block_size)

    def _is_data_set(self) -> bool:
        return not are_tensors(self._data) and not isinstance(self._data, DataLoader)

    def _cut(self) -> Any:
        if isinstance(self._data, DataLoader):
            return self._data
        columns: Any = self._data
        if self._misfit(columns):
            return [columns]  # for the message
        return zip(*(column.split(self.block_size) for column in columns), strict=True)

    def _of_data_set(self, takes: Callable[[torch.Tensor], torch.Tensor] | None) -> Iterator[Rows]:
        ids = torch.arange(self.length or 0)
        data: Any = self._data
        if takes is not None and not bool((chosen := takes(ids)).all()):
            ids = ids[chosen]
            data = Subset(data, ids.tolist())
        # a generator of its own: a loader draws a seed, and the global one is the user's
        loader = DataLoader(data, batch_size=self.batch_size, generator=torch.Generator())
        read = 0
        for batch in self._checked(loader):
            rows = Rows.of(ids[read : read + len(batch[0])], *batch)
            self.device = rows.x.device
            yield rows
            read += len(rows.ids)
        self.seen = self.length or 0

    def _checked(self, batches: Any) -> Iterator[list[torch.Tensor]]:
        for batch in batches:
            if not are_tensors(batch):
                raise TypeError(
                    f"data must yield (x, y) tensors; got {_describe(batch)}. What the model takes "
                    "beside x may follow as tensors, (x, y, *extra)"
                )
            if misfit := self._misfit(batch):
                raise ValueError(misfit)
            if len(batch[0]):
                yield [column.detach() for column in batch]

    def _misfit(self, batch: Sequence[torch.Tensor]) -> str:
        """What is wrong with the shapes, "" if nothing is."""
        x, y, *extra = batch
        if x.ndim == 0 or not (y.shape == x.shape[:1] or self._judged and _has_rows(y, x)):
            wanted = "a row of y a sample" if self._judged else "one label a sample"
            hint = "" if self._judged else ". Other labels need a fastadv.Objective as loss"
            return f"data must yield {wanted}; got x {tuple(x.shape)} and y {tuple(y.shape)}{hint}"
        for index, column in enumerate(extra):
            if not _has_rows(column, x):
                return (
                    f"data must yield a row of each extra a sample; got x {tuple(x.shape)} and "
                    f"extra[{index}] {tuple(column.shape)}"
                )
        return ""


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


def _has_rows(column: torch.Tensor, x: torch.Tensor) -> bool:
    return column.shape[:1] == x.shape[:1]


def are_tensors(value: object) -> TypeGuard[Sequence[torch.Tensor]]:
    """(x, y) or (x, y, *extra)."""
    return (
        isinstance(value, tuple | list)
        and len(value) >= 2
        and all(isinstance(part, torch.Tensor) for part in value)
    )


def _is_map(value: object) -> bool:
    has_both = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    # a Sequential has both
    return has_both and not isinstance(value, tuple | list | dict | str | torch.Tensor | nn.Module)


def _describe(value: object) -> str:
    name = type(value).__name__
    if isinstance(value, tuple | list) and len(value) < 10:
        return f"{name} of ({', '.join(type(part).__name__ for part in value)})"
    return name


def _expected(loader: DataLoader) -> int | None:
    try:
        most = len(loader) * (loader.batch_size or 1)
    except TypeError:  # an iterable data set without a length
        return None
    is_plain = loader.batch_size is not None and hasattr(loader.sampler, "__len__")
    return min(most, len(loader.sampler)) if is_plain else most  # type: ignore[arg-type]
