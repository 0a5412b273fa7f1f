"""TIFF: what scanners write, and what has no known gray levels."""

from __future__ import annotations

import struct

import numpy as np
from faults.corpus.formats import LONG, SHORT, Tags, encode, tiff, twelve_bits
from faults.corpus.kind import (
    BLACK_WHITE_HW,
    GRAY16_HW,
    GRAY_HW,
    HEIGHT,
    NO_IMAGE,
    SIZE,
    SMOOTH_HW,
    WIDTH,
    Kind,
    gray,
    undecodable,
)
from PIL import Image

SCALED, SCANNER, JOINED = "scaled to 8 bits, not clipped", "a scanner writes it", "put together"
GUESS, PILLOW = "any choice of black and white would be a guess", "Pillow reads it not at all, or not rightly"
COLOR16_HWC = np.repeat(GRAY16_HW[..., None], 3, 2)
UNIT_HW = GRAY_HW / 255
PACKED = np.packbits(BLACK_WHITE_HW == 0, axis=1)
NEUTRAL_HW = np.full_like(GRAY_HW, 128)
LEVELS = [level * 257 for level in reversed(range(256))] * 3
INK = np.stack([255 - GRAY_HW] * 3 + [np.zeros_like(GRAY_HW)], 2)
TURNED = np.rot90(GRAY16_HW).copy()
SECOND_PAGE = Image.new("L", (30, 20), 200)


def _planes(size: int) -> Tags:
    return {273: (LONG, [0, size, 2 * size]), 279: (LONG, [size] * 3)}


def _tiled() -> bytes:
    padded_HW = np.pad(GRAY_HW, ((0, 8), (0, 8)))
    tiles = [padded_HW[y : y + 16, x : x + 16].tobytes() for y in range(0, 80, 16) for x in range(0, 112, 16)]
    starts, sizes = range(0, 256 * len(tiles), 256), [256] * len(tiles)
    tags = {322: (SHORT, [16]), 323: (SHORT, [16]), 324: (LONG, starts), 325: (LONG, sizes)}
    return tiff(b"".join(tiles), *SIZE, tags=tags)


def _round() -> bytes:
    data = bytearray(tiff(GRAY_HW, *SIZE))
    end = 10 + 12 * struct.unpack_from("<H", data, 8)[0]
    data[end : end + 4] = struct.pack("<I", 8)  # the next page is the first
    return bytes(data)


SCORED = [
    Kind("TIFF of either byte order", SCANNER, {f"{o}.tif": tiff(GRAY_HW, *SIZE, order=o) for o in "<>"}),
    Kind(
        "16-bit TIFF",
        SCALED,
        {
            **{f"16{o}.tif": tiff(GRAY16_HW.astype(o + "u2"), *SIZE, bits=(16,), order=o) for o in "<>"},
            **{
                f"16{o}color.tif": tiff(COLOR16_HWC.astype(o + "u2"), *SIZE, bits=(16,) * 3, photometric=2, order=o)
                for o in "<>"
            },
        },
    ),
    Kind(
        "white-is-zero TIFF of 8 and 16 bits",
        "inverted back, which Pillow does for 8 bits only",
        {
            "white-0.tif": tiff(255 - GRAY_HW, *SIZE, photometric=0),
            "16-white-0.tif": tiff(65535 - GRAY16_HW, *SIZE, bits=(16,), photometric=0),
        },
    ),
    Kind(
        "1-bit TIFF and fax",
        "black and white",
        {
            "1-bit.tif": tiff(PACKED, *SIZE, bits=(1,), photometric=0),
            "fax.tif": encode(Image.fromarray(BLACK_WHITE_HW > 0), "TIFF", compression="group4"),
        },
        gray_HW=BLACK_WHITE_HW,
    ),
    Kind(
        "12-bit TIFF",
        "scaled from 4,095, not from 65,535",
        {"12-bit.tif": tiff(twelve_bits(GRAY_HW.astype(int) * 4095 // 255), *SIZE, bits=(12,))},
        off=1,
    ),
    Kind(
        "compressed TIFF",
        "LZW, deflate, PackBits, Zstandard",
        {
            f"{kind}.tif": encode(gray(), "TIFF", compression=kind)
            for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
        },
    ),
    Kind(
        "JPEG in a TIFF",
        SCANNER,
        {
            "jpeg.tif": tiff(encode(gray(SMOOTH_HW), "JPEG", quality=100), *SIZE, compression=7),
            "jpeg-color.tif": encode(gray(SMOOTH_HW, "RGB"), "TIFF", compression="jpeg", quality=100),
        },
        gray_HW=SMOOTH_HW,
        off=1,
    ),
    Kind(
        "YCbCr and CMYK TIFF",
        "their luma",
        {
            "ycbcr.tif": tiff(np.stack([GRAY_HW, NEUTRAL_HW, NEUTRAL_HW], 2), *SIZE, bits=(8,) * 3, photometric=6),
            "cmyk.tif": tiff(INK, *SIZE, bits=(8,) * 4, photometric=5),
        },
    ),
    Kind(
        "palette TIFF",
        "looked up",
        {"palette.tif": tiff(255 - GRAY_HW, *SIZE, photometric=3, tags={320: (SHORT, LEVELS)})},
    ),
    Kind(
        "TIFF in separate planes",
        JOINED,
        {
            "planes.tif": tiff(
                np.stack([GRAY_HW] * 3), *SIZE, bits=(8,) * 3, photometric=2, planes=2, tags=_planes(GRAY_HW.nbytes)
            )
        },
    ),
    Kind("tiled TIFF", JOINED, {"tiled.tif": _tiled()}),
    Kind("BigTIFF", "a scanner of large originals writes it", {"big.tif": tiff(GRAY_HW, *SIZE, big=True)}),
    Kind(
        "turned TIFF",
        "scored upright",
        {"16-turned.tif": tiff(TURNED, HEIGHT, WIDTH, bits=(16,), orientation=6)},
    ),
    Kind(
        "multi-page TIFF",
        "the first page",
        {"pages.tif": encode(gray(), "TIFF", save_all=True, append_images=[SECOND_PAGE]), "round.tif": _round()},
    ),
]

REFUSED = [
    Kind(
        "32-bit and float pixels",
        GUESS,
        {
            "float.tif": tiff(UNIT_HW.astype("<f4"), *SIZE, bits=(32,), sample_format=3),
            "integer.tif": tiff(GRAY16_HW.astype("<u4"), *SIZE, bits=(32,)),
            "signed-32.tif": tiff(GRAY16_HW.astype("<i4"), *SIZE, bits=(32,), sample_format=2),
            "float.ppm": b"Pf %d %d -1.0\n" % SIZE + UNIT_HW.astype("<f4").tobytes(),
        },
        **undecodable("32-bit pixels have no known range"),
    ),
    Kind(
        "signed pixels",
        GUESS,
        {
            f"signed-{bits}.tif": tiff(GRAY_HW.astype(f"<i{bits // 8}"), *SIZE, bits=(bits,), sample_format=2)
            for bits in (8, 16)
        },
        **undecodable("signed pixels have no known range"),
    ),
    Kind(
        "float TIFF of 16 and 64 bits",
        GUESS,
        {
            f"float-{bits}.tif": tiff(UNIT_HW.astype(f"<f{bits // 8}"), *SIZE, bits=(bits,), sample_format=3)
            for bits in (16, 64)
        },
        **undecodable(NO_IMAGE),
    ),
    Kind(
        "LAB TIFF",
        PILLOW,
        {"lab.tif": tiff(np.stack([GRAY_HW] * 3, 2), *SIZE, bits=(8,) * 3, photometric=8)},
        **undecodable("conversion from LAB to RGB not supported"),
    ),
    Kind(
        "16-bit gray TIFF with alpha",
        PILLOW,
        {"16-alpha.tif": tiff(COLOR16_HWC[..., :2].copy(), *SIZE, bits=(16, 16), tags={338: (SHORT, [2])})},
        **undecodable(NO_IMAGE),
    ),
    Kind(
        "16-bit TIFF in separate planes",
        PILLOW,
        {
            "16-planes.tif": tiff(
                np.stack([GRAY16_HW] * 3),
                *SIZE,
                bits=(16,) * 3,
                photometric=2,
                planes=2,
                tags=_planes(GRAY16_HW.nbytes),
            )
        },
        **undecodable("colors of over 8 bits in separate planes cannot be decoded"),
    ),
    Kind(
        "big-endian BigTIFF",
        PILLOW,
        {"big-big.tif": tiff(GRAY_HW, *SIZE, big=True, order=">")},
        **undecodable(NO_IMAGE),
    ),
    Kind(
        "TIFF that begins with a thumbnail",
        "it is not the photograph",
        {"thumbnail.tif": tiff(GRAY_HW, *SIZE, tags={254: (LONG, [1])})},
        **undecodable("the first page is a thumbnail"),
    ),
]

KINDS = SCORED + REFUSED
