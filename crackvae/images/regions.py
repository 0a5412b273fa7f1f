"""The anomalous regions of a photograph: where it is unlike its reconstruction, how long and how wide.

A region's outline comes from the anomaly map, which is smooth and therefore wider than a crack. Its
width comes from the gray levels across the crack itself (lines.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from crackvae.images import lines
from crackvae.images.decode import Gray

Map = NDArray[np.float32]
Bools = NDArray[np.bool_]

HALO = 6
"""Rows and columns around a strip that `residual_map` needs to give the map of the whole."""
LENGTH_ERROR = 0.06
"""95% of the lengths of synthetic cracks in one piece are within this share of the truth (see test_regions.py)."""
WIDTH_ERROR = 1.0
"""95% of their mean widths are within so many pixels at 1 px wide; 0.5 would do at 2 px, 0.4 from 3 to 20 px."""

_SIGMA_PX = 2.0  # of the smoothing: HALO is three of it
_LOW = 0.5  # a region goes on down to this share of the limit
_GAP_PX = 7  # narrower gaps are closed: grains and chips bridge a crack
_MIN_AREA = 100  # pixels; specks of few pixels are smaller on the smooth map
_STRIP = 1024  # rows at a time
_MAX_POINTS = 500  # of an outline


class Region(NamedTuple):
    """A connected area over the limit; places are in pixels of the upright photograph.

    Attributes:
        x, y, width, height: Its box.
        outline: Its outer ring as [x, y], within 1 px of it unless that takes over 500 points.
        area: In pixels, on the smooth map.
        peak: Largest value of the map.
        is_line: Whether it is line-like: at least 4 times as long as its area over its length, and
            darker (or brighter) in the middle than on both sides at half of the places or more.
        length: Of its skeleton with all branches, in pixels; None where not line-like.
        mean_width: Full width at half depth in pixels, the mean along the skeleton without the
            widest and the narrowest tenth; None where not line-like.
    """

    x: int
    y: int
    width: int
    height: int
    outline: list[list[int]]
    area: int
    peak: float
    is_line: bool
    length: float | None
    mean_width: float | None


def residual_map(gray_HW: Gray, expected_HW: Gray) -> Map:
    """The anomaly map: squared residuals, smoothed by a Gaussian of 2 pixels.

    Args:
        gray_HW: Gray levels of the photograph, or of a strip of it with HALO more on each side.
        expected_HW: Those of its reconstruction.

    Returns:
        map_HW in units of the network's input range [-1, 1], squared: 0..4.
    """
    square_K = (np.square(np.arange(256)) / 127.5**2).astype(np.float32)
    square_HW = cv2.LUT(cv2.absdiff(gray_HW, expected_HW), square_K)
    return np.asarray(cv2.GaussianBlur(square_HW, (2 * HALO + 1, 2 * HALO + 1), _SIGMA_PX), np.float32)


def find_regions(gray_HW: Gray, expected_HW: Gray, judged_HW: Bools | None, *, limit: float, most: int) -> list[Region]:
    """Finds the anomalous regions of a photograph and measures those that are lines.

    A region is connected where the map is over half of the limit, across gaps of up to 6 pixels,
    and over the limit somewhere. Regions under 100 pixels do not count.

    Args:
        gray_HW: Gray levels of the photograph.
        expected_HW: Those of its reconstruction, which may be blurred.
        judged_HW: Where regions may lie; None for everywhere.
        limit: Of `residual_map`, over 0.
        most: Regions that are kept.

    Returns:
        The largest, by area, first. Equal arrays give equal regions.
    """
    level_HW = np.empty(gray_HW.shape, np.uint8)  # 0 outside, 1 over the low limit, 2 over the limit
    for rows, map_hW in _strips(gray_HW, expected_HW):
        np.add(map_hW > _LOW * limit, map_hW > limit, out=level_HW[rows], dtype=np.uint8)
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_GAP_PX, _GAP_PX))
    level_HW = np.asarray(cv2.morphologyEx(level_HW, cv2.MORPH_CLOSE, disk), np.uint8)
    if judged_HW is not None:
        level_HW *= judged_HW
    count, label_HW, stats_K5, _ = cv2.connectedComponentsWithStats(level_HW)
    is_over_K = np.zeros(count, np.bool_)
    for top in range(0, len(level_HW), _STRIP):
        rows = slice(top, top + _STRIP)
        is_over_K[label_HW[rows][level_HW[rows] == 2]] = True
    del level_HW
    x_K, y_K, _, _, area_K = stats_K5.T
    chosen = np.flatnonzero(is_over_K & (area_K >= _MIN_AREA))
    chosen = chosen[np.lexsort((x_K[chosen], y_K[chosen], -area_K[chosen]))][:most]

    rank_K = np.full(count, -1, np.int32)
    rank_K[chosen] = np.arange(len(chosen))
    peak_R = np.zeros(len(chosen), np.float32)
    for rows, map_hW in _strips(gray_HW, expected_HW) if len(chosen) else ():
        rank_hW = rank_K[label_HW[rows]]
        np.maximum.at(peak_R, rank_hW[rank_hW >= 0], map_hW[rank_hW >= 0])
    return [
        _region(gray_HW, expected_HW, label_HW, int(label), stats_K5[label].tolist(), peak)
        for label, peak in zip(chosen, peak_R.tolist(), strict=True)
    ]


def in_millimetres(
    pixels: float, mm_per_pixel: float, mm_per_pixel_error: float, pixel_error: float
) -> tuple[float, float]:
    """A length or width on the ground, with its error.

    Args:
        pixels: The length or width.
        mm_per_pixel: Ground sampling distance.
        mm_per_pixel_error: Its relative error, about 95%.
        pixel_error: Of `pixels`, about 95%: LENGTH_ERROR times the length, or WIDTH_ERROR.

    Returns:
        Millimetres, and half the interval of about 95%: both errors are taken as independent, so
        that their squares add up.
    """
    return pixels * mm_per_pixel, mm_per_pixel * math.hypot(pixel_error, pixels * mm_per_pixel_error)


def _strips(gray_HW: Gray, expected_HW: Gray) -> Iterator[tuple[slice, Map]]:
    """The map strip by strip: as float32 it would take 4 bytes a pixel, several times."""
    for top in range(0, len(gray_HW), _STRIP):
        above, below = max(0, top - HALO), top + _STRIP + HALO
        map_hW = residual_map(gray_HW[above:below], expected_HW[above:below])
        yield slice(top, top + _STRIP), map_hW[top - above :][:_STRIP]


def _region(
    gray_HW: Gray, expected_HW: Gray, label_HW: NDArray[Any], label: int, stats: list[int], peak: float
) -> Region:
    x, y, width, height, area = stats
    margin = 2 + max(width, height) // 30
    top, left = max(0, y - margin), max(0, x - margin)
    inside_hw = (label_HW[top : y + height + margin, left : x + width + margin] == label).astype(np.uint8)
    contours, _ = cv2.findContours(inside_hw, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, top))
    outline, tolerance_px = max(contours, key=len), 1.0
    ring = cv2.approxPolyDP(outline, tolerance_px, closed=True)
    while len(ring) > _MAX_POINTS:
        tolerance_px *= 1.5
        ring = cv2.approxPolyDP(outline, tolerance_px, closed=True)
    line = lines.measure(gray_HW, expected_HW, inside_hw, (top, left))
    return Region(x, y, width, height, ring[:, 0].tolist(), area, peak, line is not None, *(line or (None, None)))
