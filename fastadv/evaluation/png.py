"""PNG files of 8 bits a channel, written without another package."""

import struct
import zlib

import torch

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_COLOUR_TYPES = {1: 0, 3: 2}  # grey, red-green-blue


def encoded(image: torch.Tensor) -> bytes:
    """The file of a (1 or 3, H, W) uint8 image.

    W3C, Portable Network Graphics (third edition), sections 5 and 11: a header, one compressed
    chunk of rows, each after a byte 0 (unfiltered), and an end.
    """
    channels, height, width = image.shape
    rows = image.permute(1, 2, 0).reshape(height, width * channels)
    lines = torch.cat([rows.new_zeros(height, 1), rows], 1)
    header = _HEADER.pack(width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines.numpy().tobytes(), 9)), (b"IEND", b"")
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def is_png(content: bytes) -> bool:
    """By its first bytes."""
    return content.startswith(_SIGNATURE) and content[12:16] == b"IHDR"


def size_of(content: bytes) -> tuple[int, int]:
    """(width, height) of a file."""
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
