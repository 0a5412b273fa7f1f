"""A line of the table of bad input, and the picture that most files hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from faults.corpus.formats import encode
from PIL import Image

from crackvae.images import synthetic
from crackvae.images.decode import Gray
from crackvae.schema import Status

HEIGHT, WIDTH = 72, 104
SIZE = (WIDTH, HEIGHT)
GRAY_HW = synthetic.cracked(np.random.default_rng(5), HEIGHT, WIDTH, width_px=4)[0]
SMOOTH_HW = cv2.GaussianBlur(GRAY_HW, (0, 0), 2)  # what JPEG changes by 1
BLACK_WHITE_HW = np.where(GRAY_HW > 127, 255, 0).astype(np.uint8)
GRAY16_HW = GRAY_HW.astype(np.uint16) * 257


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of file, and what each such file must become.

    Attributes:
        name: What is bad or strange about it.
        why: The reason for what it becomes, in one line.
        files: Bytes by name, or what makes a file at a path; it may return the image_id, which is
            else the name.
        status: What the row must say; None where the source is refused as a whole.
        message: Why, a regular expression.
        gray_HW: Gray levels that it must decode to, where it is scored.
        off: By how much they may differ, where the format loses some.
        after: What happens to the files between index and score.
        members: The image_ids, where each file is an archive and a source of its own.
    """

    name: str
    why: str
    files: Mapping[str, bytes | Callable[[Path], Any]]
    status: Status | None = Status.OK
    message: str = ""
    gray_HW: Gray = field(default_factory=lambda: GRAY_HW)
    off: int = 0
    after: Callable[[Path], object] = lambda path: None
    members: tuple[str, ...] = ()


def undecodable(message: str) -> dict[str, Any]:
    """What a `Kind` says of files that cannot be decoded."""
    return {"status": Status.UNDECODABLE, "message": message}


def unreadable(message: str) -> dict[str, Any]:
    """What a `Kind` says of files that cannot be read."""
    return {"status": Status.UNREADABLE, "message": message}


def too_large(message: str) -> dict[str, Any]:
    """What a `Kind` says of files over a limit."""
    return {"status": Status.TOO_LARGE, "message": message}


def gray(gray_HW: Gray = GRAY_HW, mode: str = "L") -> Image.Image:
    """Gray levels as Pillow's image of a mode."""
    return Image.fromarray(np.ascontiguousarray(gray_HW)).convert(mode)


def exif(orientation: int) -> Image.Exif:
    """EXIF of nothing but an orientation."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def jpeg(gray_HW: Gray = SMOOTH_HW, **options: Any) -> bytes:
    """A color JPEG that is off by 1."""
    return encode(gray(gray_HW, "RGB"), "JPEG", quality=100, subsampling=0, **options)


NO_IMAGE = "cannot identify image file"
JPEG, PROGRESSIVE, PNG = jpeg(), jpeg(progressive=True), encode(gray(), "PNG")
GIF, BMP, JP2 = (encode(gray(), kind) for kind in ("GIF", "BMP", "JPEG2000"))
WEBP = encode(gray(mode="RGB"), "WEBP", lossless=True)
