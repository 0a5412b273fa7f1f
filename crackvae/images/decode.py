"""Bytes of an image file to gray levels.

Pillow reads the header and whatever is not a JPEG. The pixels of a JPEG come from libjpeg-turbo
by simplejpeg, whose `strict` refuses truncated and damaged files, which OpenCV, and Pillow in part,
silently fill with gray. With header, checks, resizing and the darkness baseline it reads METU at 1.3
times the rate of Pillow's convert and resize alone (benchmarks/speed.py, one core of an AMD EPYC).
"""

from __future__ import annotations

import io
import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from crackvae.errors import ImageError
from crackvae.schema import Status

Gray = NDArray[np.uint8]

# The limit on pixels is the config's; Pillow's own would end files of 179 megapixels and more.
Image.MAX_IMAGE_PIXELS = None

# What a source may hold. Others would be surprises: for PostScript, Pillow starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag
# libjpeg's warnings of pixels that are lost; it tells the last one only. It also warns of what
# loses none, such as the stray bytes that some cameras leave. Those before a restart marker, a scan
# (DA) or a Huffman table (C4) are the rest of something damaged: other pixels come out.
_LOST_PIXELS = re.compile(r"premature end of data|bad .*code|instead of RST|before marker 0x(d[0-7a]|c4)", re.I)
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
        ImageError: `undecodable`, `too_small` or `too_large`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.size, min_side, max_megapixels)
            gray_HW = _jpeg(data, image) if image.format in {"JPEG", "MPO"} else None
            if gray_HW is None:
                gray_HW = _any(image)
            orientation = _orientation(image)  # after the pixels: loading a TIFF turns it upright
    except ImageError:
        raise
    except Exception as error:  # hostile bytes raise nearly anything from a decoder
        reason = _OBJECT.sub("", str(error)) or type(error).__name__
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
    colorspace = "GRAY" if image.mode in {"L", "RGB"} else "CMYK"
    try:
        pixels_HWC = simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True)
    except ValueError as error:
        if _LOST_PIXELS.search(str(error)):
            raise
        return None
    # CMYK is only checked: Pillow knows which of them Adobe has inverted.
    return np.asarray(pixels_HWC[:, :, 0], np.uint8) if colorspace == "GRAY" else None


def _any(image: Image.Image) -> Gray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return (np.asarray(image) // 257).astype(np.uint8)  # 16-bit gray; of a PGM, scaled to it
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
