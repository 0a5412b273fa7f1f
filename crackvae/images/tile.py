"""From gray levels to what the network sees, and the baseline that any score has to beat."""

from __future__ import annotations

import cv2
import numpy as np

from crackvae.config import ImageConfig
from crackvae.images.decode import Gray, decode_gray


def prepare(data: bytes, image: ImageConfig) -> tuple[Gray, float]:
    """Bytes of a file to its tile_SS and its darkness.

    Raises:
        ImageError: The file cannot be scored.
    """
    gray_HW = decode_gray(data, min_side=image.min_side, max_megapixels=image.max_megapixels)
    return to_tile(gray_HW, image.tile_size), darkness(gray_HW)


def to_tile(gray_HW: Gray, size: int) -> Gray:
    """The whole image as one square tile.

    Args:
        gray_HW: Gray levels.
        size: Side S of the tile in pixels.

    Returns:
        tile_SS: Resampled by pixel area, which does not alias whatever the size of the image.
    """
    resized = cv2.resize(gray_HW, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def darkness(gray_HW: Gray) -> float:
    """The baseline: by how many gray levels the darkest hundredth lies below the median.

    A crack is a few dark pixels. Both quantiles are observed gray levels: the smallest one with at
    least that share of the pixels at or below it ("inverted_cdf", definition 1 of Hyndman & Fan
    1996).

    Returns:
        Median minus 1st percentile, a whole number in 0..255.
    """
    # np.bincount would first widen every pixel to 8 bytes.
    count_256 = cv2.calcHist([gray_HW], [0], None, [256], [0, 256]).ravel()
    at_most_256 = np.cumsum(count_256.astype(np.int64))
    percentile_1, median = np.searchsorted(100 * at_most_256, [gray_HW.size, 50 * gray_HW.size])
    return float(median - percentile_1)
