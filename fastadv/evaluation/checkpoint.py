"""Results so far, written atomically, and what they are results of."""

import hashlib
import io
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

_FORMAT = 1  # raised when the fields of Progress change
_COLUMNS = {
    "clean_correct": torch.bool,
    "success": torch.bool,
    "step": torch.int64,
    "distance": torch.float64,
}
_FINGERPRINT = {
    "attack": "attack",
    "model": "model (the SHA-256 of its structure and weights)",
    "version": "version of fastadv",
    "n": "number of samples",
}


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
    rows = tensor.detach().cpu().contiguous()
    return rows.reshape(-1).view(torch.uint8).numpy()


@dataclass
class Progress:
    """Results of the first `done` samples, in the order of the data, and their running sums.

    clean_correct, success, step, distance: (done,) on the CPU. digest: of the data of these
    samples. warnings: samples for each code of `AttackWarning`.
    """

    attack: str
    model: str
    version: str
    n: int | None
    digest: str = ""
    finished: bool = False
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    warnings: dict[str, int] = field(default_factory=dict)
    columns: dict[str, torch.Tensor] = field(
        default_factory=lambda: {k: torch.empty(0, dtype=v) for k, v in _COLUMNS.items()}
    )

    @property
    def done(self) -> int:
        return len(self.columns["success"])

    def extend(self, **block: torch.Tensor) -> None:
        for name, kind in _COLUMNS.items():
            self.columns[name] = torch.cat([self.columns[name], block[name].cpu().to(kind)])

    def save(self, path: str | os.PathLike[str]) -> None:
        content = io.BytesIO()
        torch.save({"format": _FORMAT, **asdict(self)}, content)
        write_atomically(path, content.getvalue())

    def restored(self, path: str | os.PathLike[str]) -> "Progress":
        """The progress in `path`, or this one if there is no file; ValueError if it is another's,
        FileNotFoundError if there is not even a folder for it.

        The data are compared later, as they are read, and then the predictions: see `check_data`
        and `refuse_model`.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"checkpoint {path}: there is no folder {path.parent}")
        if not path.exists():
            return self
        saved = _read(path)
        for name, what in _FINGERPRINT.items():
            mine, theirs = getattr(self, name), saved[name]
            if mine != theirs:
                raise ValueError(
                    f"checkpoint {path} belongs to another {what}: {_short(theirs)}, not "
                    f"{_short(mine)}. Choose another path, or delete it to start again"
                )
        return Progress(**{k: v for k, v in saved.items() if k != "format"})

    def refuse_model(self, path: str | os.PathLike[str]) -> NoReturn:
        raise ValueError(
            f"checkpoint {path} belongs to another model: the one here classifies its first clean "
            "samples otherwise. Choose another path, or delete it to start again"
        )

    def check_data(self, digest: str, path: str | os.PathLike[str] | None) -> None:
        """Raises ValueError unless the data read again are those of the checkpoint."""
        if digest != self.digest:
            raise ValueError(
                f"checkpoint {path} belongs to other data: its {self.done} samples are not the "
                "first ones here, in this order (a loader that shuffles, or files that changed). "
                "Choose another path, or delete it to start again"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or foreign file raises nearly anything
        raise ValueError(
            f"{path} is not a checkpoint of fastadv.evaluate: {type(error).__name__}. Choose "
            "another path, or delete it to start again"
        ) from error
    expected = {"format", *Progress.__dataclass_fields__}
    if not isinstance(saved, dict) or set(saved) != expected or saved["format"] != _FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of this version of fastadv.evaluate. Choose another "
            "path, or delete it to start again"
        )
    return saved


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) != 64 else text[:12]  # a SHA-256
