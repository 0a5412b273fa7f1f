"""Decoding on one core, beside named alternatives, in interleaved rounds."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from crackvae.images.decode import decode
from crackvae.images.tile import darkness, to_tile
from crackvae.report.tables import markdown

ROUNDS, IMAGES, SIZE = 5, 200, 128
_SECONDS = 0.3  # of each in a round


def pillow(data: bytes) -> object:
    """As most scripts do it."""
    image = Image.open(io.BytesIO(data)).convert("L")
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def pillow_draft(data: bytes) -> object:
    """Pillow, decoding luma only."""
    image = Image.open(io.BytesIO(data))
    image.draft("L", (SIZE, SIZE))
    return np.asarray(image.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def opencv(data: bytes) -> object:
    """OpenCV, which fills what is missing of a truncated file with gray."""
    gray_HW = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    return cv2.resize(gray_HW, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def ours(data: bytes) -> object:
    """What crackvae does, with its checks of header and pixels and the darkness baseline."""
    gray_HW = decode(data, min_side=16, max_megapixels=200).gray_HW
    return to_tile(gray_HW, SIZE), darkness(gray_HW)


def report(folder: Path) -> str:
    """Minimum, median and maximum rate of each, and its ratio to the first."""
    cv2.setNumThreads(1)
    data = [path.read_bytes() for path in sorted(folder.iterdir())[:IMAGES]]
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for decoder in (pillow, pillow_draft, opencv, ours):
            rates.setdefault(decoder.__name__, []).append(_rate(decoder, data))
    base = statistics.median(rates["pillow"])
    rows = []
    for name, measured in rates.items():
        middle = statistics.median(measured)
        figures = [f"{value:,.0f}" for value in (min(measured), middle, max(measured))]
        rows.append([name, *figures, f"{middle / base:.2f}"])
    return markdown(["files decoded per second, one core", "min", "median", "max", "ratio to the first"], rows)


def _rate(decoder: Callable[[bytes], object], data: list[bytes]) -> float:
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        count += len([decoder(one) for one in data])
    return count / (time.perf_counter() - start)
