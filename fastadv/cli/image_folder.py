"""A folder of images, one folder a class: read as bytes, and written as PNG files."""

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastadv.cli.user_error import UserError, said

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SPLITS = {"train": ("train",), "test": ("test", "val")}
_PLAIN = ("L", "1", "RGB", "P", "CMYK", "YCbCr")  # kinds of images that lose nothing here


def classes_of(root: Path, split: str) -> dict[Path, list[Path]]:
    """The images of each folder of a class, both sorted; of root/test where there is one."""
    for name in _SPLITS[split]:
        if (root / name).is_dir():
            root = root / name
            break
    found = {}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            images = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
            if images:
                found[folder] = images
    return found


def read(
    classes: dict[Path, list[Path]],
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...], tuple[str, ...]]:
    """((n, C, H, W) bytes, (n,) labels, files below their folder of classes, classes by label).

    Grey images have one channel, if all are; others three. UserError for sizes that differ.
    """
    reader = _pillow()
    files = [file for images in classes.values() for file in images]
    opened = [_opened(reader, file) for file in files]
    mode = "L" if all(image.mode in ("L", "1") for image in opened) else "RGB"
    arrays = [np.asarray(image.convert(mode)) for image in opened]
    for file, array in zip(files, arrays, strict=True):
        if array.shape != arrays[0].shape:
            raise UserError(
                f"--data: images must have one size; {files[0]} is {_size(arrays[0])}, and {file} "
                f"{_size(array)}: resize them as the model wants them"
            )
    pixels = torch.from_numpy(np.stack(arrays))
    pixels = pixels[:, None] if mode == "L" else pixels.permute(0, 3, 1, 2).contiguous()
    labels = [label for label, images in enumerate(classes.values()) for _ in images]
    names = [
        str(Path(folder.name) / file.relative_to(folder))
        for folder, images in classes.items()
        for file in images
    ]
    return pixels, torch.tensor(labels), tuple(names), tuple(folder.name for folder in classes)


def write(pixels: torch.Tensor, names: Sequence[str], folder: Path) -> None:
    """(n, C, H, W) bytes as PNG files at these names below the folder, all or none of them.

    Read again and compared: a PNG holds exactly the bytes that it was given.
    """
    writer = _pillow()
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        beside = Path(place) / folder.name
        for image, name in zip(pixels, names, strict=True):
            file = (beside / name).with_suffix(".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            array = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
            writer.fromarray(np.ascontiguousarray(array)).save(file)
            with writer.open(file) as again:
                if not np.array_equal(np.asarray(again), array):
                    raise UserError(f"--out: {file} does not hold the bytes that were written")
        beside.replace(folder)


def png_names(names: Sequence[str], y: torch.Tensor) -> list[str]:
    """Where examples are written: as the originals, else by label and number."""
    if not names:
        return [f"{int(label)}/{k:06d}.png" for k, label in enumerate(y)]
    plain = [str(Path(name).with_suffix(".png")) for name in names]
    # a.jpg beside a.png
    return plain if len(set(plain)) == len(plain) else [f"{name}.png" for name in names]


def _opened(reader: Any, file: Path) -> Any:
    try:
        with reader.open(file) as image:
            image.load()
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise UserError(f"--data: {file} is not a readable image: {said(error)}") from error
    opaque = image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema()[0] == 255
    if image.mode not in _PLAIN and not opaque:
        raise UserError(
            f"--data: {file} must be grey or RGB with 8 bits and without transparency; it is "
            f"{image.mode}"
        )
    return image.convert("L") if image.mode == "LA" else image


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise UserError('image files need Pillow: pip install "pillow>=10"') from error


def check_pillow() -> None:
    """UserError, which says what to install, where it is missing."""
    _pillow()
