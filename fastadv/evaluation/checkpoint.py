"""Files written atomically, and digests of what results are results of."""

import hashlib
import io
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file by `content`: at any moment, also after kill -9, it is the old or the new.

    Written beside it, synchronised to the disk, then renamed.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself lasts once the directory is on the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_tensors(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """torch.save of the content, as `write_atomically`."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomically(path, buffer.getvalue())


class DataDigest:
    """SHA-256 of the samples seen, the same however they were cut into batches."""

    def __init__(self) -> None:
        self._images, self._labels = hashlib.sha256(), hashlib.sha256()
        self._kind = ""

    def update(self, x: torch.Tensor, y: torch.Tensor) -> None:
        kind = f"{x.dtype}{tuple(x.shape[1:])}"
        if kind != self._kind:
            self._images.update(kind.encode())
            self._kind = kind
        self._images.update(_bytes(x))
        self._labels.update(_bytes(y.to(torch.int64)))

    def hexdigest(self) -> str:
        return self._images.hexdigest() + self._labels.hexdigest()


def fingerprints(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(n,) int64 on the CPU: of each sample the first 8 bytes of the SHA-256 of its dtype, shape,
    values and label; the same however the data were cut, and for labels of any integer type."""
    kind = f"{x.dtype}{tuple(x.shape[1:])}".encode()
    labels = _bytes(y.to(torch.int64)).reshape(len(y), 8)
    size = x.element_size() * math.prod(x.shape[1:])
    images = _bytes(x).reshape(len(x), size)
    found = [
        hashlib.sha256(kind + image.tobytes() + label.tobytes()).digest()[:8]
        for image, label in zip(images, labels, strict=True)
    ]
    numbers = [int.from_bytes(start, "little", signed=True) for start in found]
    return torch.tensor(numbers, dtype=torch.int64)


def digest_of_model(module: torch.nn.Module | None) -> str:
    """SHA-256 of the repr, all parameters and buffers; "" for a plain function, which has none."""
    if module is None:
        return ""
    # an address in a repr, as of a function in extra_repr, is another one in every process
    digest = hashlib.sha256(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module)).encode())
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(_bytes(value))
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> Any:
    rows = tensor.detach().cpu().contiguous().reshape(-1)
    if rows.stride(0) != 1:  # one element of a strided tensor counts as contiguous
        rows = rows.clone(memory_format=torch.contiguous_format)
    return rows.view(torch.uint8).numpy()
