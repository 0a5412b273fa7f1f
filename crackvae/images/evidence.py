"""How much speaks for a crack at each place of a photograph: long, thin, dark lines.

A crack goes on; texture does not. Line filters answer to short pieces of dark lines, the answers are
compared with those around them, and the best path through each place adds them up along its way.

What a place is compared with excuses it only as far as sound concrete has ever needed excusing: each
local statistic is capped at what the training normals have shown (`Scale`). So a rough deck does not
look cracked, and a crack that fills the picture does not look like a rough deck.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from crackvae.images.decode import Gray

Map = NDArray[np.float32]
Sigma = NDArray[np.floating]
Bools = NDArray[np.bool_]

STEP = 2
"""A place of the evidence is so many pixels a side."""

_BACKGROUND_PX, _AROUND_PX = 15.0, 20.0  # sigmas
_HALO_PX = 140  # 4 of both
_STRIP = 1024  # rows
_BRIGHTEST = -2.0
_ORIENTATIONS = 12
_ACROSS_PX, _BESIDE_PX, _ALONG_PX = 1.0, 2.5, 5.0  # sigmas of a line filter
_REACH_PX = 15
_DIRECTIONS = (0, 3, 6, 9)  # orientations that paths run in: 0, 45, 90 and 135 degrees
_NEAREST = (-2, -1, 0, 1, 2)  # orientations of the lines that such a path may follow
_AROUND, _REDUCED = 60.0, 8  # sigma in places; computed at so much lower a resolution, as it is that smooth
_MOST_AROUND, _MOST_HERE, _MOST_EVIDENCE = 8.0, 20.0, 3.0  # of an answer, before it counts
_COST = 0.6  # of each step, so that a path through nothing ends
_MEMORY, _BEND = 0.95, 0.1  # share of a path's sum that goes on; what a bend costs
_EXCUSED = 0.95  # of what the training normals show; above this level of a local statistic nothing is excused
_SAMPLES = 4096  # places of an image that it is learned from


@dataclass(frozen=True)
class Scale:
    """What sound concrete shows, learned from training normals.

    Attributes:
        roughness: The most gray levels that the deviation s of a place counts for.
        noise: Robust standard deviation of a line filter's answers.
        level: The most that the mean answer around a place counts for.
        spread: The same of its standard deviation.
    """

    roughness: float
    noise: float
    level: float
    spread: float


def contrast(gray_HW: Gray, sigma_HW: Sigma, roughness: float) -> Map:
    """By how many standard deviations each pixel is darker than its surroundings.

    d / min(s, roughness), d = G15 x - x, with the Gaussian blur G15 of 15 pixels; s^2 is the mean of two
    variances, sigma^2 and G20 d^2: what the network expects there, and what is around. (One network's
    sigma alone varies by 0.01 of ROC-AUC on bridge decks from one training to the next.)

    Args:
        gray_HW: Gray levels x.
        sigma_HW: Standard deviation that the network expects of sound concrete there, in gray levels.
        roughness: As in `Scale`.

    Returns:
        contrast_HW, at least -2: beside a bright line a line filter would answer as to a dark one.
    """
    contrast_HW = np.empty(gray_HW.shape, np.float32)
    for rows, darker_hW, deviation_hW in _deviations(gray_HW, sigma_HW):
        np.divide(darker_hW, np.minimum(deviation_hW, roughness), out=contrast_HW[rows])
    return np.maximum(contrast_HW, _BRIGHTEST, out=contrast_HW)


def background(gray_HW: Gray) -> Gray:
    """G15 x."""
    return np.asarray(cv2.GaussianBlur(gray_HW, (0, 0), _BACKGROUND_PX, borderType=cv2.BORDER_REFLECT), np.uint8)


def evidence(contrast_HW: Map, scale: Scale, judged_hw: Bools | None = None) -> Map:
    """The evidence for a dark line through each place.

    1. the contrast, as by `contrast`;
    2. the answers R of twelve line filters, the larger of each 2x2 pixels, divided by noise;
    3. of each direction the largest of the five nearest, E, compared with those around it:
       Z = (E - min(G60 E, level)) / min(sd60 E, spread);
    4. the best path through each place that keeps to the direction: with e = Z - 0.6, the sum that
       has come here is F(p) = e(p) + max(0, 0.95 F(straight before p), 0.95 F(aslant before p) - 0.1),
       B(p) the same from the other side, and F + B - e the evidence where e is above 0; the largest of
       the directions.

    Args:
        contrast_HW: Of the photograph.
        scale: As by `learn`.
        judged_hw: Places that paths may run through; None for all.

    Returns:
        evidence_hw, h = H // STEP, in 0..96. Of sound METU concrete one place in a hundred is above 49,
        one in a thousand above 61.
    """
    answer_Dhw = _by_direction(contrast_HW, scale.noise)
    evidence_hw = np.zeros(answer_Dhw.shape[1:], np.float32)
    for orientation, answer_hw in zip(_DIRECTIONS, answer_Dhw, strict=True):
        gain_hw = _gain(answer_hw, scale)
        if judged_hw is not None:
            gain_hw[~judged_hw] = -_COST
        total_hw = _best_paths(gain_hw, orientation)
        np.maximum(evidence_hw, total_hw, out=evidence_hw, where=gain_hw > 0)
    return evidence_hw


def learn(normals: Sequence[tuple[Gray, Sigma]]) -> Scale:
    """Learns what sound concrete shows.

    Args:
        normals: Gray levels and expected standard deviation, as for `contrast`, of training normals.

    Returns:
        Each cap is the 95th percentile over the places of the normals; noise is their median
        absolute answer / 0.6745.
    """
    roughness = _percentile(deviation for normal in normals for _, _, deviation in _deviations(*normal))
    contrasts = [contrast(gray_HW, sigma_HW, roughness) for gray_HW, sigma_HW in normals]
    sizes = [np.abs(_sample(answer_hw)) for contrast_HW in contrasts for answer_hw in _answers(contrast_HW)]
    noise = float(np.median(np.concatenate(sizes))) / 0.6745
    around = [_around(answer_hw) for contrast_HW in contrasts for answer_hw in _by_direction(contrast_HW, noise)]
    return Scale(roughness, noise, *(_percentile(maps) for maps in zip(*around, strict=True)))


def _percentile(maps: Iterable[Map]) -> float:
    return float(np.quantile(np.concatenate([_sample(map_HW) for map_HW in maps]), _EXCUSED))


def _sample(map_HW: Map) -> Map:
    """Values at places spread over a map."""
    flat_P = map_HW.ravel()
    return flat_P[np.linspace(0, flat_P.size - 1, min(_SAMPLES, flat_P.size)).astype(np.int64)]


def _deviations(gray_HW: Gray, sigma_HW: Sigma) -> Iterator[tuple[slice, Map, Map]]:
    """D and s of a strip of rows after the other."""

    def blur(x_hW: Map, sigma: float) -> Map:
        return np.asarray(cv2.GaussianBlur(x_hW, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float32)

    for top in range(0, len(gray_HW), _STRIP):
        above, rows = max(0, top - _HALO_PX), slice(top, min(top + _STRIP, len(gray_HW)))
        x_hW = gray_HW[above : rows.stop + _HALO_PX].astype(np.float32)
        darker_hW = blur(x_hW, _BACKGROUND_PX) - x_hW
        inside = slice(top - above, rows.stop - above)
        variance_hW = blur(np.square(darker_hW), _AROUND_PX)[inside] + np.square(sigma_HW[rows], dtype=np.float32)
        yield rows, darker_hW[inside], np.sqrt(variance_hW / 2)


def _by_direction(contrast_HW: Map, noise: float) -> Map:
    """answer_Dhw, the largest in the orientations nearest to each direction, not below 0."""
    height, width = (side // STEP for side in contrast_HW.shape)
    answer_Dhw = np.zeros((len(_DIRECTIONS), height, width), np.float32)
    for orientation, answer_hw in enumerate(_answers(contrast_HW)):
        for direction, largest_hw in zip(_DIRECTIONS, answer_Dhw, strict=True):
            if orientation in [(direction + turn) % _ORIENTATIONS for turn in _NEAREST]:
                np.maximum(largest_hw, answer_hw, out=largest_hw)
    answer_Dhw /= noise
    return answer_Dhw


def _answers(contrast_HW: Map) -> Iterator[Map]:
    """Of each line filter in turn, the largest of each 2x2 pixels."""
    height, width = (side // STEP for side in contrast_HW.shape)
    for kernel_KK in _line_filters():
        answer_hw = np.empty((height, width), np.float32)
        for top in range(0, STEP * height, _STRIP):
            above, bottom = max(0, top - _REACH_PX), min(top + _STRIP, STEP * height)
            strip_hW = contrast_HW[above : bottom + _REACH_PX]
            filtered_hW = cv2.filter2D(strip_hW, cv2.CV_32F, kernel_KK, borderType=cv2.BORDER_REFLECT)
            inside_hW = filtered_hW[top - above : bottom - above, : STEP * width]
            rows_hW = np.maximum(inside_hW[0::2], inside_hW[1::2])
            np.maximum(rows_hW[:, 0::2], rows_hW[:, 1::2], out=answer_hw[top // STEP : bottom // STEP])
        yield answer_hw


@cache
def _line_filters() -> list[Map]:
    """Kernels of unit length: across the line a narrow Gaussian less a wide one, along it a Gaussian."""
    y_KK, x_KK = np.mgrid[-_REACH_PX : _REACH_PX + 1, -_REACH_PX : _REACH_PX + 1]
    kernels = []
    for angle in np.arange(_ORIENTATIONS) * np.pi / _ORIENTATIONS:
        along_KK = x_KK * np.cos(angle) + y_KK * np.sin(angle)
        across_KK = y_KK * np.cos(angle) - x_KK * np.sin(angle)
        narrow_KK, wide_KK = (
            np.exp(-0.5 * (np.square(across_KK / sigma) + np.square(along_KK / _ALONG_PX)))
            for sigma in (_ACROSS_PX, _BESIDE_PX)
        )
        kernel_KK = narrow_KK / narrow_KK.sum() - wide_KK / wide_KK.sum()
        kernels.append((kernel_KK / np.linalg.norm(kernel_KK)).astype(np.float32))
    return kernels


def _gain(answer_hw: Map, scale: Scale) -> Map:
    """What a path gains at each place: e = min(Z, 3) - 0.6."""
    mean_hw, deviation_hw = _around(answer_hw)
    gain_hw = np.minimum(answer_hw, _MOST_HERE)
    gain_hw -= np.minimum(mean_hw, scale.level)
    gain_hw /= np.minimum(deviation_hw, scale.spread)
    np.minimum(gain_hw, _MOST_EVIDENCE, out=gain_hw)
    gain_hw -= _COST
    return gain_hw


def _around(answer_hw: Map) -> tuple[Map, Map]:
    """Mean and standard deviation of the answers around each place, by a Gaussian of 60 places."""
    height, width = answer_hw.shape
    size = (max(1, width // _REDUCED), max(1, height // _REDUCED))

    def mean(values_hw: Map) -> Map:
        small_hw = cv2.resize(values_hw, size, interpolation=cv2.INTER_AREA)
        small_hw = cv2.GaussianBlur(small_hw, (0, 0), _AROUND / _REDUCED, borderType=cv2.BORDER_REFLECT)
        return np.asarray(cv2.resize(small_hw, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)

    capped_hw = np.minimum(answer_hw, _MOST_AROUND)
    mean_hw = mean(capped_hw)
    variance_hw = mean(np.square(capped_hw, out=capped_hw)) - np.square(mean_hw)
    return mean_hw, np.sqrt(np.maximum(variance_hw, 1e-6))


def _best_paths(gain_hw: Map, orientation: int) -> Map:
    """F + B - e along one of the directions."""
    if orientation == 0:  # along rows
        return _down(np.ascontiguousarray(gain_hw.T)).T
    if orientation == 6:
        return _down(gain_hw)
    if orientation == 3:  # down to the right
        return _down_right(gain_hw)
    return _down_right(gain_hw[:, ::-1])[:, ::-1]


def _down(gain_hw: Map) -> Map:
    """Paths from row to row; aslant is one column to a side."""

    def come(gain_hw: Map) -> Map:
        sum_hw = np.empty_like(gain_hw)
        sum_hw[0] = gain_hw[0]
        before_w = np.full(gain_hw.shape[1] + 2, -np.inf, np.float32)  # the last row, with a column on both sides
        for row, gain_w in enumerate(gain_hw[1:], 1):
            before_w[1:-1] = sum_hw[row - 1]
            aslant_w = np.maximum(before_w[:-2], before_w[2:])
            sum_hw[row] = _step(gain_w, before_w[1:-1], aslant_w)
        return sum_hw

    return come(gain_hw) + come(gain_hw[::-1])[::-1] - gain_hw


def _down_right(gain_hw: Map) -> Map:
    """Paths from (y - 1, x - 1) to (y, x); aslant is from (y - 1, x) or (y, x - 1).

    Sheared, the anti-diagonals x + y become rows, and each follows from the two before it.
    """
    height, width = gain_hw.shape
    sheared_Th = np.full((height + width - 1, height), -np.inf, np.float32)
    for y, gain_w in enumerate(gain_hw):
        sheared_Th[y : y + width, y] = gain_w

    def come(gain_Th: Map) -> Map:
        sum_Th = np.empty_like(gain_Th)
        before_h, straight_h, aslant_h = (np.full(height, -np.inf, np.float32) for _ in range(3))
        for t, gain_h in enumerate(gain_Th):
            sum_Th[t] = _step(gain_h, straight_h, aslant_h)
            straight_h[1:] = before_h[:-1]
            before_h = sum_Th[t]
            aslant_h[:] = before_h
            np.maximum(aslant_h[1:], before_h[:-1], out=aslant_h[1:])
        return sum_Th

    total_Th = come(sheared_Th)
    total_Th += come(sheared_Th[::-1, ::-1])[::-1, ::-1]
    row, column = total_Th.strides
    total_hw = as_strided(total_Th, (height, width), (row + column, row))  # y + x counts the rows
    return total_hw - gain_hw


def _step(gain_W: Map, straight_W: Map, aslant_W: Map) -> Map:
    """What has come to each place of a row, from those before it."""
    best_W: Map = np.maximum(_MEMORY * straight_W, _MEMORY * aslant_W - _BEND)
    np.maximum(best_W, 0.0, out=best_W)
    best_W += gain_W
    return best_W
