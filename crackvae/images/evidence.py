"""How much speaks for a crack at each place of a photograph: long, dark lines.

A crack goes on; texture does not. Line filters answer to short pieces of dark lines, the answers are
compared with those around them, and the best path through each place adds them up along its way. Cracks
too wide for that are looked for at a quarter of the resolution.

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
from numpy.typing import NDArray

from crackvae.images.decode import Gray
from crackvae.images.paths import DIRECTIONS, Map, best_paths
from crackvae.images.tile import strips

Sigma = NDArray[np.floating]
Bools = NDArray[np.bool_]

STEP = 2
"""A place of the evidence is so many pixels a side."""

_BACKGROUND_PX, _AROUND_PX = 15.0, 20.0  # sigmas
_HALO_PX = 140  # 4 of both
_BRIGHTEST = -2.0
_ORIENTATIONS = 12
_ACROSS_PX, _BESIDE_PX, _ALONG_PX = 1.0, 2.5, 5.0  # sigmas of a line filter
_REACH_PX = 15
_NEAREST = (-2, -1, 0, 1, 2)  # orientations of the lines that such a path may follow
_AROUND, _REDUCED = 60.0, 8  # sigma in places; computed at so much lower a resolution, as it is that smooth
_MOST_AROUND, _MOST_HERE, _MOST_EVIDENCE = 8.0, 20.0, 3.0  # of an answer, before it counts
_COST = 0.6  # of each step, so that a path through nothing ends
_WIDE = 4  # by how much the resolution is reduced for wide lines
_MOST_WIDE, _WIDE_COST = 1.5, 1.0  # of an answer in units of the strongest that sound concrete shows
_SHOWN = 0.999  # of the places of training normals: sound concrete hardly ever shows more
_SAMPLES = 4096  # places of an image that it is learned from


@dataclass(frozen=True)
class Scale:
    """What sound concrete shows, learned from training normals.

    Attributes:
        roughness: The most gray levels that the deviation s of a place counts for.
        noise: Robust standard deviation of a line filter's answers.
        level: The most that the mean answer around a place counts for.
        spread: The same of its standard deviation.
        wide_roughness: As roughness, at a quarter of the resolution.
        wide_answer: The answer of a line filter that one place in a thousand exceeds there.
    """

    roughness: float
    noise: float
    level: float
    spread: float
    wide_roughness: float
    wide_answer: float


def contrast(gray_HW: Gray, sigma_HW: Sigma, roughness: float) -> Map:
    """By how many standard deviations each pixel is darker than its surroundings.

    d / min(s, roughness), d = G15 x - x, with the Gaussian blur G15 of 15 pixels; s^2 is the `variance` of
    sigma^2, which the network expects there, and G20 d^2, which is around.

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


def variance(expected_hW: Map, around_hW: Map) -> Map:
    """What a place is compared with: expected^(1/4) around^(3/4), each with a squared gray level added.

    A geometric mean excuses less than an arithmetic one where the two differ much: where the network has seen nothing
    alike it expects anything, and a crack is part of what is around it. Three trainings of networks for bridge decks
    have a ROC-AUC of 0.892 to 0.895 by it, three earlier ones 0.880 to 0.892 by the arithmetic mean.
    """
    return np.asarray(np.sqrt(np.sqrt((1 + expected_hW) * (1 + around_hW) ** 3)), np.float32)


def background(gray_HW: Gray) -> Gray:
    """G15 x."""
    return np.asarray(cv2.GaussianBlur(gray_HW, (0, 0), _BACKGROUND_PX, borderType=cv2.BORDER_REFLECT), np.uint8)


def find_lines(gray_HW: Gray, sigma_HW: Sigma, scale: Scale, judged_hw: Bools | None = None) -> tuple[Map, Map]:
    """The evidence for a dark line through each place.

    1. the contrast, as by `contrast`;
    2. the answers R of twelve line filters, the larger of each 2x2 pixels, divided by noise;
    3. of each direction the largest of the five nearest, E, compared with those around it:
       Z = (E - min(G60 E, level)) / min(sd60 E, spread);
    4. the best path through each place that keeps to the direction (paths.py) with the gain
       e = min(Z, 3) - 0.6, where e is above 0; the largest of the directions;
    5. the same of wide lines, at a quarter of the resolution, with e = min(E / wide_answer, 1.5) - 1:
       only what sound concrete hardly ever shows counts. Both are added.

    Args:
        gray_HW: Of the photograph.
        sigma_HW: As for `contrast`.
        scale: As by `learn`.
        judged_hw: Places that paths may run through; None for all.

    Returns:
        evidence_hw, h = H // STEP, in 0..116, and contrast_HW. Of sound METU concrete one place in a
        hundred has evidence above 47, one in a thousand above 60.
    """
    contrast_HW = contrast(gray_HW, sigma_HW, scale.roughness)
    evidence_hw = _wide_lines(gray_HW, sigma_HW, scale, judged_hw)
    answer_Dhw = _by_direction(contrast_HW, scale.noise, STEP)
    for answer_hw in answer_Dhw:
        _to_gain(answer_hw, scale)
    evidence_hw += _along_paths(answer_Dhw, judged_hw)
    return evidence_hw, contrast_HW


def _wide_lines(gray_HW: Gray, sigma_HW: Sigma, scale: Scale, judged_hw: Bools | None) -> Map:
    """Step 5, brought to the resolution of the evidence."""
    height, width = (side // STEP for side in gray_HW.shape)
    quarter_hw = contrast(*_reduced(gray_HW, sigma_HW), scale.wide_roughness)
    if judged_hw is not None:
        size = quarter_hw.shape[::-1]
        judged_hw = cv2.resize(judged_hw.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    answer_Dhw = _by_direction(quarter_hw, scale.wide_answer)
    gain_Dhw = np.minimum(answer_Dhw, _MOST_WIDE, out=answer_Dhw)
    gain_Dhw -= _WIDE_COST
    wide_hw = _along_paths(gain_Dhw, judged_hw)
    return np.asarray(cv2.resize(wide_hw, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def _along_paths(gain_Dhw: Map, judged_hw: Bools | None) -> Map:
    """The largest sum of a path in any of the directions, where it gains something."""
    largest_hw = np.zeros(gain_Dhw.shape[1:], np.float32)
    for orientation, gain_hw in zip(DIRECTIONS, gain_Dhw, strict=True):
        if judged_hw is not None:
            gain_hw[~judged_hw] = -_COST
        np.maximum(largest_hw, best_paths(gain_hw, orientation), out=largest_hw, where=gain_hw > 0)
    return largest_hw


def _reduced(gray_HW: Gray, sigma_HW: Sigma) -> tuple[Gray, Map]:
    """A quarter of the resolution, by pixel area."""
    height, width = (max(1, side // _WIDE) for side in gray_HW.shape)
    sigma_hw = np.empty((height, width), np.float32)
    for rows, _, _ in strips(height, 0):  # sigma is of half floats, which OpenCV does not resize
        strip_hW = sigma_HW[_WIDE * rows.start : _WIDE * rows.stop].astype(np.float32)
        size = (width, rows.stop - rows.start)
        sigma_hw[rows] = cv2.resize(strip_hW, size, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(gray_HW, (width, height), interpolation=cv2.INTER_AREA), np.uint8), sigma_hw


def learn(normals: Sequence[tuple[Gray, Sigma]]) -> Scale:
    """Learns what sound concrete shows.

    Args:
        normals: Gray levels and expected standard deviation, as for `contrast`, of training normals.

    Returns:
        noise is the median absolute answer of the normals / 0.6745, all else what one of their places in a
        thousand exceeds.
    """
    roughness = _rough(normals)
    contrasts = [contrast(gray_HW, sigma_HW, roughness) for gray_HW, sigma_HW in normals]
    sizes = [np.abs(_sample(answer_hw)) for contrast_HW in contrasts for answer_hw in _pooled(contrast_HW)]
    noise = float(np.median(np.concatenate(sizes))) / 0.6745
    around = [_around(answer_hw) for x_HW in contrasts for answer_hw in _by_direction(x_HW, noise, STEP)]
    level, spread = (_shown(statistic) for statistic in zip(*around, strict=True))
    reduced = [_reduced(*normal) for normal in normals]
    wide_roughness = _rough(reduced)
    quarters = (contrast(*normal, wide_roughness) for normal in reduced)
    wide = (_by_direction(x_hw, 1.0).max(axis=0) for x_hw in quarters)
    return Scale(roughness, noise, level, spread, wide_roughness, _shown(wide))


def _rough(normals: Iterable[tuple[Gray, Sigma]]) -> float:
    deviations = (deviation_hW for normal in normals for _, _, deviation_hW in _deviations(*normal))
    return _shown(deviations)


def _shown(maps: Iterable[Map]) -> float:
    return float(np.quantile(np.concatenate([_sample(map_HW) for map_HW in maps]), _SHOWN))


def _sample(map_HW: Map) -> Map:
    """Values at places spread over a map."""
    flat_P = map_HW.ravel()
    return flat_P[np.linspace(0, flat_P.size - 1, min(_SAMPLES, flat_P.size)).astype(np.int64)]


def _deviations(gray_HW: Gray, sigma_HW: Sigma) -> Iterator[tuple[slice, Map, Map]]:
    """D and s of a strip of rows after the other."""

    def blur(x_hW: Map, sigma: float) -> Map:
        return np.asarray(cv2.GaussianBlur(x_hW, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float32)

    for rows, with_halo, inside in strips(len(gray_HW), _HALO_PX):
        x_hW = gray_HW[with_halo].astype(np.float32)
        darker_hW = blur(x_hW, _BACKGROUND_PX) - x_hW
        around_hW = blur(np.square(darker_hW), _AROUND_PX)[inside]
        expected_hW = np.square(sigma_HW[rows], dtype=np.float32)
        yield rows, darker_hW[inside], np.sqrt(variance(expected_hW, around_hW))


def _by_direction(contrast_HW: Map, unit: float, step: int = 1) -> Map:
    """answer_Dhw, of each step x step pixels the largest in the orientations nearest to a direction, not below 0."""
    height, width = (side // step for side in contrast_HW.shape)
    answer_Dhw = np.zeros((len(DIRECTIONS), height, width), np.float32)
    for orientation, answer_hw in enumerate(_filtered(contrast_HW) if step == 1 else _pooled(contrast_HW)):
        for direction, largest_hw in zip(DIRECTIONS, answer_Dhw, strict=True):
            if orientation in [(direction + turn) % _ORIENTATIONS for turn in _NEAREST]:
                np.maximum(largest_hw, answer_hw, out=largest_hw)
    answer_Dhw /= unit
    return answer_Dhw


def _filtered(contrast_HW: Map) -> Iterator[Map]:
    """The answer of each line filter in turn."""
    for kernel_KK in _line_filters():
        yield np.asarray(cv2.filter2D(contrast_HW, cv2.CV_32F, kernel_KK, borderType=cv2.BORDER_REFLECT), np.float32)


def _pooled(contrast_HW: Map) -> Iterator[Map]:
    """Of the same, the largest of each 2x2 pixels."""
    height, width = (side // STEP for side in contrast_HW.shape)
    for kernel_KK in _line_filters():
        answer_hw = np.empty((height, width), np.float32)
        for rows, with_halo, inside in strips(STEP * height, _REACH_PX):
            filtered_hW = cv2.filter2D(contrast_HW[with_halo], cv2.CV_32F, kernel_KK, borderType=cv2.BORDER_REFLECT)
            inside_hW = filtered_hW[inside, : STEP * width]
            rows_hW = np.maximum(inside_hW[0::2], inside_hW[1::2])
            np.maximum(rows_hW[:, 0::2], rows_hW[:, 1::2], out=answer_hw[rows.start // STEP : rows.stop // STEP])
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


def _to_gain(answer_hw: Map, scale: Scale) -> None:
    """Puts in the place of each answer what a path gains there: e = min(Z, 3) - 0.6."""
    mean_hw, deviation_hw = _around(answer_hw)
    gain_hw = np.minimum(answer_hw, _MOST_HERE, out=answer_hw)
    gain_hw -= np.minimum(mean_hw, scale.level)
    gain_hw /= np.minimum(deviation_hw, scale.spread)
    np.minimum(gain_hw, _MOST_EVIDENCE, out=gain_hw)
    gain_hw -= _COST


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
