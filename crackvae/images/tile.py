"""From gray levels to what the network sees, and the baseline that any score has to beat."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from crackvae.images.decode import Gray


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


def resample(gray_HW: Gray, factor: float) -> Gray:
    """The image with sides longer by a factor."""
    if factor == 1:
        return gray_HW
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray_HW, None, fx=factor, fy=factor, interpolation=method), np.uint8)


def starts(length: int, size: int, overlap: int) -> list[int]:
    """Where tiles begin along a side, so that every pixel is in one.

    Args:
        length: Of the side, in pixels, at least `size`.
        size: Side of a tile.
        overlap: Pixels that neighbours share; the last two share more, for the last ends at the edge.
    """
    return [*range(0, length - size, size - overlap), length - size]


def cut(gray_HW: Gray, size: int, overlap: int) -> Gray:
    """The tiles tile_NSS that cover an image, row by row."""
    down, across = (starts(length, size, overlap) for length in gray_HW.shape)
    return np.stack([gray_HW[y : y + size, x : x + size] for y in down for x in across])


def blending(start_K: list[int], size: int, overlap: int) -> NDArray[np.float32]:
    """Weights with which tiles along a side add up to one, everywhere.

    A raised cosine rises over the overlap, so that no tile's edge shows.

    Args:
        start_K: From `starts`.
        size: Side S of a tile.
        overlap: As for `starts`.

    Returns:
        weight_KS, of pixel s of tile k.
    """
    ramp = np.sin(0.5 * np.pi * (np.arange(overlap) + 0.5) / max(1, overlap)) ** 2
    weight_S = np.ones(size)
    weight_S[:overlap] *= ramp
    weight_S[size - overlap :] *= ramp[::-1]
    total_L = np.zeros(start_K[-1] + size)
    for start in start_K:
        total_L[start : start + size] += weight_S
    return np.stack([weight_S / total_L[start : start + size] for start in start_K]).astype(np.float32)


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
