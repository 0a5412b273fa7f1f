"""Whole images, whose gray levels are known."""

from __future__ import annotations

import struct

import numpy as np
from faults.corpus.formats import adam7, chunk, encode, lossless_jpeg, png, rows
from faults.corpus.kind import (
    BLACK_WHITE_HW,
    BMP,
    GIF,
    GRAY16_HW,
    GRAY_HW,
    HEIGHT,
    JP2,
    JPEG,
    NO_IMAGE,
    PNG,
    PROGRESSIVE,
    SIZE,
    SMOOTH_HW,
    WEBP,
    Kind,
    exif,
    gray,
    jpeg,
    undecodable,
)
from PIL import Image, ImageCms

from crackvae.schema import Status

COLOR = gray(SMOOTH_HW, "RGB")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# How a camera stores a scene that the EXIF orientation then turns upright (CIPA DC-008).
STORED = {
    1: SMOOTH_HW,
    2: SMOOTH_HW[:, ::-1],
    3: SMOOTH_HW[::-1, ::-1],
    4: SMOOTH_HW[::-1],
    5: SMOOTH_HW.T,
    6: np.rot90(SMOOTH_HW),
    7: SMOOTH_HW[::-1, ::-1].T,
    8: np.rot90(SMOOTH_HW, -1),
}
BROKEN_EXIF = (b"", b"MM\0*\xff\xff\xff\xff", b"II*\0junk", b"II*\0\x08\0\0\0" + b"\xff" * 40)
FRAME = JPEG.index(b"\xff\xc0")
SCALED, AS_STORED, EXACT, FIRST = "scaled to 8 bits, not clipped", "levels are taken as stored", "exact", "the first"


def _smooth(name: str, why: str, files: dict[str, bytes]) -> Kind:
    return Kind(name, why, files, gray_HW=SMOOTH_HW, off=1)


JPEGS = [
    _smooth("color JPEG", "BT.601 luma", {"color.jpg": JPEG}),
    _smooth("gray JPEG", "a scanner writes it", {"gray.jpg": encode(gray(SMOOTH_HW), "JPEG", quality=100)}),
    _smooth("progressive JPEG", "a camera may write it", {"progressive.jpg": PROGRESSIVE}),
    _smooth("JPEG with restart markers", "a camera may write it", {"restart.jpg": jpeg(restart_marker_rows=1)}),
    _smooth("CMYK JPEG", "Adobe stores it inverted", {"cmyk.jpg": encode(COLOR.convert("CMYK"), "JPEG", quality=100)}),
    _smooth("ICC profile", AS_STORED, {"profile.jpg": jpeg(icc_profile=PROFILE)}),
    Kind("lossless JPEG", "libjpeg-turbo knows it", {"lossless.jpg": lossless_jpeg(GRAY_HW)}),
    _smooth(
        "MPO of two images",
        "DJI's drones write it; the first is the photograph",
        {
            "drone.jpg": encode(
                COLOR, "MPO", save_all=True, append_images=[COLOR.transpose(1)], quality=100, subsampling=0
            )
        },
    ),
    _smooth(
        "EXIF orientation 1 to 8",
        "scored upright",
        {f"turned/{tag}.jpg": jpeg(stored_HW, exif=exif(tag)) for tag, stored_HW in STORED.items()},
    ),
    _smooth("EXIF orientation that does not exist", "taken as stored", {"turned/9.jpg": jpeg(exif=exif(9))}),
    _smooth(
        "broken EXIF",
        "damaged metadata does not spoil the pixels",
        {f"broken-exif/{i}.jpg": jpeg(exif=b"Exif\0\0" + tags) for i, tags in enumerate(BROKEN_EXIF)},
    ),
    Kind(
        "12-bit JPEG",
        "Pillow does not read it",
        {"12-bit.jpg": JPEG[: FRAME + 4] + b"\x0c" + JPEG[FRAME + 5 :]},
        **undecodable(NO_IMAGE),
    ),
]

DEEP_HW = GRAY16_HW.astype(">u2")
NIBBLE_HW = GRAY_HW >> 4
NIBBLES = rows(NIBBLE_HW[:, ::2] << 4 | NIBBLE_HW[:, 1::2])
ALPHA = Image.merge("LA", [gray(), gray(np.indices(GRAY_HW.shape).sum(0).astype(np.uint8))])
PALETTE = Image.fromarray(255 - GRAY_HW, "P")
PALETTE.putpalette([255 - level for level in range(256) for _ in range(3)])
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", SIZE, level) for level in ("black", "white")]}

PNGS = [
    Kind("gray PNG", EXACT, {"gray.png": PNG}),
    Kind(
        "1-bit PNG",
        "black and white",
        {"1-bit.png": encode(Image.fromarray(BLACK_WHITE_HW > 0), "PNG")},
        gray_HW=BLACK_WHITE_HW,
    ),
    Kind("4-bit PNG", SCALED, {"4-bit.png": png(*SIZE, 4, 0, NIBBLES)}, gray_HW=NIBBLE_HW * 17),
    Kind(
        "16-bit PNG",
        SCALED,
        {
            "16-gray.png": png(*SIZE, 16, 0, rows(DEEP_HW)),
            "16-color.png": png(*SIZE, 16, 2, rows(np.repeat(DEEP_HW[..., None], 3, 2))),
            "16-alpha.png": png(*SIZE, 16, 4, rows(np.repeat(DEEP_HW[..., None], 2, 2))),
            "16-color-alpha.png": png(*SIZE, 16, 6, rows(np.repeat(DEEP_HW[..., None], 4, 2))),
        },
    ),
    Kind(
        "interlaced PNG",
        EXACT,
        {
            "interlaced.png": png(*SIZE, 8, 0, adam7(GRAY_HW), interlaced=1),
            "interlaced-16.png": png(*SIZE, 16, 0, adam7(DEEP_HW), interlaced=1),
        },
    ),
    Kind(
        "PNG with gamma",
        AS_STORED,
        {"gamma.png": png(*SIZE, 8, 0, rows(GRAY_HW), before=chunk(b"gAMA", struct.pack(">I", 100_000)))},
    ),
    Kind("alpha", "ignored: the levels below it are what was photographed", {"alpha.png": encode(ALPHA, "PNG")}),
    Kind(
        "palette",
        "looked up; a transparent color is ignored",
        {"palette.png": encode(PALETTE, "PNG"), "palette-alpha.png": encode(PALETTE, "PNG", transparency=3)},
    ),
    Kind(
        "animated PNG, GIF, WebP",
        "the first frame",
        {
            "animated.png": encode(gray(mode="RGB"), "PNG", **FRAMES),
            "animated.gif": encode(gray(), "GIF", **FRAMES),
            "animated.webp": encode(gray(mode="RGB"), "WEBP", lossless=True, **FRAMES),
        },
    ),
]


def _top_down() -> bytes:
    data = bytearray(encode(gray(GRAY_HW[::-1]), "BMP"))
    data[22:26] = struct.pack("<i", -HEIGHT)
    return bytes(data)


def _pgm(most: int) -> bytes:
    level_HW = (GRAY_HW.astype(np.int64) * most + 254) // 255
    return b"P5 %d %d %d\n" % (*SIZE, most) + level_HW.astype("u1" if most < 256 else ">u2").tobytes()


PLAIN = b"P2 %d %d 255\n" % SIZE + b" ".join(b"%d" % level for level in GRAY_HW.ravel())
WIDE_HW = np.tile(GRAY_HW[:32], (1, 289))[:, :30_000]

OTHERS = [
    Kind("GIF", EXACT, {"gray.gif": GIF}),
    Kind("WebP", "exact where it is lossless", {"gray.webp": WEBP}),
    Kind("BMP, from either end", EXACT, {"gray.bmp": BMP, "top-down.bmp": _top_down()}),
    Kind(
        "JPEG 2000 of 8 and 16 bits",
        SCALED,
        {"gray.jp2": JP2, "16-bit.jp2": encode(Image.fromarray(GRAY16_HW), "JPEG2000")},
    ),
    Kind("PGM of 8, 12 and 16 bits", SCALED, {f"{most}.pgm": _pgm(most) for most in (255, 4095, 65535)}),
    Kind("PGM in plain text", EXACT, {"plain.pgm": PLAIN}),
    Kind("30,000 pixels wide", "any shape will do", {"wide.png": encode(gray(WIDE_HW), "PNG")}, gray_HW=WIDE_HW),
    Kind(
        "1x1, 1xN, Nx1",
        "too few pixels to judge",
        {f"{w}x{h}.png": encode(Image.new("L", (w, h)), "PNG") for w, h in ((1, 1), (1, 500), (500, 1), (15, 500))},
        Status.TOO_SMALL,
        "[0-9]+x[0-9]+ pixels; 16 a side are needed",
    ),
]

KINDS = JPEGS + PNGS + OTHERS
