"""Bytes of an image file to gray levels.

Pillow reads the header and whatever is not a JPEG. The pixels of a JPEG come from libjpeg-turbo
by simplejpeg, whose `strict` refuses truncated and damaged files, which OpenCV, and Pillow in part,
silently fill with gray. With header, checks, resizing and the darkness baseline it reads METU at 1.3
times the rate of Pillow's convert and resize alone (benchmarks/speed.py, one core of an AMD EPYC).
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from crackvae.errors import ImageError
from crackvae.schema import Status

Gray = NDArray[np.uint8]

# The limit on pixels is the config's; Pillow's own would end files of 179 megapixels and more.
Image.MAX_IMAGE_PIXELS = None
# One TIFF may warn 65,000 times of its metadata; the row says what matters.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What a source may hold. Others would be surprises: for PostScript, Pillow starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag
# Of TIFF 6.0.
_PAGE_KIND, _BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 254, 258, 259, 262, 284, 339
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
# libjpeg's warnings of pixels that are lost; it tells the last one only. It also warns of what
# loses none, such as the stray bytes that some cameras leave before the end (D9): 8 of them, where
# damage leaves hundreds. Those before a restart marker, a scan (DA) or a Huffman table (C4) are the
# rest of something damaged: other pixels come out.
_LOST_PIXELS = re.compile(
    r"premature end of|bad .*code|instead of RST|before marker 0x(d[0-7a]|c4)|\d{3} extra.* marker 0xd9",
    re.I,
)
_END = b"\xff\xd9"
_MAX_SCANS = 100  # of a progressive JPEG; cameras write about 10. 1,000 of 16 megapixels in 94 kB take 30 s
_HEIF = b"ftyp"  # at byte 4; what telephones write unless told otherwise
_OBJECT = re.compile(r"\s*<[^<>]* at 0x[0-9a-f]+>")  # an address differs in every process


def decode_gray(data: bytes, *, min_side: int, max_megapixels: float) -> Gray:
    """Decodes the first frame of an image, upright.

    Args:
        data: The bytes of the file.
        min_side: Smallest side that can be judged, in pixels.
        max_megapixels: Largest image that is decoded.

    Returns:
        gray_HW: Luma (ITU-R BT.601) in 0..255; 16-bit gray is scaled, transparency is ignored.

    Raises:
        ImageError: `undecodable`, `too_small`, `too_large`, or `crashed` where memory ran out.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, min_side, max_megapixels)
            if image.format == "TIFF":
                _check_tiff(data, image, max_megapixels)
            gray_HW = _jpeg(data, image) if image.format in {"JPEG", "MPO"} else None
            if gray_HW is None:
                gray_HW = _any(image)
            orientation = _orientation(image)  # after the pixels: loading a TIFF turns it upright
    except ImageError:
        raise
    except Exception as error:  # hostile bytes raise nearly anything from a decoder
        reason = _OBJECT.sub("", str(error)) or type(error).__name__
        if isinstance(error, MemoryError) or "out of memory" in reason:  # so says Pillow of OpenJPEG
            raise ImageError(Status.CRASHED, "out of memory") from error
        if data[4:8] == _HEIF:
            reason = "HEIF is not decoded; convert it to JPEG"
        raise ImageError(Status.UNDECODABLE, reason) from error
    return _upright(gray_HW, orientation)


def _check_size(size: tuple[int, int], min_side: int, max_megapixels: float) -> None:
    width, height = size
    if min(size) < min_side:
        raise ImageError(Status.TOO_SMALL, f"{width}x{height} pixels; {min_side} a side are needed")
    if width * height > max_megapixels * 1e6:
        raise ImageError(Status.TOO_LARGE, f"{width}x{height} pixels; over {max_megapixels:g} MP")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata does not make the pixels wrong
        return 1


def _jpeg(data: bytes, image: Image.Image) -> Gray | None:
    """The fast path; None where Pillow has to decide."""
    sequential = "progressive" not in image.info
    if not sequential:
        _check_scans(data)
    if image.mode not in {"L", "RGB"}:
        _strict(data, "CMYK", sequential)  # only checked: Pillow knows which of them Adobe has inverted
        return None
    pixels_HWC = _strict(data, "GRAY", sequential)
    return None if pixels_HWC is None else np.asarray(pixels_HWC[:, :, 0], np.uint8)


def _strict(data: bytes, colorspace: str, sequential: bool) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG; None where libjpeg warns of something that loses none."""
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True), np.uint8)
    except ValueError as error:
        # With an end it tells whether that is all that was missing; of a progressive one, whole scans may be.
        if sequential and "end of JPEG file" in str(error) and not data.endswith(_END):
            return _strict(data + _END, colorspace, sequential)
        if _LOST_PIXELS.search(str(error)):
            raise
        return None


def _check_scans(data: bytes) -> None:
    if data.count(b"\xff\xda") > _MAX_SCANS:
        raise ImageError(Status.UNDECODABLE, f"a JPEG of over {_MAX_SCANS} scans")


def _check_tiff(data: bytes, image: Image.Image, max_megapixels: float) -> None:
    """Refuses what would come out as other pixels without a word, or take any amount of memory."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, compression = max(tags.get(_BITS, (1,))), tags.get(_COMPRESSION)
    _check_size((tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1)), 1, max_megapixels)
    if tags.get(_PAGE_KIND, 0) & 1:
        raise ImageError(Status.UNDECODABLE, "the first page is a thumbnail")
    if bits < 32 and 2 in tags.get(_SAMPLE_FORMAT, ()):
        raise ImageError(Status.UNDECODABLE, "signed pixels have no known range")
    if bits > 8 and tags.get(_PLANES) == 2 and compression == 1:
        raise ImageError(Status.UNDECODABLE, "colors of over 8 bits in separate planes cannot be decoded")
    offsets, counts = (324, 325) if _TILE_WIDTH in tags else (273, 279)
    if compression in {7, 8, 32946}:  # JPEG, deflate: what libtiff does not check to the end
        for start, count in zip(tags[offsets], tags[counts], strict=True):
            stripe = data[start : start + count]
            if compression == 7:
                _check_jpeg_stripe(stripe, tags, max_megapixels)
            else:
                _check_deflated(stripe, max_megapixels)


def _check_jpeg_stripe(stripe: bytes, tags: Mapping[int, Any], max_megapixels: float) -> None:
    if 347 in tags:  # tables that all stripes share, a JPEG too: one start, one end
        stripe = tags[347][:-2] + stripe[2:]
    _check_scans(stripe)
    height, width, *_ = simplejpeg.decode_jpeg_header(stripe)
    _check_size((width, height), 1, max_megapixels)
    _strict(stripe, "GRAY" if len(tags[_BITS]) < 4 else "CMYK", False)


def _check_deflated(stripe: bytes, max_megapixels: float) -> None:
    unpacker, size = zlib.decompressobj(), 0
    while stripe and not unpacker.eof:
        size += len(unpacker.decompress(stripe, 2**20))
        stripe = unpacker.unconsumed_tail
        if size > max_megapixels * 8e6:
            raise ImageError(Status.TOO_LARGE, f"a stripe of over {max_megapixels * 8:g} MB")
    if not unpacker.eof:
        raise ImageError(Status.UNDECODABLE, "compressed data is truncated")


def _any(image: Image.Image) -> Gray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        level_HW = np.asarray(image)  # 16-bit gray; of a PGM, scaled to it
        if image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            level_HW = level_HW << 4 | level_HW >> 8 if tags[_BITS] == (12,) else level_HW
            level_HW = level_HW if tags.get(_PHOTOMETRIC) else ~level_HW  # 0: white is zero
        return (level_HW // 257).astype(np.uint8)
    if image.mode in {"I", "F"}:
        raise ImageError(Status.UNDECODABLE, "32-bit pixels have no known range")
    return np.asarray(image.convert("L"))


def _upright(gray_HW: Gray, orientation: int) -> Gray:
    """Undoes the EXIF orientation 1..8 (CIPA DC-008, tag 0x0112)."""
    if orientation in {5, 6, 7, 8}:
        gray_HW = gray_HW.T
    if orientation in {2, 3, 6, 7}:
        gray_HW = gray_HW[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        gray_HW = gray_HW[::-1]
    return np.ascontiguousarray(gray_HW)
