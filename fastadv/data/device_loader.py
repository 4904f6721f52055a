"""A byte data set on the device of the model: shuffled, sharded, augmented batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastadv.data.order import check_epoch, epoch_order
from fastadv.ops.augment import batch as augment


class DeviceLoader:
    """Batches of (images, labels), kept on a device as bytes: each is gathered and augmented there.

    images: (N, C, H, W) uint8; labels: (N,) int64; device: where they are moved, images.device if
    not given. Iterating yields (x, y), or (x, y, index) with indexed=True: x (B, C, H, W) in dtype,
    [0, 1] unless mean and std (one float a channel) normalise it; y (B,); index (B,) int64 rows of
    the data set. crop, padding, flip, dtype and channels_last: see `fastadv.ops.augment_batch`.
    drop_last leaves out an incomplete last batch.

    Order and augmentation are pure functions of (seed, epoch), the same on every device; no global
    generator is read. Each `iter()` begins the next epoch. `epoch` is the one in progress or, when
    none is, the one that the next `iter()` begins.

    batch_size counts the rows of all world_size processes: process `rank` gets rows
    [rank * B / world_size, (rank + 1) * B / world_size) of each batch, so that together they see
    what one process would. With drop_last=False the last batch may be split unevenly.

    Raises TypeError for other dtypes, ValueError for shapes and settings that do not fit.

    Example: `for x, y in DeviceLoader(images, labels, batch_size=128, crop=4, flip="random"): ...`
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        crop: int = 0,
        padding: augment.Padding = "zeros",
        flip: augment.Flip | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        device: torch.device | str | None = None,
        indexed: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        device = images.device if device is None else torch.device(device)
        self.images: torch.Tensor = images.to(device).contiguous()
        augment.check_images(self.images)
        augment.check_augmentation(self.images, crop, padding, flip, dtype)
        self.labels: torch.Tensor = _checked_labels(labels, self.images)
        _check_batches(len(images), batch_size, drop_last, rank, world_size)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.indexed = indexed
        self.rank = rank
        self.world_size = world_size
        self.mean: torch.Tensor | None
        self.std: torch.Tensor | None
        self.mean, self.std = _normalisation(self.images, mean, std)
        self._augmentation = dict(
            seed=seed,
            crop=crop,
            padding=padding,
            flip=flip,
            dtype=dtype,
            channels_last=channels_last,
            mean=self.mean,
            std=self.std,
        )
        self.epoch: int = 0
        self._batch = 0  # batches of `epoch` that were yielded
        self._begun: object | None = None  # names the latest iterator, if `epoch` is its epoch

    def __len__(self) -> int:
        """Batches of an epoch, the same for every rank."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        batches = self._begin(None)  # now, not when the first batch is asked for
        return (batch[:3] if self.indexed else batch[:2] for batch in batches)

    def with_start(
        self, *, eps: float, seed: int = 0, bounds: tuple[float, float] | None = (0.0, 1.0)
    ) -> "StartedBatches":
        """The same batches as (x, y, index, x_start), the start drawn in the op that makes x.

        x_start is `fastadv.ops.random_start(x, eps=eps, seed=seed, sample_ids=index, draw=epoch,
        bounds=bounds)`, bit for bit: uniform in the L-infinity ball. Epochs and position are those
        of this loader. Raises ValueError for a negative eps, or where mean and std are set.

        Example: `for x, y, index, x_start in loader.with_start(eps=8/255): ...`
        """
        if self.mean is not None:
            raise ValueError(
                "eps is in pixel units, mean and std leave them. Drop mean and std from the "
                "loader and wrap the model in fastadv.Normalized(model, mean, std)."
            )
        if not eps >= 0:
            raise ValueError(f"eps must not be negative; got {eps}")
        return StartedBatches(self, eps, seed, bounds)

    def set_epoch(self, epoch: int) -> None:
        """Make `epoch` the one that the next `iter()` begins, from its first batch.

        A position that `load_state_dict` restored is kept when `epoch` is its own.
        """
        check_epoch(epoch)
        if epoch == self.epoch and self._begun is None:
            return
        self.epoch, self._batch, self._begun = epoch, 0, None

    def state_dict(self) -> dict[str, int | bool]:
        """Epoch, batches yielded in it, and the settings that decide which samples those are."""
        return dict(epoch=self.epoch, batch=self._batch, **self._order_settings())

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Go back to a position: the next `iter()` yields the batches that were left then.

        Raises ValueError if the state is of a loader with another order or batch size; world_size
        may differ.
        """
        for name, value in self._order_settings().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the state must be of a loader with {name}={value}; got {state.get(name)}. "
                    "Build the loader as it was when the state was saved."
                )
        epoch, batch = int(state["epoch"]), int(state["batch"])
        check_epoch(epoch)
        if not 0 <= batch <= len(self):
            raise ValueError(f"the state's batch must lie in [0, {len(self)}]; got {batch}")
        self.epoch, self._batch, self._begun = epoch, batch, None

    def _order_settings(self) -> dict[str, int | bool]:
        return dict(
            samples=len(self.images),
            batch_size=self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            drop_last=self.drop_last,
        )

    def _begin(self, start: dict | None) -> Iterator[tuple]:
        """(x, y, index, x_start or None) of the next epoch, or from the restored position on."""
        if self._begun is not None:
            self.set_epoch(self.epoch + 1)
        self._begun = token = object()
        return self._batches(token, self.epoch, self._batch, start or {})

    def _batches(self, token: object, epoch: int, first: int, start: dict) -> Iterator[tuple]:
        samples = len(self.images)
        order = epoch_order(samples, self.seed, epoch, self.images.device, shuffle=self.shuffle)
        labels = self.labels.index_select(0, order)  # once an epoch: a batch's labels are a view
        if start:
            start = start | dict(start_draw=epoch)
        for batch in range(first, len(self)):
            begin = batch * self.batch_size
            size = min(self.batch_size, samples - begin)
            rows = slice(
                begin + self.rank * size // self.world_size,
                begin + (self.rank + 1) * size // self.world_size,
            )
            index = order[rows]
            x, x_start = augment.augment_batch(
                self.images, index, epoch=epoch, **self._augmentation, **start
            )
            if self._begun is token:
                self._batch = batch + 1
            yield x, labels[rows], index, x_start
        if self._begun is token:
            self.epoch, self._batch, self._begun = epoch + 1, 0, None


@dataclass(frozen=True)
class StartedBatches:
    """Batches of a loader with a random start: (x, y, index, x_start). See `with_start`."""

    loader: DeviceLoader
    eps: float
    seed: int
    bounds: tuple[float, float] | None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        return self.loader._begin(
            dict(start_eps=self.eps, start_seed=self.seed, bounds=self.bounds)
        )


def _checked_labels(labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    if labels.dtype != torch.int64:
        raise TypeError(
            f"labels must be int64; got {labels.dtype}. Call labels.to(torch.int64) first."
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels must be ({len(images)},), one for each image; got {tuple(labels.shape)}"
        )
    return labels.to(images.device)


def _check_batches(
    samples: int, batch_size: int, drop_last: bool, rank: int, world_size: int
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if samples < (batch_size if drop_last else 1):
        raise ValueError(
            f"images must fill one batch at least; got {samples} images with "
            f"batch_size={batch_size}, drop_last={drop_last}"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in [0, world_size); got {rank} of {world_size}")
    if batch_size % world_size:
        raise ValueError(
            f"batch_size counts the rows of all processes and must be a multiple of world_size; "
            f"got {batch_size} rows for {world_size} processes"
        )
    if not drop_last and 0 < samples % batch_size < world_size:
        raise ValueError(
            f"the last batch would leave a process without rows; got {samples} images in batches "
            f"of {batch_size} for {world_size} processes. Use drop_last=True"
        )


def _normalisation(
    images: torch.Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    if mean is None and std is None:
        return None, None
    channels = images.shape[1]
    if (
        mean is None
        or std is None
        or not len(mean) == len(std) == channels
        or not all(value > 0 for value in std)
    ):
        raise ValueError(
            f"mean and std must be {channels} floats each, one a channel, with std > 0; got "
            f"mean={mean}, std={std}"
        )
    return (
        torch.tensor(mean, dtype=torch.float32, device=images.device),
        torch.tensor(std, dtype=torch.float32, device=images.device),
    )
