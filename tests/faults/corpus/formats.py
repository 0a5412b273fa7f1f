"""Image files byte by byte: what Pillow does not write, and what nobody should."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

BYTE, ASCII, SHORT, LONG, BYTES = 1, 2, 3, 4, 7  # types of a TIFF tag
_CODE = {BYTE: "B", ASCII: "B", SHORT: "H", LONG: "I", BYTES: "B"}
_OFFSETS = (273, 324)  # of strips and tiles; given relative to the pixel data

Tags = Mapping[int, tuple[int, Sequence[int]]]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image as Pillow writes it."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(
    pixels: np.ndarray | bytes,
    width: int,
    height: int,
    *,
    bits: Sequence[int] = (8,),
    order: str = "<",
    big: bool = False,
    tags: Tags | None = None,
    **named: int,
) -> bytes:
    """A TIFF of one strip; directory first, so that a cut takes pixels.

    Args:
        pixels: As they are stored.
        width: Columns.
        height: Rows.
        bits: Of each sample.
        order: `<` or `>`.
        big: BigTIFF.
        tags: Further tags, or other values: number to type and values.
        named: compression, photometric, planes, sample_format, orientation, fill_order.
    """
    data = pixels if isinstance(pixels, bytes) else pixels.tobytes()
    numbers = {"compression": 259, "photometric": 262, "planes": 284, "sample_format": 339, "orientation": 274}
    all_tags: dict[int, tuple[int, Sequence[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, bits),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [0]),
        277: (SHORT, [len(bits)]),
        278: (LONG, [height]),
        279: (LONG, [len(data)]),
        **{numbers[name]: (SHORT, [value]) for name, value in named.items()},
        **(tags or {}),
    }
    if 324 in all_tags:
        del all_tags[273], all_tags[278], all_tags[279]
    return directory(all_tags, data, order, big)


def directory(tags: Tags, data: bytes, order: str = "<", big: bool = False) -> bytes:
    """A TIFF of these tags, and the pixel data behind them."""
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 16) if big else (42, 8)))
    count, entry, inline, offset = ("Q", "HHQ", 8, "Q") if big else ("H", "HHI", 4, "I")
    size = struct.calcsize

    def packed(kind: int, values: Sequence[int]) -> bytes:
        return struct.pack(f"{order}{len(values)}{_CODE[kind]}", *values)

    outside = len(head) + size("=" + count) + len(tags) * (size("=" + entry) + inline) + size("=" + offset)
    start = outside + sum(len(packed(*tag)) for tag in tags.values() if len(packed(*tag)) > inline)
    entries, extra = b"", b""
    for number in sorted(tags):
        kind, values = tags[number]
        value = packed(kind, [start + v for v in values] if number in _OFFSETS else values)
        entries += struct.pack(order + entry, number, kind, len(values))
        if len(value) > inline:
            entries += struct.pack(order + offset, outside + len(extra))
            extra += value
        else:
            entries += value.ljust(inline, b"\0")
    return head + struct.pack(order + count, len(tags)) + entries + bytes(size("=" + offset)) + extra + data


def with_count(data: bytes, number: int, count: int) -> bytes:
    """A little-endian TIFF in which a tag claims another number of values."""
    changed = bytearray(data)
    for entry in range(10, 10 + 12 * struct.unpack_from("<H", data, 8)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == number:
            struct.pack_into("<I", changed, entry + 4, count)
    return bytes(changed)


def twelve_bits(level_HW: np.ndarray) -> bytes:
    """Levels 0..4095, two in three bytes, as TIFF packs them."""
    first, second = level_HW.reshape(-1, 2).astype(int).T
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(
    width: int, height: int, bits: int, color: int, data: bytes, *, before: bytes = b"", interlaced: int = 0
) -> bytes:
    """A PNG of compressed rows; `before` are chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    parts = chunk(b"IHDR", header), before, chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rows(pixels: np.ndarray) -> bytes:
    """Rows of a PNG, unfiltered and compressed."""
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))


def adam7(pixels: np.ndarray) -> bytes:
    """Rows of an interlaced PNG (its specification, section 8.2)."""
    starts = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = [pixels[y::down, x::right] for y, x, down, right in starts]
    return zlib.compress(b"".join(b"\0" + row.tobytes() for part in passes for row in part))


def zeros(size: int) -> bytes:
    """So many zeros, compressed a thousand times."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size >> 20)) + packer.flush()


def lossless_jpeg(gray_HW: np.ndarray) -> bytes:
    """JPEG process 14 (ITU-T T.81, annex H), as in raw files and medicine: each pixel from its left."""
    height, width = gray_HW.shape
    left_HW = np.zeros_like(gray_HW, int)
    left_HW[:, 1:] = gray_HW[:, :-1]
    left_HW[1:, 0] = gray_HW[:-1, 0]
    left_HW[0, 0] = 128
    bits = ""
    for step in (gray_HW.astype(int) - left_HW).ravel().tolist():
        size = abs(step).bit_length()
        bits += f"{size:04b}"  # the Huffman code of size n is n, in 4 bits
        if size:
            bits += f"{step if step > 0 else step + 2**size - 1:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    codes = bytes([0, 0, 0, 9] + [0] * 12) + bytes(range(9))
    frame = struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)
    return (
        b"\xff\xd8"
        + segment(0xC3, frame)
        + segment(0xC4, b"\0" + codes)
        + segment(0xDA, b"\1\1\0\1\0\0")
        + data
        + b"\xff\xd9"
    )


def segment(marker: int, data: bytes) -> bytes:
    """A marker segment of a JPEG."""
    return bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data


def resized_header(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    frame = next(jpeg.index(bytes([0xFF, kind])) for kind in (0xC0, 0xC2) if bytes([0xFF, kind]) in jpeg)
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]
