"""The first adversarial examples of an evaluation, which a report keeps to show them.

While an evaluation goes on they are bytes of pixels in its checkpoints; of several processes, and
of blocks that were begun elsewhere, the first of all are the first of the firsts of each.
"""

import base64
import binascii
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fastadv.evaluation import png
from fastadv.evaluation.samples import Rows

MOST = 8
_SIDE = 256  # pixels; larger images are averaged down
_PICTURES = ("original", "change", "adversarial")


class Pixels(NamedTuple):
    """An example in a checkpoint. pixels: (3, C, H, W) bytes: the sample, the change, what the
    attack made of it."""

    id: int
    label: int
    prediction: int
    pixels: torch.Tensor


class Example(NamedTuple):
    """An adversarial example in a report: PNG files, 8 bits a channel.

    index: of the sample in the data. label: which the model gave it as it is. prediction: the
    model's of the adversarial example. change: grey is none; the largest of an example is black or
    white, whatever it is. Images of more than 256 pixels a side are averaged down.
    """

    index: int
    label: int
    prediction: int
    original: bytes
    change: bytes
    adversarial: bytes


def pixels_of(
    rows: Rows,
    x_adv: torch.Tensor,
    prediction: torch.Tensor,
    broken: torch.Tensor,
    threat: object,
    known: Sequence[Pixels] = (),
) -> list[Pixels]:
    """Of the first of the `broken` rows, (n,) bool; none where they are no images, or would come
    after all that are `known`."""
    bounds = getattr(threat, "bounds", None)
    x = rows.x
    if bounds is None or x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 2:
        return []
    chosen = broken.cpu().nonzero()[:MOST, 0]
    if len(known) >= MOST:
        chosen = chosen[rows.ids[chosen] < known[-1].id]
    if len(chosen) == 0:
        return []
    low, high = (torch.as_tensor(side).detach().cpu().float() for side in bounds)
    span = high - low
    if not bool((span.isfinite() & (span > 0)).all()):
        return []
    at = chosen.to(x.device)
    before, after = ((_small(images[at]) - low) / span for images in (x, x_adv))
    change = (after - before) / _largest(after - before)
    parts = torch.stack([before, 0.5 + 0.5 * change, after], 1).clamp(0, 1)
    found = (255 * parts).round().to(torch.uint8)
    columns = rows.ids[chosen], rows.y[at].cpu(), prediction[at].cpu()
    numbers = [[int(value) for value in column] for column in columns]
    return [Pixels(*row) for row in zip(*numbers, found.unbind(0), strict=True)]


def first(examples: Iterable[Pixels]) -> list[Pixels]:
    """At most `MOST`, in the order of the data, one a sample."""
    by_id = {one.id: one for one in examples}
    return [by_id[index] for index in sorted(by_id)[:MOST]]


def as_pictures(found: Sequence[Pixels]) -> tuple[Example, ...]:
    """For the report."""
    return tuple(Example(*one[:3], *(png.encoded(image) for image in one.pixels)) for one in found)


def written(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """For JSON: pictures in base64."""
    return [
        {k: base64.b64encode(v).decode() if k in _PICTURES else v for k, v in one._asdict().items()}
        for one in examples
    ]


def read(values: object) -> tuple[Example, ...]:
    """What `written` gave; ValueError for anything else."""
    if not isinstance(values, list):
        raise ValueError("examples is not a list")
    return tuple(map(_read_one, values))


def _read_one(value: object) -> Example:
    if not isinstance(value, dict) or set(value) != set(Example._fields):
        raise ValueError(f"an example has other fields than {', '.join(Example._fields)}")
    fields: dict[str, Any] = dict(value)
    for name in Example._fields:
        if name not in _PICTURES and type(value[name]) is not int:
            raise ValueError(f"{name} of an example is {value[name]!r}")
    for name in _PICTURES:
        try:
            fields[name] = base64.b64decode(value[name], validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise ValueError(f"{name} of an example is no base64: {error}") from error
        if not png.is_png(fields[name]):
            raise ValueError(f"{name} of an example is no PNG")
    return Example(**fields)


def _small(images: torch.Tensor) -> torch.Tensor:
    images = images.detach().cpu().float()
    factor = math.ceil(max(images.shape[2:]) / _SIDE)
    return images if factor == 1 else F.avg_pool2d(images, factor, ceil_mode=True)


def _largest(change: torch.Tensor) -> torch.Tensor:
    """(n, 1, 1, 1), 1 where nothing changed."""
    largest = change.abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    return torch.where(largest > 0, largest, 1.0)
