"""From gray levels to what the network sees, and the baselines that any score has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from crackvae.images.decode import Gray

_STRIP = 1024  # rows at a time: 100 megapixels as float32 would take 400 MB


def to_tile(gray_HW: Gray, size: int) -> Gray:
    """The whole image as one square tile.

    Args:
        gray_HW: Gray levels.
        size: Side S of the tile in pixels.

    Returns:
        tile_SS: Resampled by pixel area, which does not alias whatever the size of the image.
    """
    return np.asarray(cv2.resize(gray_HW, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


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


def corners(shape: tuple[int, ...], size: int, overlap: int) -> list[tuple[int, int]]:
    """Row and column at which each tile of an image begins, row by row."""
    down, across = (starts(length, size, overlap) for length in shape)
    return [(y, x) for y in down for x in across]


def cut(gray_HW: Gray, size: int, overlap: int) -> Gray:
    """The tiles tile_NSS that cover an image, row by row."""
    return np.stack([gray_HW[y : y + size, x : x + size] for y, x in corners(gray_HW.shape, size, overlap)])


def strips(height: int, halo: int) -> Iterator[tuple[slice, slice, slice]]:
    """The rows of an image a strip after the other, these with a halo above and below, and where they are in that."""
    for top in range(0, height, _STRIP):
        bottom, above = min(top + _STRIP, height), max(0, top - halo)
        yield slice(top, bottom), slice(above, bottom + halo), slice(top - above, bottom - above)


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


def darkness(gray_HW: Gray, percent: int = 1) -> float:
    """A baseline: by how many gray levels the darkest hundredth lies below the median.

    A crack is a few dark pixels. Both quantiles are observed gray levels: the smallest one with at
    least that share of the pixels at or below it ("inverted_cdf", definition 1 of Hyndman & Fan
    1996).

    Args:
        gray_HW: Gray levels.
        percent: Another share than a hundredth.

    Returns:
        Median minus 1st percentile, a whole number in 0..255.
    """
    # np.bincount would first widen every pixel to 8 bytes.
    count_256 = cv2.calcHist([gray_HW], [0], None, [256], [0, 256]).ravel()
    at_most_256 = np.cumsum(count_256.astype(np.int64))
    percentile, median = np.searchsorted(100 * at_most_256, [percent * gray_HW.size, 50 * gray_HW.size])
    return float(median - percentile)


def line_filter(gray_HW: Gray) -> float:
    """The other baseline: how much darker than around it the darkest lines of the image are.

    At half the resolution, where it costs a fortieth and finds as much, means along lines that reach 5 pixels
    to both sides, in 8 directions, of G7.5 x - x, with the Gaussian blur G7.5, which is taken at half of that;
    the largest of each place, of which the mean of the largest hundredth counts.

    Args:
        gray_HW: At least 4 pixels a side.

    Returns:
        Gray levels.
    """
    x_hw = _half(gray_HW).astype(np.float32)
    darker_hw = blur(x_hw, 7.5) - x_hw
    answer_hw = np.full_like(darker_hw, -np.inf)
    for kernel_KK in _lines():
        np.maximum(answer_hw, cv2.filter2D(darker_hw, -1, kernel_KK), out=answer_hw)
    top = max(1, answer_hw.size // 100)
    return float(np.partition(answer_hw, answer_hw.size - top, axis=None)[-top:].mean())


def blur(x_HW: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """A Gaussian blur taken at half the resolution, of sides of at least 2: a quarter of the cost.

    Args:
        x_HW: Any values.
        sigma: In pixels, several.
    """
    half_hw = cv2.GaussianBlur(_half(x_HW), (0, 0), sigma / 2)
    return np.asarray(cv2.resize(half_hw, x_HW.shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def _half(x_HW: NDArray[Any]) -> NDArray[Any]:
    """Means of 2x2 pixels, without an odd last row or column: 20 times as quick as with a part of it."""
    height, width = (side // 2 for side in x_HW.shape)
    return np.asarray(cv2.resize(x_HW[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA))


@cache
def _lines() -> list[NDArray[np.float32]]:
    kernels, reach = [], 5
    for angle in np.pi * np.arange(8) / 8:
        line_KK = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
        x, y = (round(reach * float(part)) for part in (np.cos(angle), np.sin(angle)))
        cv2.line(line_KK, (reach - x, reach - y), (reach + x, reach + y), 1.0)
        kernels.append(line_KK / line_KK.sum())
    return kernels
