"""Procedural concrete, sound and cracked: pictures for the demo and the tests, with exact masks.

Every ingredient is drawn anew for each image, so that sound images differ among themselves as
photographs do, and some hold dark spots that their darkness alone does not tell from a crack.
The pictures show that the program works, not which model is better: a ranking on synthetic cracks
does not hold on real ones.

Gray levels are float32 on the scale of 0-255 until `_expose` makes a photograph of them. Lengths
are in pixels and angles in radians, with x to the right and y down.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from crackvae.schema import Label

Gray: TypeAlias = npt.NDArray[np.uint8]
Field: TypeAlias = npt.NDArray[np.float32]
Points: TypeAlias = npt.NDArray[np.float64]

_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 90)
_OVERSAMPLING = 4  # sub-pixels along each axis of a crack mask
_STEP_PX = 2.0  # between the vertices of a crack
_SHIFT = 4  # fractional bits of the coordinates that OpenCV draws at
_NEUTRAL = 128  # zero, on a canvas of gray-level offsets: OpenCV smooths edges on 8 bits only


def concrete(rng: np.random.Generator, height: int = 227, width: int = 227) -> Gray:
    """Draws a photograph of sound concrete, gray_HW, from `rng`, `height` and `width` as in `cracked`."""
    light = rng.uniform(-math.pi, math.pi)
    return _expose(rng, _surface(rng, height, width, light))


def crack(rng: np.random.Generator, height: int, width: int, *, width_px: float) -> Field:
    """Draws the outline of a crack that runs through the image, with a few branches or none.

    Args:
        rng: The only source of chance; it is advanced.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        width_px: Mean width of the trunk, in pixels, from about 0.5. Branches start thinner, and
            taper.

    Returns:
        mask_HW, float32: the part of each pixel that the crack covers, in [0, 1].
    """
    canvas = np.zeros((height * _OVERSAMPLING, width * _OVERSAMPLING), np.uint8)
    frame_2 = np.array([width, height])
    heading = rng.uniform(-math.pi, math.pi)
    trunk_N2 = _walk(rng, heading, 1.6 * math.hypot(height, width))
    # Its middle lies near the middle of the image, and so its ends lie outside.
    trunk_N2 += rng.uniform(0.3, 0.7, 2) * frame_2 - trunk_N2[len(trunk_N2) // 2]
    count = len(trunk_N2)
    width_N = np.exp(0.35 * _wander(rng, count, every=12) + 0.2 * _wander(rng, count, every=3))
    visible_N = ((trunk_N2 >= 0) & (trunk_N2 < frame_2)).all(axis=1)
    width_N *= width_px / width_N[visible_N].mean()
    _fill_ribbon(rng, canvas, trunk_N2, width_N)

    for fork in rng.choice(np.flatnonzero(visible_N), rng.poisson(0.9)):
        turn = rng.choice((-1, 1)) * rng.uniform(0.4, 1.2)
        branch_N2 = _walk(rng, heading + turn, rng.uniform(0.15, 0.5) * min(height, width))
        branch_N2 += trunk_N2[fork] - branch_N2[0]
        taper_N = np.linspace(rng.uniform(0.4, 0.8), 0, len(branch_N2)) ** 0.7
        _fill_ribbon(rng, canvas, branch_N2, width_N[fork] * taper_N)
    mask_HW = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return mask_HW.astype(np.float32) / np.float32(255)


def cracked(
    rng: np.random.Generator, height: int = 227, width: int = 227, *, width_px: float | None = None
) -> tuple[Gray, npt.NDArray[np.bool_]]:
    """Draws a photograph of cracked concrete, and where its crack is.

    Args:
        rng: The only source of chance; it is advanced.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        width_px: Mean width of the crack, in pixels; None draws it from 1 to 5.

    Returns:
        gray_HW, uint8; and mask_HW, bool, true where the crack covers half of a pixel or more.
    """
    light = rng.uniform(-math.pi, math.pi)
    gray_HW = _surface(rng, height, width, light)
    if width_px is None:
        width_px = math.exp(rng.uniform(0, math.log(5)))
    mask_HW = crack(rng, height, width, width_px=width_px)

    # Along the far edge from the light some of the concrete has chipped off, and shines.
    x, y = -(1 + width_px / 3) * _unit(light)
    rim_HW = cv2.warpAffine(mask_HW, np.array([[1, 0, x], [0, 1, y]]), (width, height))
    uneven_HW = _noise(rng, height, width, cell_px=8)
    gray_HW += rng.uniform(0, 35) * rim_HW * np.clip(uneven_HW, 0, 1)
    # The crack swallows a share of the light; dirt and debris in it give some back.
    share_HW = np.clip(rng.uniform(0.2, 0.75) + 0.08 * uneven_HW, 0.15, 0.9)
    gray_HW *= 1 - mask_HW * share_HW
    return _expose(rng, gray_HW), mask_HW >= 0.5


def write_survey(folder: Path, *, normals: int, cracks: int, seed: int = 0, size: int = 227) -> None:
    """Writes a labelled survey: folder/normal/0000.jpg and on, folder/crack/0000.jpg and on.

    Image i of a label depends on the seed, the label, i and the size alone: asking for more images
    leaves the first ones as they are. Files of these names are replaced, all others left alone.

    Args:
        folder: Where the photos go; made where it is missing.
        normals: How many photos of sound concrete.
        cracks: How many photos of cracked concrete.
        seed: 0 or more.
        size: Height and width of a photo, in pixels.
    """
    for stream, (label, count) in enumerate(((Label.NORMAL, normals), (Label.CRACK, cracks))):
        for index in range(count):
            rng = np.random.default_rng([seed, stream, index])
            gray_HW = concrete(rng, size, size) if label == Label.NORMAL else cracked(rng, size, size)[0]
            _, data = cv2.imencode(".jpg", gray_HW, _JPEG)
            path = folder / label / f"{index:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.tobytes())  # not storage.write_bytes: these are not worth an fsync each


def _surface(rng: np.random.Generator, height: int, width: int, light: float) -> Field:
    """The gray_HW of sound concrete, lit from the direction `light`, before the camera."""
    gray_HW = _texture(rng, height, width, light)
    gray_HW += np.clip(rng.normal(174, 24), 100, 215)
    x, y = rng.exponential(8) * _unit(light)  # gray levels between opposite edges
    gray_HW += np.linspace(-x / 2, x / 2, width) + np.linspace(-y / 2, y / 2, height)[:, None]
    for _ in range(rng.poisson(0.8)):  # stains: damp, rust, efflorescence
        level_HW = _noise(rng, height, width, cell_px=rng.uniform(0.15, 0.5) * min(height, width))
        sharpness = rng.uniform(1.5, 6)
        inside_HW = 1 / (1 + np.exp(sharpness * (rng.uniform(0.5, 1.5) - level_HW)))
        gray_HW += rng.normal(-6, 12) * inside_HW

    offsets_HW = np.full((height, width), _NEUTRAL, np.uint8)
    _draw_specks(rng, offsets_HW, light)
    if rng.random() < 0.15:
        _draw_form_line(rng, offsets_HW)
    gray_HW += offsets_HW
    gray_HW -= _NEUTRAL
    return gray_HW


def _texture(rng: np.random.Generator, height: int, width: int, light: float) -> Field:
    """The grain_HW of cement, gray levels about 0: octaves of noise, the finer ones in relief."""
    angle, stretch = rng.uniform(-math.pi, math.pi), 1 + rng.exponential(0.4)  # of the trowel
    falloff = rng.uniform(0.5, 0.95)  # of the amplitude, from one octave to the next coarser one
    grain_HW = np.zeros((height, width), np.float32)
    for octave, cell_px in enumerate((2, 4, 9, 20, 45)):
        bumps_HW = _noise(rng, height, width, cell_px=cell_px, angle=angle, stretch=stretch)
        grain_HW += falloff**octave * rng.uniform(0.5, 1.5) * bumps_HW
        if octave == 1:  # what is smaller is grains, what is larger too flat for the light to show
            x, y = rng.uniform(0, 0.5) * _unit(light)
            grain_HW += x * cv2.Sobel(bumps_HW, -1, 1, 0) + y * cv2.Sobel(bumps_HW, -1, 0, 1)
    grain_HW *= np.clip(rng.lognormal(1.9, 0.35), 3, 16) / grain_HW.std()
    return grain_HW


def _noise(
    rng: np.random.Generator, height: int, width: int, *, cell_px: float, angle: float = 0.0, stretch: float = 1.0
) -> Field:
    """Smooth noise_HW of mean 0 and deviation about 1, in blobs of about `cell_px` pixels.

    The blobs are `stretch` times longer along the direction `angle`.
    """
    cells = math.hypot(height, width) / cell_px  # the grid covers the image however it is turned
    columns, rows = math.ceil(cells / stretch) + 4, math.ceil(cells) + 4
    blur = 0.7  # cells; without it the interpolation would show the grid
    grid = rng.standard_normal((rows, columns), np.float32) * (2 * math.sqrt(math.pi) * blur)
    grid = np.asarray(cv2.GaussianBlur(grid, (0, 0), blur), np.float32)
    cos, sin = _unit(angle) / cell_px
    turn_22 = np.array([[cos / stretch, sin / stretch], [-sin, cos]])
    move_2 = np.array([columns - 1, rows - 1]) / 2 - turn_22 @ np.array([width, height]) / 2
    to_grid_23 = np.column_stack([turn_22, move_2])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(grid, to_grid_23, (width, height), flags=flags), np.float32)


def _draw_specks(rng: np.random.Generator, offsets_HW: Gray, light: float) -> None:
    """Draws aggregate, a little brighter or darker than the cement, and pores: small dark pits."""
    stones, pores = rng.poisson(rng.exponential((6e-4, 1.2e-4)) * offsets_HW.size)
    radius_N = np.concatenate([rng.lognormal(0.7, 0.4, stones), rng.lognormal(0.5, 0.6, pores)])
    depth_N = np.concatenate([rng.normal(0, 9, stones), rng.uniform(10, 90, pores)])

    shape_NV = (stones + pores, 12)
    turn_V = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    long_N1 = rng.uniform(0, math.pi, (stones + pores, 1))
    reach_NV = 1 + 0.3 * np.cos(2 * (turn_V - long_N1)) + rng.normal(0, 0.12, shape_NV)
    reach_NV *= np.clip(radius_N, 0.6, 10)[:, None]
    outline_NV2 = reach_NV[..., None] * np.column_stack([np.cos(turn_V), np.sin(turn_V)])
    outline_NV2 += rng.uniform(0, offsets_HW.shape[::-1], (stones + pores, 1, 2))
    # The far wall of a pit is lit: the same outline, brighter, peeps out from under it.
    lit_NV2 = outline_NV2 - (0.3 + 0.1 * radius_N[:, None, None]) * _unit(light)
    for lit_V2, outline_V2, depth in zip(lit_NV2, outline_NV2, depth_N, strict=True):
        for points_V2, offset in ((lit_V2, 0.2 * depth), (outline_V2, -depth)):
            vertices_V2 = np.rint(points_V2 * 2**_SHIFT).astype(np.int32)
            cv2.fillPoly(offsets_HW, [vertices_V2], _NEUTRAL + offset, cv2.LINE_AA, _SHIFT)


def _draw_form_line(rng: np.random.Generator, offsets_HW: Gray) -> None:
    """Draws the print of a formwork joint: a faint straight line across the image."""
    height, width = offsets_HW.shape
    middle_2 = rng.uniform(0.1, 0.9, 2) * (width, height)
    reach_2 = math.hypot(height, width) * _unit(rng.uniform(-math.pi, math.pi))
    start, end = np.rint([middle_2 - reach_2, middle_2 + reach_2]).astype(int).tolist()
    level = _NEUTRAL + rng.choice((-1, 1)) * rng.uniform(5, 25)
    cv2.line(offsets_HW, start, end, level, int(rng.integers(1, 4)), cv2.LINE_AA)


def _unit(angle: float) -> Points:
    """The vector (x, y) of length 1 in a direction."""
    return np.array([math.cos(angle), math.sin(angle)])


def _walk(rng: np.random.Generator, heading: float, length_px: float) -> Points:
    """A path_N2, (x, y) in pixels every `_STEP_PX`, that strays from its heading and comes back."""
    count = max(round(length_px / _STEP_PX), 2)
    turn_N = 0.45 * _wander(rng, count, every=20) + 0.5 * _wander(rng, count, every=4)
    step_N2 = np.column_stack([np.cos(heading + turn_N), np.sin(heading + turn_N)])
    return np.asarray(_STEP_PX * np.cumsum(step_N2, axis=0), np.float64)


def _wander(rng: np.random.Generator, count: int, every: int) -> Points:
    """Values_N, with a standard normal one at every so many vertices and straight lines between."""
    knots = rng.standard_normal(count // every + 2)
    return np.interp(np.arange(count) / every, np.arange(len(knots)), knots)


def _fill_ribbon(rng: np.random.Generator, canvas: Gray, path_N2: Points, width_N: Points) -> None:
    """Fills a band around a path, with the given widths in pixels and each edge rough by itself."""
    tangent_N2 = np.gradient(path_N2, axis=0)
    normal_N2 = tangent_N2[:, ::-1] * (-1, 1) / np.linalg.norm(tangent_N2, axis=1, keepdims=True)
    # OpenCV also fills the sub-pixels under the outline itself, half of one on each side.
    width_N1 = np.maximum(width_N - 1 / _OVERSAMPLING, 0)[:, None]
    left_N1 = 0.5 + 0.12 * rng.standard_normal((len(path_N2), 1))  # the part of the width there
    left_N2 = path_N2 + width_N1 * left_N1 * normal_N2
    right_N2 = path_N2 - width_N1 * (1 - left_N1) * normal_N2
    quad_M42 = np.stack([left_N2[:-1], left_N2[1:], right_N2[1:], right_N2[:-1]], axis=1)
    quad_M42 = (quad_M42 + 0.5) * _OVERSAMPLING - 0.5  # centers of pixels lie on whole numbers
    meets_M2 = (quad_M42.max(axis=1) > -1) & (quad_M42.min(axis=1) < canvas.shape[::-1])
    for quad_42 in np.rint(quad_M42[meets_M2.all(axis=1)] * 2**_SHIFT).astype(np.int32):
        cv2.fillConvexPoly(canvas, quad_42, 255, cv2.LINE_8, _SHIFT)


def _expose(rng: np.random.Generator, gray_HW: Field) -> Gray:
    """The photograph of a surface: a soft lens, sensor noise, 8 bits."""
    photo_HW = cv2.GaussianBlur(gray_HW, (0, 0), rng.uniform(0.5, 0.9))
    noise_HW = rng.standard_normal(gray_HW.shape, np.float32)
    return np.clip(photo_HW + rng.uniform(0.3, 2) * noise_HW, 0, 255).astype(np.uint8)
