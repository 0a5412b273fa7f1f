"""A photograph with its anomaly map and regions on it, as a JPEG that keeps when and where it was taken.

The colors of a map value are the same in every picture of a model: they depend on its limit alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageFont

from crackvae.images.decode import of_16_bits, orientation_of, turned_upright

CLEAR, FULL = 0.5, 1.5
"""Colors and opacity grow with the map from so many times the limit up to so many."""

SCALE = 20
"""A heat map of squared errors ends at so many times the threshold: at METU's of .012, 62 gray levels off."""

_OPACITY = 0.85  # at the most, so that what lies below stays visible
_LEVELS = np.arange(256, dtype=np.uint8)[:, None]
# Vivid even at its dark end; its lightness only grows: it reads without color vision, and in print.
_COLOR_L3 = cv2.applyColorMap(_LEVELS, cv2.COLORMAP_PLASMA)[:, 0, ::-1]
_OPACITY_L1 = _OPACITY * np.minimum(_LEVELS / 128, 1)
_NARROWEST = 640  # pixels of a picture, so that the bar below a small photograph can be read
_QUALITY = 85
_NEAR = 1.25  # a picture that is larger by less is shrunk without aliasing at a quarter of the cost of means
_MAX_EXIF = 65_000  # bytes; a JPEG segment holds 65,533
_MAX_TAGS = 500  # of a directory; cameras write under 100, a hostile file 65,000
# What describes the file that the pixels came from: its layout (TIFF 6.0), its size, and where other things lay in it.
_LAYOUT = {*range(254, 270), 273, *range(277, 282), 284, 317, *range(320, 326), *range(330, 348), *range(512, 534)}
_LAYOUT |= {ExifTags.IFD.Interop, ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight}
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


def draw(
    photo: Image.Image,
    map_HW: NDArray[np.float32],
    judged_HW: NDArray[np.bool_],
    limit: float,
    boxes: Iterable[Sequence[int]],
    *,
    title: str,
    score: float,
    p_value: float,
    is_bound: bool,
    side: int = 2000,
) -> bytes:
    """Draws the anomaly map and the regions of a photograph on it.

    Args:
        photo: As opened: neither loaded nor turned upright.
        map_HW: Its anomaly map, upright, at any resolution.
        judged_HW: What was judged, at that resolution; the rest is shown dark.
        limit: Of the map.
        boxes: x, y, width and height of each region in pixels of the upright photograph.
        title: Such as the file's name.
        score: Of the photograph.
        p_value: Of the score.
        is_bound: Whether that is an upper bound.
        side: Longest side of the photograph in the picture, in pixels.

    Returns:
        A JPEG with the photograph's EXIF, orientation 1 and no thumbnail.

    Raises:
        OSError: The photograph cannot be decoded; so do other exceptions of Pillow's decoders.
    """
    exif = _exif(photo)  # before the pixels: loading a TIFF closes it
    profile = photo.info.get("icc_profile") if photo.mode == "RGB" else None
    picture, scale = upright(photo, side)
    canvas = heat(np.asarray(picture), map_HW, judged_HW, limit)
    pen = ImageDraw.Draw(canvas)
    for x, y, width, height in boxes:
        box = [x * scale - 2, y * scale - 2, (x + width) * scale + 2, (y + height) * scale + 2]
        pen.rectangle(box, outline="black", width=3)
        pen.rectangle([box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1], outline="white", width=1)
    verdict = f"score {score:.4g}, p {'<=' if is_bound else '='} {p_value:.2g}"
    sheet = _with_bar(canvas, title, verdict, limit)
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=_QUALITY, exif=exif, icc_profile=profile)
    return file.getvalue()


def upright(photo: Image.Image, side: int, data: bytes = b"") -> tuple[Image.Image, float]:
    """The photograph in color, upright, its longest side at most `side`; and its scale.

    With the bytes of the file, a JPEG of 227 pixels a side takes half of Pillow's time: a page has thousands.
    """
    width, height = photo.size
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if (pixels_HW3 := _reduced(photo, data, size)) is not None:
        return Image.fromarray(turned_upright(pixels_HW3, orientation_of(photo))), scale
    photo.draft("RGB", size)  # a JPEG is decoded at a half, a quarter or an eighth
    photo.load()
    orientation = orientation_of(photo)  # after the pixels: loading a TIFF turns it upright
    if photo.mode.startswith("I"):
        photo = Image.fromarray(of_16_bits(photo))
    if photo.size[::-1] == (width, height) and width != height:  # so it was turned
        size = (size[1], size[0])
    picture = photo.convert("RGB").resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return Image.fromarray(turned_upright(np.asarray(picture), orientation)), scale


def _reduced(photo: Image.Image, data: bytes, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """A JPEG at that size, at which libjpeg decodes by eighths; None where Pillow has to."""
    if photo.format not in {"JPEG", "MPO"} or photo.mode != "RGB" or not data:
        return None
    try:
        larger_HW3 = simplejpeg.decode_jpeg(data, "RGB", min_width=size[0], min_height=size[1])
    except ValueError:  # it warns of stray bytes, too
        return None
    is_near = larger_HW3.shape[1] < _NEAR * size[0]
    method = cv2.INTER_LINEAR if is_near else cv2.INTER_AREA
    return np.asarray(cv2.resize(larger_HW3, size, interpolation=method), np.uint8)


def heat(
    picture_HW3: NDArray[np.uint8], map_hw: NDArray[np.float32], judged_hw: NDArray[np.bool_], limit: float
) -> Image.Image:
    """A picture in RGB with the colors of the map on it; what was not judged is dark. Arguments as for `draw`."""
    size = picture_HW3.shape[1::-1]
    is_dark_HW = cv2.resize(judged_hw.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) == 0
    shown_HW3 = np.where(is_dark_HW[..., None], picture_HW3 // 3, picture_HW3)
    return _blend(shown_HW3, _levels(np.where(judged_hw, map_hw, 0), limit, size))


def _levels(map_HW: NDArray[np.float32], limit: float, size: tuple[int, ...]) -> NDArray[np.uint8]:
    """The map at the size of the picture, 0 being CLEAR times the limit and less, 255 FULL times and more."""
    block = round(map_HW.shape[1] / size[0])
    if block > 1:  # the largest value of each block: a mean would lose a thin crack
        map_HW = np.asarray(cv2.dilate(map_HW, np.ones((block, block), np.uint8)), np.float32)
    method = cv2.INTER_NEAREST if block > 1 else cv2.INTER_LINEAR
    value_HW = cv2.resize(map_HW, size, interpolation=method)
    share_HW = (value_HW / limit - CLEAR) / (FULL - CLEAR)
    return np.asarray(np.clip(255 * share_HW, 0, 255), np.uint8)


def _blend(picture_HW3: NDArray[np.uint8], level_HW: NDArray[np.uint8]) -> Image.Image:
    ink_L3 = (_COLOR_L3 * _OPACITY_L1).astype(np.float32)
    clear_L3 = np.repeat(1 - _OPACITY_L1, 3, axis=1).astype(np.float32)
    return Image.fromarray(np.rint(picture_HW3 * clear_L3[level_HW] + ink_L3[level_HW]).astype(np.uint8))


def ramp(width: int, height: int) -> Image.Image:
    """The colors of the map on gray, from CLEAR times the limit to FULL times, for a picture's scale."""
    level_HW = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    return _blend(np.full((height, width, 3), 160, np.uint8), level_HW)


def ticks(limit: float) -> tuple[str, str, str]:
    """What stands at the left end of such a scale, at its middle and at its right end."""
    return f"{CLEAR:g}x and less", f"limit {limit:.3g}", f"{FULL:g}x and more"


def _with_bar(picture: Image.Image, title: str, verdict: str, limit: float) -> Image.Image:
    """The picture above a bar that names the file, its score and the scale of the colors."""
    width = max(picture.width, _NARROWEST)
    letter = max(14, width // 90)
    font = ImageFont.load_default(letter)
    sheet = Image.new("RGB", (width, picture.height + round(6.2 * letter)), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    gap, top = letter // 2, picture.height + letter // 2
    verdict_px = font.getlength(verdict)
    pen.text((width - gap - verdict_px, top), verdict, "black", font)
    name = "".join(sign if sign.isprintable() else "?" for sign in title)
    while name and font.getlength(name) > width - 4 * gap - verdict_px:
        name = "…" + name[max(2, len(name) // 20) :]
    pen.text((gap, top), name, "black", font)

    ramp_top, ramp_px = top + round(1.6 * letter), width - 8 * letter
    sheet.paste(ramp(ramp_px, letter), (4 * letter, ramp_top))
    for place, text in zip((0, 0.5, 1), ticks(limit), strict=True):
        pen.text((4 * letter + ramp_px * place, ramp_top + 1.2 * letter), text, "black", font, anchor="ma")
    caption = "anomaly map: evidence for a long, dark line through a place; dark: not judged"
    pen.text((width / 2, ramp_top + 2.4 * letter), caption, "black", font, anchor="ma")
    return sheet


def _exif(photo: Image.Image) -> bytes:
    """The EXIF of a photograph, as far as it can be read and fits, for its upright pixels."""
    entries = []
    try:
        source = photo.getexif()
        directories = [(0, source), *((tag, source.get_ifd(tag)) for tag in _DIRECTORIES if tag in source)]
        for directory, tags in directories:
            wanted = (tag for tag in tags if tag not in _LAYOUT and tag not in _DIRECTORIES)
            entries += [entry for tag in islice(wanted, _MAX_TAGS) if (entry := _entry(directory, tags, tag))]
    except Exception:  # hostile bytes raise nearly anything; what was read is kept
        pass
    kept: dict[int, dict[int, Any]] = {0: {}}
    room = _MAX_EXIF
    for size, directory, tag, value in sorted(entries, key=lambda entry: entry[:3]):  # the largest may find no room
        room -= size
        if room > 0:
            kept.setdefault(directory, {})[tag] = value
    exif = Image.Exif()
    for tag, value in {**kept.pop(0), **kept, ExifTags.Base.Orientation: 1}.items():
        exif[tag] = value
    return exif.tobytes()


def _entry(directory: int, tags: Mapping[int, Any], tag: int) -> tuple[int, int, int, Any] | None:
    """Bytes that a tag takes, its directory, itself and its value; None where it cannot be read or written."""
    try:
        value = tags[tag]
        alone = Image.Exif()
        alone[directory or tag] = {tag: value} if directory else value
        return len(alone.tobytes()), directory, tag, value
    except Exception:
        return None
