"""Small files that would take much memory or time."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from faults.corpus import formats
from faults.corpus.formats import ASCII, LONG, encode, png, rows, tiff
from faults.corpus.kind import (
    BMP,
    GIF,
    GRAY_HW,
    JP2,
    JPEG,
    NO_IMAGE,
    SIZE,
    WEBP,
    Kind,
    too_large,
    undecodable,
)
from PIL import Image

from crackvae.schema import Status

SIDE = 60_000
FRAME, HEADER = GIF.index(b"\x2c\0\0\0\0") + 5, JP2.index(b"ihdr") + 4
HUGE = {
    "huge.png": png(SIDE, SIDE, 8, 0, formats.zeros(2**20)),
    "huge.jpg": formats.resized_header(JPEG, SIDE, SIDE),
    "huge.tif": tiff(b"", SIDE, SIDE),
    "huge.gif": GIF[:6] + struct.pack("<HH", SIDE, SIDE) + GIF[10:],
    "huge-frame.gif": GIF[:FRAME] + struct.pack("<HH", SIDE, SIDE) + GIF[FRAME + 4 :],
    "huge.bmp": BMP[:18] + struct.pack("<ii", SIDE, SIDE) + BMP[26:],
    "huge.webp": WEBP[:21] + struct.pack("<I", 16383 | 16383 << 14) + WEBP[25:],
    "huge.jp2": JP2[:HEADER] + struct.pack(">II", SIDE, SIDE) + JP2[HEADER + 8 :],
    "huge.pgm": b"P5 %d %d 255\n" % (SIDE, SIDE),
}
TILE = {322: (LONG, [SIDE]), 323: (LONG, [30_000]), 324: (LONG, [0]), 325: (LONG, [2**20])}
GRAY_ROWS = b"".join(b"\0" + row.tobytes() for row in GRAY_HW)


def _metadata(kind: bytes) -> bytes:
    return png(*SIZE, 8, 0, rows(GRAY_HW), before=formats.chunk(kind, b"x\0\0" + formats.zeros(2**23)))


def _scans(count: int) -> bytes:
    """The last scan of a progressive JPEG once more, and once more: 30 ms each at 16 megapixels."""
    data = encode(Image.new("L", (1000, 1000), 128), "JPEG", quality=50, progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _many_tags() -> bytes:
    tags = b"".join(struct.pack("<HHII", 40_000 + number, ASCII, 2**31, 8) for number in range(2_000))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 2_000) + tags + bytes(4)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


KINDS = [
    Kind(
        "image that claims to be huge",
        "refused by its header, before any pixel is held",
        HUGE,
        **too_large("[0-9]+x[0-9]+ pixels; over 200 MP"),
    ),
    Kind(
        "JPEG that claims 16 megapixels in 20 kB",
        "most of it is missing",
        {"claims.jpg": formats.resized_header(JPEG, 4_000, 4_000)},
        **undecodable("Corrupt JPEG data: .+"),
    ),
    Kind(
        "TIFF of 100x100 pixels in one huge tile",
        "libtiff would unpack the tile, 1.8 GB from 8 MB",
        {"tile.tif": tiff(formats.zeros(2**20), 100, 100, compression=8, tags=TILE)},
        **too_large("60000x30000 pixels; over 200 MP"),
    ),
    Kind(
        "TIFF with a JPEG in it that claims to be huge",
        "the JPEG is asked, before it is checked",
        {"jpeg-in-tile.tif": tiff(formats.resized_header(JPEG, SIDE, SIDE), *SIZE, compression=7)},
        **too_large("60000x60000 pixels; over 200 MP"),
    ),
    Kind(
        "PNG with a bomb in its text or profile",
        "8 MB from 8 kB, and so on",
        {"text.png": _metadata(b"zTXt"), "icc.png": _metadata(b"iCCP")},
        **undecodable("Decompressed data too large .+"),
    ),
    Kind(
        "PNG with more data than pixels",
        "only its pixels are unpacked",
        {"more.png": png(*SIZE, 8, 0, zlib.compress(GRAY_ROWS + bytes(2**23)))},
    ),
    Kind(
        "JPEG of 1,000 scans",
        "94 kB of 16 megapixels would take half a minute",
        {"scans.jpg": _scans(1000), "scans.tif": tiff(_scans(1000), 1000, 1000, compression=7)},
        **undecodable("a JPEG of over 100 scans"),
    ),
    Kind(
        "image that takes for ever",
        "here 1.6 MB of comments; the decoder is ended, twice, after max_seconds",
        {"comments.pgm": b"P2 20 20 255\n" + b"#\n" * 800_000 + b"0 " * 400},
        Status.CRASHED,
        "took over [0-9]+ s",
    ),
    Kind(
        "TIFF tag that claims gigabytes",
        "they are not in the file",
        {
            f"tag-{tag}-{count}.tif": formats.with_count(tiff(GRAY_HW, *SIZE), tag, count)
            for tag, count in ((258, 1000), (273, 2**31), (273, 2**32 - 1), (259, 1000))
        },
        **undecodable(NO_IMAGE),
    ),
    Kind(
        "TIFF of 2,000 tags",
        "none of them says what the image is",
        {"tags.tif": _many_tags()},
        **undecodable(NO_IMAGE),
    ),
    Kind(
        "file over max_megabytes",
        "read up to the limit and no further; one is a sparse file of 1 TB",
        {"long.jpg": JPEG + bytes(4_000_000), "sparse.jpg": _sparse},
        **too_large("over [0-9,]+ bytes"),
    ),
]
