"""No images, and parts of images."""

from __future__ import annotations

import io
import re
import zlib

from faults.corpus import formats
from faults.corpus.formats import BYTES, encode, rows, tiff
from faults.corpus.kind import (
    BMP,
    GIF,
    GRAY_HW,
    JP2,
    JPEG,
    NO_IMAGE,
    PNG,
    PROGRESSIVE,
    SIZE,
    SMOOTH_HW,
    WEBP,
    Kind,
    gray,
    undecodable,
)
from PIL import Image

HEIF = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EOF\n"
HALF = len(JPEG) // 2
END = b"\xff\xd9"
SCANS = [match.start() for match in re.finditer(b"\xff\xda", PROGRESSIVE)]
STRIP = encode(gray(SMOOTH_HW), "JPEG", quality=95)
DEFLATED = zlib.compress(GRAY_HW.tobytes())
HOLE = len(DEFLATED) // 2
WHOLE = {"jpg": JPEG, "png": PNG, "tif": tiff(GRAY_HW, *SIZE), "gif": GIF, "bmp": BMP, "jp2": JP2, "webp": WEBP}
LOST = "pixels are missing, and none are made up"


def _cut(suffix: str) -> dict[str, bytes]:
    data = WHOLE[suffix]
    return {f"cut/{tenth}-tenths.{suffix}": data[: len(data) * tenth // 10] for tenth in range(1, 10)}


def _torn_behind_tables() -> bytes:
    """As libtiff writes it: the stripes have their tables in common."""
    image = Image.open(io.BytesIO(encode(gray(SMOOTH_HW), "TIFF", compression="jpeg", quality=95)))
    tables, [start], [count] = (image.tag_v2[tag] for tag in (347, 273, 279))
    half = image.fp.getvalue()[start : start + count // 2] + END
    return tiff(half, *SIZE, compression=7, tags={347: (BYTES, tables)})


def _wrong_checksum() -> bytes:
    data = rows(GRAY_HW)
    return PNG[:33] + formats.chunk(b"IDAT", data).replace(data[50:60], bytes(10)) + PNG[-12:]


KINDS = [
    Kind("empty file", "an interrupted copy leaves one", {"empty.jpg": b""}, **undecodable(NO_IMAGE)),
    Kind("text named .jpg", "a suffix is no proof", {"text.jpg": b"no image\n" * 99}, **undecodable(NO_IMAGE)),
    Kind("web page named .jpg", "a failed download leaves it", {"404.jpg": b"<html>404" * 9}, **undecodable(NO_IMAGE)),
    Kind("zeros", "a copy that reserved its place leaves them", {"zeros.png": bytes(5000)}, **undecodable(NO_IMAGE)),
    Kind("PostScript", "Pillow would run it in Ghostscript", {"script.png": POSTSCRIPT}, **undecodable(NO_IMAGE)),
    Kind(
        "HEIF",
        "telephones write it; a row says so",
        {"telephone.heic": HEIF, "renamed.jpg": HEIF},
        **undecodable("HEIF that is damaged or not of HEVC; convert it to JPEG"),
    ),
    Kind("PNG named .jpg", "the content counts, not the suffix", {"png.jpg": PNG}),
    Kind("JPEG named .TIF", "the same, in capitals", {"JPEG.TIF": JPEG}, gray_HW=SMOOTH_HW, off=1),
    *(Kind(f"{suffix} cut at every tenth", LOST, _cut(suffix), **undecodable(".+")) for suffix in WHOLE),
    Kind(
        "progressive JPEG cut between scans",
        "whole scans are missing",
        {"cut/scans.jpg": PROGRESSIVE[: SCANS[4]]},
        **undecodable(".+"),
    ),
    Kind(
        "cut JPEG, closed again",
        "libjpeg would fill it with gray",
        {"cut/closed.jpg": JPEG[:HALF] + END},
        **undecodable("Corrupt JPEG data: premature end of data segment"),
    ),
    Kind(
        "JPEG with a tail of zeros",
        "a copy that reserved its place; Pillow decodes some of them",
        {"cut/zeros.jpg": JPEG[:HALF] + bytes(len(JPEG) - HALF), "cut/f6.jpg": JPEG[:HALF] + b"\xf6" * HALF},
        **undecodable(".+"),
    ),
    Kind(
        "JPEG with a hole of zeros",
        "a lost sector of the card",
        {"cut/hole.jpg": JPEG[: HALF - 512] + bytes(1024) + JPEG[HALF + 512 :]},
        **undecodable("Corrupt JPEG data: .+"),
    ),
    Kind("JPEG without its end marker", "all pixels are there", {"no-end.jpg": JPEG[:-2]}, gray_HW=SMOOTH_HW, off=1),
    Kind(
        "JPEG with a few stray bytes before its end",
        "some cameras write them",
        {"stray.jpg": JPEG[:-2] + bytes(8) + END},
        gray_HW=SMOOTH_HW,
        off=1,
    ),
    Kind("text after the image", "it is whole", {"appended.jpg": JPEG + b"text" * 99}, gray_HW=SMOOTH_HW, off=1),
    Kind("PNG with a wrong checksum", LOST, {"checksum.png": _wrong_checksum()}, **undecodable(".+")),
    Kind(
        "torn JPEG in a TIFF",
        "libtiff would fill it with gray",
        {
            "torn-jpeg.tif": tiff(STRIP[: len(STRIP) // 2] + END, *SIZE, compression=7),
            "torn-behind-tables.tif": _torn_behind_tables(),
        },
        **undecodable("Corrupt JPEG data: premature end of data segment"),
    ),
    Kind(
        "TIFF with a tail of zeros or other bytes in its compressed data",
        "libtiff does not compare its checksum",
        {
            "torn-deflate.tif": tiff(DEFLATED[:HOLE].ljust(len(DEFLATED), b"\0"), *SIZE, compression=8),
            "hole-deflate.tif": tiff(DEFLATED[:HOLE] + bytes(8) + DEFLATED[HOLE + 8 :], *SIZE, compression=32946),
        },
        **undecodable("compressed data is truncated|Error -3 while decompressing data.+"),
    ),
]
