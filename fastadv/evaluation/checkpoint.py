"""Files written atomically, and digests of what results are results of."""

import hashlib
import math
import re
from typing import Any

import torch


class DataDigest:
    """SHA-256 of the samples seen, the same however they were cut into batches; of x, y and what
    the model takes beside x."""

    def __init__(self) -> None:
        self._hashes: list[Any] = []
        self._kinds: list[str] = []

    def update(self, x: torch.Tensor, y: torch.Tensor, *extra: torch.Tensor) -> None:
        for index, column in enumerate((x, _as_labels(y), *extra)):
            if index == len(self._hashes):
                self._hashes.append(hashlib.sha256())
                self._kinds.append("")
            kind = "" if index == 1 and _is_label(column) else _kind(column)
            if kind != self._kinds[index]:
                self._hashes[index].update(kind.encode())
                self._kinds[index] = kind
            self._hashes[index].update(_bytes(column))

    def hexdigest(self) -> str:
        hashes = self._hashes or [hashlib.sha256(), hashlib.sha256()]
        return "".join(one.hexdigest() for one in hashes)


def fingerprints(x: torch.Tensor, y: torch.Tensor, *extra: torch.Tensor) -> torch.Tensor:
    """(n,) int64 on the CPU: of each sample the first 8 bytes of the SHA-256 of its dtype, shape,
    values and label; the same however the data were cut, and for labels of any integer type. Of
    another y, and of extra, dtype and shape count too."""
    columns = [x, _as_labels(y), *extra]
    kinds = [_kind(column) for column in columns]
    if _is_label(columns[1]):
        kinds[1] = ""  # fingerprints of images and labels are for ever
    rows = [_rows(column) for column in columns]
    found = []
    for parts in zip(*rows, strict=True):
        digest = hashlib.sha256()
        for kind, part in zip(kinds, parts, strict=True):
            digest.update(kind.encode())
            digest.update(part)
        found.append(digest.digest()[:8])
    numbers = [int.from_bytes(start, "little", signed=True) for start in found]
    return torch.tensor(numbers, dtype=torch.int64)


def digest_of_model(module: torch.nn.Module | None) -> str:
    """SHA-256 of the repr, all parameters and buffers; "" for a plain function, which has none."""
    if module is None:
        return ""
    digest = hashlib.sha256(without_addresses(repr(module)).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(_bytes(value))
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def without_addresses(text: str) -> str:
    """An address in a repr, as of a function in extra_repr, is another one in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _kind(column: torch.Tensor) -> str:
    return f"{column.dtype}{tuple(column.shape[1:])}"


def _is_label(y: torch.Tensor) -> bool:
    """An integer a sample, of any type."""
    return y.ndim == 1 and not (y.is_floating_point() or y.is_complex())


def _as_labels(y: torch.Tensor) -> torch.Tensor:
    return y.to(torch.int64) if _is_label(y) else y


def _rows(column: torch.Tensor) -> Any:
    """(n, k) the bytes of each."""
    size = column.element_size() * math.prod(column.shape[1:])
    return _bytes(column).reshape(len(column), size)


def _bytes(tensor: torch.Tensor) -> Any:
    rows = tensor.detach().cpu().contiguous().reshape(-1)
    if rows.stride(0) != 1:  # one element of a strided tensor counts as contiguous
        rows = rows.clone(memory_format=torch.contiguous_format)
    return rows.view(torch.uint8).numpy()
