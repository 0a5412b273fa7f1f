"""The anomalous regions of a photograph: where it is dark and has evidence, how long and how wide.

A region's outline is that of a smoothed map and therefore wider than a crack. Its width comes from the
gray levels across the crack itself (lines.py).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from crackvae.images.decode import Gray
from crackvae.images.evidence import STEP, background
from crackvae.images.paths import Map
from crackvae.images.tile import strips

LENGTH_ERROR = 0.1
"""95% of the lengths of synthetic cracks of 1.5 to 16 px in one piece are within this share: docs/photographs.md."""
WIDTH_ERROR = 1.0
"""95% of their mean widths are within so many pixels at 1 px wide; 0.6 would do from 2 to 16 px."""

_SIGMA_PX, _HALO_PX = 2.0, 6  # of the smoothing
_DARK = 1.6  # standard deviations; with 1.8 and 2 fewer synthetic cracks are found in one piece
_GAP_PX = 7  # narrower gaps are closed: grains and chips bridge a crack
_MIN_AREA = 100  # pixels; specks of few pixels are smaller on the smooth map
_MAX_POINTS = 500  # of an outline


class Region(NamedTuple):
    """A connected area over the limit; places are in pixels of the upright photograph.

    Attributes:
        x, y, width, height: Its box.
        outline: Its outer ring as [x, y], within 1 px of it unless that takes over 500 points.
        area: In pixels, on the smooth map.
        peak: Largest evidence.
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


def find_regions(evidence_hw: Map, contrast_HW: Map, gray_HW: Gray, *, limit: float, most: int) -> list[Region]:
    """Finds the anomalous regions of a photograph and measures those that are lines.

    A region is connected where the photograph is darker than its surroundings by 1.6 standard deviations,
    smoothed over 2 pixels, across gaps of up to 6 pixels, and its evidence is over the limit somewhere.
    (The evidence itself runs on past the end of a crack.) Regions under 100 pixels do not count.

    Args:
        evidence_hw: As by `evidence.find_lines`.
        contrast_HW: As by `evidence.contrast`.
        gray_HW: Gray levels of the photograph.
        limit: Of the evidence.
        most: Regions that are kept.

    Returns:
        The largest, by area, first. Equal arrays give equal regions.
    """
    inside_HW = np.empty(gray_HW.shape, np.uint8)
    for rows, with_halo, inside in strips(len(gray_HW), _HALO_PX):
        dark_hW = np.square(np.maximum(contrast_HW[with_halo], 0))
        dark_hW = cv2.GaussianBlur(dark_hW, (2 * _HALO_PX + 1,) * 2, _SIGMA_PX)[inside]
        np.greater(dark_hW, _DARK**2, out=inside_HW[rows], casting="unsafe")
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_GAP_PX, _GAP_PX))
    inside_HW = np.asarray(cv2.morphologyEx(inside_HW, cv2.MORPH_CLOSE, disk), np.uint8)
    count, label_HW, stats_K5, _ = cv2.connectedComponentsWithStats(inside_HW)
    del inside_HW

    peak_K = np.zeros(count, np.float32)
    y_P, x_P = np.nonzero(evidence_hw > limit)
    for dy, dx in np.ndindex(STEP, STEP):
        np.maximum.at(peak_K, label_HW[STEP * y_P + dy, STEP * x_P + dx], evidence_hw[y_P, x_P])
    peak_K[0] = 0  # is not inside
    x_K, y_K, _, _, area_K = stats_K5.T
    background_HW = background(gray_HW)
    chosen = np.flatnonzero((peak_K > 0) & (area_K >= _MIN_AREA))
    chosen = chosen[np.lexsort((x_K[chosen], y_K[chosen], -area_K[chosen]))][:most]
    return [
        _region(gray_HW, background_HW, label_HW, int(label), stats_K5[label].tolist(), float(peak_K[label]))
        for label in chosen
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


def _region(
    gray_HW: Gray, background_HW: Gray, label_HW: NDArray[Any], label: int, stats: list[int], peak: float
) -> Region:
    from crackvae.images import lines  # a second to import: SciPy's signals, for what is found in photographs

    x, y, width, height, area = stats
    margin = 2 + max(width, height) // 30
    top, left = max(0, y - margin), max(0, x - margin)
    inside_hw = (label_HW[top : y + height + margin, left : x + width + margin] == label).astype(np.uint8)
    contours, _ = cv2.findContours(inside_hw, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left, top))
    outline, tolerance_px = max(contours, key=len), 1.0
    while len(ring := cv2.approxPolyDP(outline, tolerance_px, closed=True)) > _MAX_POINTS:
        tolerance_px *= 1.5
    line = lines.measure(gray_HW, background_HW, inside_hw, (top, left))
    return Region(x, y, width, height, ring[:, 0].tolist(), area, peak, line is not None, *(line or (None, None)))
