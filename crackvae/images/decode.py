"""Bytes of an image file to gray levels.

Pillow reads the header and whatever is not a JPEG. The pixels of a JPEG come from libjpeg-turbo
by simplejpeg, whose `strict` refuses truncated and damaged files, which OpenCV, and Pillow in part,
silently fill with gray. With header, checks, resizing and the darkness baseline it reads METU at 1.5
times the rate of Pillow's convert and resize alone (benchmarks/performance/decoding.py, one core of an AMD EPYC).

HEIF, which telephones write, comes from libheif by pillow-heif, which lets it paint missing tiles black.
So missing bytes are looked for here; damage inside of compressed data may still come out as pixels.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
import pillow_heif
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from crackvae.errors import ImageError
from crackvae.images.exif import Metadata, read_metadata
from crackvae.schema import Status

Gray = NDArray[np.uint8]
_Pixels = NDArray[np.uint8]  # of one channel or more

# The limit on pixels is the config's; Pillow's own would end files of 179 megapixels and more.
Image.MAX_IMAGE_PIXELS = None
# One TIFF may warn 65,000 times of its metadata; the row says what matters.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# What a source may hold. Others would be surprises: for PostScript, Pillow starts Ghostscript.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "HEIF")
# In one thread, as all decoders are here; thumbnails, depths and the like are other images.
pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
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
_CHROMA_PIXELS = 8  # a side: JPEG keeps no color finer than 2, and a surface has it by the square metre
_HEIF = b"ftyp"  # at byte 4
_TAIL = 64  # bytes
_TIFF = re.compile(rb"II\*\0|MM\0\*")  # EXIF does end in zeros
_OBJECT = re.compile(r"\s*<[^<>]* at 0x[0-9a-f]+>")  # an address differs in every process


class Decoded(NamedTuple):
    """The first frame of an image, upright.

    Attributes:
        gray_HW: Luma (ITU-R BT.601) in 0..255; 16-bit gray is scaled, transparency is ignored.
        chroma_hw2: Cb and Cr, means of 8x8 pixels; None where it was not asked for.
        metadata: When, where and with what it was taken.
    """

    gray_HW: Gray
    chroma_hw2: Gray | None
    metadata: Metadata


def decode(data: bytes, *, min_side: int, max_megapixels: float, color: bool = False) -> Decoded:
    """Decodes an image, once.

    Args:
        data: The bytes of the file.
        min_side: Smallest side that can be judged, in pixels.
        max_megapixels: Largest image that is decoded.
        color: Whether chroma is wanted.

    Raises:
        ImageError: `undecodable`, `too_small`, `too_large`, or `crashed` where memory ran out.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, min_side, max_megapixels)
            if image.format == "TIFF":
                _check_tiff(data, image, max_megapixels)
            if image.format == "HEIF":
                _check_heif(data)
            early = read_metadata(image) if image.format == "TIFF" else None  # loading a TIFF closes it
            gray_HW, chroma_hw2 = of_array(_pixels(data, image, color), color=color)
            metadata = early or read_metadata(image)  # after the pixels: those of a PNG may lie behind them
            orientation = orientation_of(image)  # after the pixels: loading a TIFF turns it upright
    except ImageError:
        raise
    except Exception as error:  # hostile bytes raise nearly anything from a decoder
        reason = _OBJECT.sub("", str(error)) or type(error).__name__
        if isinstance(error, MemoryError) or "out of memory" in reason:  # so says Pillow of OpenJPEG
            raise ImageError(Status.CRASHED, "out of memory") from error
        if data[4:8] == _HEIF and isinstance(error, UnidentifiedImageError):
            reason = "HEIF that is damaged or not of HEVC; convert it to JPEG"
        raise ImageError(Status.UNDECODABLE, reason) from error
    chroma_hw2 = None if chroma_hw2 is None else turned_upright(chroma_hw2, orientation)
    return Decoded(turned_upright(gray_HW, orientation), chroma_hw2, metadata)


def _check_size(size: tuple[int, int], min_side: int, max_megapixels: float) -> None:
    width, height = size
    if min(size) < min_side:
        raise ImageError(Status.TOO_SMALL, f"{width}x{height} pixels; {min_side} a side are needed")
    if width * height > max_megapixels * 1e6:
        raise ImageError(Status.TOO_LARGE, f"{width}x{height} pixels; over {max_megapixels:g} MP")


def orientation_of(image: Image.Image) -> int:
    """How pixels lie that Pillow has loaded, 1..8 (CIPA DC-008, tag 0x0112)."""
    if image.format == "HEIF":
        return 1  # libheif has turned it, by a property of the file that EXIF only repeats
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged metadata does not make the pixels wrong
        return 1


def _jpeg(data: bytes, image: Image.Image, color: bool) -> _Pixels | None:
    """The fast path; None where Pillow has to decide."""
    sequential = "progressive" not in image.info
    if not sequential:
        _check_scans(data)
    if image.mode not in {"L", "RGB"}:
        _strict(data, "CMYK", sequential)  # only checked: Pillow knows which of them Adobe has inverted
        return None
    if color and image.mode == "RGB":
        return _strict(data, "RGB", sequential)
    gray_HW1 = _strict(data, "GRAY", sequential)
    return None if gray_HW1 is None else gray_HW1[:, :, 0]


def _strict(data: bytes, colorspace: str, sequential: bool) -> _Pixels | None:
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


def _check_heif(data: bytes) -> None:
    """Refuses what was cut short, or cut and filled up again: no compressed image ends in equal bytes."""
    for start, size in _extents(data):
        tail = data[start : start + size][-_TAIL:]
        filled = len(tail) == _TAIL == tail.count(tail[:1]) and not _TIFF.search(data, start, start + 16)
        if filled or start + size > len(data):
            raise ImageError(Status.UNDECODABLE, "compressed data is truncated")


def _extents(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the images and metadata of a HEIF file lie: start and size (ISO/IEC 14496-12, 8.11.3)."""
    place = _box(data, _box(data, 0, b"meta") + 4, b"iloc")
    version, stream = data[place], io.BytesIO(data)
    stream.seek(place + 4)

    def number(size: int) -> int:
        return int.from_bytes(stream.read(size), "big")

    widths, wide = number(2), 4 if version == 2 else 2
    offset_width, size_width, base_width, index_width = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(number(wide)):
        number(wide)  # a name
        in_file = version == 0 or number(2) & 15 == 0
        number(2)  # another file
        base = number(base_width)
        for _ in range(number(2)):
            number(index_width if version else 0)
            start, size = base + number(offset_width), number(size_width)
            if in_file:
                yield start, size


def _box(data: bytes, start: int, wanted: bytes) -> int:
    """Where the first box of a kind has its contents, of those that follow each other from `start` (4.2)."""
    while True:
        size, kind, long_size = struct.unpack_from(">I4sQ", data, start)
        if kind == wanted:
            return start + 8
        start += max(8, long_size if size == 1 else size)


def _pixels(data: bytes, image: Image.Image, color: bool) -> _Pixels:
    pixels = _jpeg(data, image, color) if image.format in {"JPEG", "MPO"} else None
    if pixels is not None:
        return pixels
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return of_16_bits(image)
    if image.mode in {"I", "F"}:
        raise ImageError(Status.UNDECODABLE, "32-bit pixels have no known range")
    if not color:
        return np.asarray(image.convert("L"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def of_16_bits(image: Image.Image) -> Gray:
    """The gray levels of an image of 16 bits, or fewer that were scaled to them."""
    level_HW = np.asarray(image)
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        level_HW = level_HW << 4 | level_HW >> 8 if tags[_BITS] == (12,) else level_HW
        level_HW = level_HW if tags.get(_PHOTOMETRIC) else ~level_HW  # 0: white is zero
    if image.format == "HEIF":
        level_HW = level_HW | level_HW >> image.info["bit_depth"]  # 10 or 12 bits, shifted to 16
    return (level_HW // 257).astype(np.uint8)


def of_array(pixels: _Pixels, *, color: bool) -> tuple[Gray, Gray | None]:
    """Gray levels and, if wanted, chroma of an image in memory.

    Args:
        pixels: gray_HW or rgb_HW3.
        color: Whether chroma is wanted.

    Raises:
        ImageError: It is something else.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3} or pixels.shape[2:] not in {(), (3,)}:
        what = f"{pixels.dtype} {pixels.shape}"
        raise ImageError(Status.UNDECODABLE, f"an array must be uint8 of shape (H, W) or (H, W, 3), not {what}")
    height, width = (max(1, length // _CHROMA_PIXELS) for length in pixels.shape[:2])
    if pixels.ndim == 2:
        return pixels, np.full((height, width, 2), 128, np.uint8) if color else None
    gray_HW = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
    if not color:
        return gray_HW, None
    small_hw3 = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return gray_HW, np.ascontiguousarray(cv2.cvtColor(small_hw3, cv2.COLOR_RGB2YCrCb)[:, :, :0:-1])


def turned_upright(pixel_HW: Gray, orientation: int) -> Gray:
    """Undoes an orientation, also of pixel_HWC."""
    if orientation in {5, 6, 7, 8}:
        pixel_HW = pixel_HW.swapaxes(0, 1)
    if orientation in {2, 3, 6, 7}:
        pixel_HW = pixel_HW[:, ::-1]
    if orientation in {3, 4, 7, 8}:
        pixel_HW = pixel_HW[::-1]
    return np.ascontiguousarray(pixel_HW)
