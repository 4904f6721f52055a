"""Tensors and shared memory as a kernel sees them: bounds, alignment, what was written."""

import numpy as np

from .races import EmulationError, RaceLog

_SHIFT = 40  # a region's addresses; the upper bits are its number
_MIDDLE = 1 << (_SHIFT - 1)  # where a tensor begins, so that what lies before it is seen too
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class OutOfBounds(EmulationError):
    """An access outside of every tensor that was passed, or of shared memory."""


class Misaligned(EmulationError):
    """An access at an address that its size does not divide."""


class Unwritten(EmulationError):
    """A read of shared memory that nothing wrote."""


class _Region:
    """One storage: its bytes, and which of them the tensors that were passed hold."""

    def __init__(self, data: np.ndarray, item: int) -> None:
        self.data, self.item = data, item
        self.allowed = np.zeros(data.size, np.bool_)
        self.bounds = (data.size, 0)  # what is known to be allowed without a hole
        self.writer: np.ndarray | None = None  # the CTA of each item, -1 for none
        self.reader: np.ndarray | None = None  # -2 for several

    def allow(self, start: int, stop: int) -> None:
        self.allowed[start:stop] = True
        whole = np.flatnonzero(self.allowed)
        first, last = int(whole[0]), int(whole[-1]) + 1
        self.bounds = (first, last) if last - first == whole.size else (0, 0)

    def words(self, size: int, at: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(all words of `size` bytes, (lanes, count) of their indices at bytes `at`)."""
        lead = -self.data.ctypes.data % size  # `at` is aligned, where the storage may not be
        stop = lead + (self.data.size - lead) // size * size
        return self.data[lead:stop].view(_WORDS[size]), (at[:, None] - lead) // size + np.arange(
            count
        )


class GlobalMemory:
    """Storages far apart, at made-up addresses that keep the real ones' alignment.

    Whatever leaves a storage reaches no other one. `map` gives a tensor's address.
    """

    def __init__(self, races: RaceLog) -> None:
        self.races = races
        self.regions: list[_Region] = []
        self.known: dict[int, int] = {}  # where a storage really lies -> its number

    def map(self, data: np.ndarray, start: int, stop: int, item: int) -> int:
        """The address of byte `start` of the storage `data`, of which bytes up to `stop` may be
        touched, in items of `item` bytes."""
        real = data.ctypes.data
        if real not in self.known:
            self.known[real] = len(self.regions)
            self.regions.append(_Region(data, item))
        region = self.regions[self.known[real]]
        region.item = min(region.item, item)
        if stop > start:
            region.allow(start, stop)
        return self._base(self.known[real]) + start

    def _base(self, number: int) -> int:
        return ((number + 1) << _SHIFT) + _MIDDLE + self.regions[number].data.ctypes.data % 4096

    def _places(self, address: np.ndarray, size: int):
        """(region, which lanes or None for all, bytes from its start) of each region touched."""
        if (address & np.uint64(size - 1)).any():
            raise Misaligned(f"{size} bytes at an address that {size} does not divide")
        numbers = (address >> np.uint64(_SHIFT)).astype(np.int64) - 1
        first = int(numbers[0])
        together = (numbers == first).all()
        for number in [first] if together else np.unique(numbers):
            lanes = None if together else np.flatnonzero(numbers == number)
            if not 0 <= number < len(self.regions):
                where = int(address[0 if lanes is None else lanes[0]])
                raise OutOfBounds(f"{size} bytes at {where:#x}, which is in no tensor")
            region = self.regions[number]
            here = address if lanes is None else address[lanes]
            at = (here - np.uint64(self._base(number))).view(np.int64)
            self._demand(region, at, size)
            yield number, lanes, at

    @staticmethod
    def _demand(region: _Region, at: np.ndarray, size: int) -> None:
        low, high = int(at.min()), int(at.max()) + size
        if region.bounds[0] <= low and high <= region.bounds[1]:
            return
        if low >= 0 and high <= region.data.size:
            if region.allowed[at[:, None] + np.arange(size)].all():
                return
        outside = low if low < region.bounds[0] else high - size
        raise OutOfBounds(
            f"{size} bytes at byte {outside} of a storage of {region.data.size}, of which bytes"
            f" {region.bounds[0]} to {region.bounds[1]} were passed"
        )

    def load(self, address: np.ndarray, word: int, count: int, lanes) -> np.ndarray:
        """(lanes, count) words."""
        result = np.empty((len(address), count), _WORDS[word])
        for number, which, at in self._places(address, word * count):
            words, index = self.regions[number].words(word, at, count)
            result[slice(None) if which is None else which] = words[index]
            self._log(number, at, word * count, lanes if which is None else lanes[which], None)
        return result

    def store(self, address: np.ndarray, values: np.ndarray, lanes) -> None:
        """values: (lanes, count) words."""
        word, count = values.itemsize, values.shape[1]
        for number, which, at in self._places(address, word * count):
            words, index = self.regions[number].words(word, at, count)
            new = values if which is None else values[which]
            who = lanes if which is None else lanes[which]
            self._log(number, at, word * count, who, (new, words[index] != new))
            words[index] = new

    def _log(self, number, at, size, lanes, written) -> None:
        region = self.regions[number]
        self.races.between_ctas(region, at, size, lanes, written is not None)
        self.races.add((number << 32) + at, size, lanes, written)


class SharedMemory:
    """The shared memory of some CTAs, each its own; what nothing wrote is not read."""

    def __init__(self, size: int, ctas: int, threads: int, races: RaceLog) -> None:
        self.size, self.threads, self.races = size, threads, races
        self.stride = -(-size // 16) * 16 or 16
        self.data = np.zeros(self.stride * ctas, np.uint8)
        self.written = np.zeros(self.stride * ctas, np.bool_)

    def _at(self, address: np.ndarray, size: int, lanes) -> np.ndarray:
        if (address & np.uint32(size - 1)).any():
            raise Misaligned(f"{size} bytes of shared memory where {size} does not divide")
        last = int(address.max()) + size
        if last > self.size:
            raise OutOfBounds(f"shared memory of {self.size} bytes, up to byte {last}")
        return address.astype(np.int64) + lanes // self.threads * self.stride

    def load(self, address, word: int, count: int, lanes, used: int | None = None) -> np.ndarray:
        """(lanes, count) words; used: which bytes anything depends on, all of them by default."""
        size = word * count
        at = self._at(address, size, lanes)
        read = (
            np.arange(size)
            if used is None
            else np.flatnonzero([used >> i & 1 for i in range(size)])
        )
        if not self.written[at[:, None] + read].all():
            raise Unwritten("a read of shared memory that nothing wrote")
        # bytes that nothing depends on race with nobody
        self.races.add(at, int(read[-1]) + 1, lanes, None, shared=True)
        return self.data.view(_WORDS[word])[at[:, None] // word + np.arange(count)]

    def store(self, address, values: np.ndarray, lanes) -> None:
        word, count = values.itemsize, values.shape[1]
        at = self._at(address, word * count, lanes)
        index = at[:, None] // word + np.arange(count)
        words = self.data.view(_WORDS[word])
        self.races.add(at, word * count, lanes, (values, words[index] != values), shared=True)
        words[index] = values
        self.written[at[:, None] + np.arange(word * count)] = True
