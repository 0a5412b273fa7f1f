"""What a surface looks like, cell by cell: brightness, texture and color, which a crack hardly changes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from crackvae.images.decode import Gray
from crackvae.images.tile import blur, corners, strips

CELL = 16
"""Side of a cell in pixels."""

FEATURES = ("brightness", "fine texture", "coarse texture", "blue", "red")

_FINE, _COARSE = 2.0, 8.0  # sigmas in pixels
_HALO = 32  # 4 of the larger sigma


def cells(gray_HW: Gray, chroma_HW2: Gray) -> NDArray[np.float32]:
    """Features of each cell of an image.

    Args:
        gray_HW: Gray levels, at least a cell a side.
        chroma_HW2: Cb and Cr of the image, of any lower resolution; 128 is gray.

    Returns:
        feature_hwF, h = H // CELL, in the order of FEATURES: mean gray level; log2 of the mean of
        |x - G2 x| and of |G2 x - G8 x|, with Gaussian blurs of 2 and 8 pixels; Cb; Cr.
    """
    height, width = (CELL * (length // CELL) for length in gray_HW.shape)
    parts = []
    for _, with_halo, inside in strips(height, _HALO):
        x_hW = gray_HW[with_halo].astype(np.float32)
        blurred = (cv2.GaussianBlur(x_hW, (0, 0), sigma) for sigma in (_FINE, _COARSE))
        means = _means(*(part_hW[inside, :width] for part_hW in (x_hW, *blurred)))
        parts.append(_octaves(np.stack(means, axis=2)))
    feature_hw3 = np.concatenate(parts)
    color_hw2 = cv2.resize(chroma_HW2, feature_hw3.shape[1::-1], interpolation=cv2.INTER_AREA)
    return np.concatenate([feature_hw3, color_hw2.astype(np.float32)], axis=2)


def _means(x_HW: NDArray[Any], fine_HW: NDArray[Any], coarse_HW: NDArray[Any]) -> list[NDArray[Any]]:
    size = tuple(length // CELL for length in x_HW.shape[::-1])
    maps = (x_HW, cv2.absdiff(x_HW, fine_HW), cv2.absdiff(fine_HW, coarse_HW))
    return [cv2.resize(m_HW, size, interpolation=cv2.INTER_AREA) for m_HW in maps]


def _octaves(mean_K3: NDArray[Any]) -> NDArray[np.float32]:
    """The two textures in octaves, in place."""
    mean_K3[..., 1:] = np.log2(mean_K3[..., 1:] + 0.25)  # a quarter of a gray level: rounding, not texture
    return mean_K3


def of_tiles(feature_hwF: NDArray[np.float32], shape: tuple[int, int], size: int, overlap: int) -> NDArray[np.float32]:
    """Features of the tiles of an image: medians over their cells, so that a crack, which fills few, does not count.

    Args:
        feature_hwF: From `cells`.
        shape: Height and width of the image in pixels.
        size: Side of a tile.
        overlap: Of neighbouring tiles.

    Returns:
        feature_NF, row by row as `tile.cut` orders them.
    """
    span = size // CELL
    places = [(y // CELL, x // CELL) for y, x in corners(shape, size, overlap)]
    views = (feature_hwF[y : y + span, x : x + span].reshape(-1, feature_hwF.shape[2]) for y, x in places)
    return np.stack([np.median(view_CF, axis=0) for view_CF in views])


def looks(
    gray_HW: Gray, feature_NF: NDArray[np.float32], judged_hw: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """What an image looks like, in four of `schema.LOOKS`.

    Args:
        gray_HW: The image.
        feature_NF: Of its tiles that are judged, as by `of_tiles`.
        judged_hw: Where they lie, at any lower resolution; None where all of the image is judged.

    Returns:
        contrast is the standard deviation of the gray levels that are judged; brightness, sharpness and
        texture are the means of the tiles' brightness, fine texture and coarse texture.
    """
    mask_HW = None
    if judged_hw is not None:
        mask_HW = cv2.resize(judged_hw.astype(np.uint8), gray_HW.shape[::-1], interpolation=cv2.INTER_NEAREST)
    brightness, sharpness, texture = (float(mean) for mean in feature_NF[:, :3].mean(axis=0))
    contrast = float(cv2.meanStdDev(gray_HW, mask=mask_HW)[1][0, 0])
    return {"brightness": brightness, "contrast": contrast, "sharpness": sharpness, "texture": texture}


def looks_of_tiles(tile_NSS: Gray) -> dict[str, NDArray[np.float32]]:
    """The same of images that are one tile each, with the coarser blur at half the resolution, for speed."""
    means, contrast_N = [], np.empty(len(tile_NSS), np.float32)
    for number, tile_SS in enumerate(tile_NSS):
        x_SS = tile_SS.astype(np.float32)
        means.append(_means(x_SS, cv2.GaussianBlur(x_SS, (0, 0), _FINE), blur(x_SS, _COARSE)))
        contrast_N[number] = cv2.meanStdDev(tile_SS)[1][0, 0]
    mean_NC3 = np.asarray(means, np.float32).reshape(len(tile_NSS), 3, -1).transpose(0, 2, 1)
    brightness_N, sharpness_N, texture_N = np.median(_octaves(mean_NC3), axis=1).T
    return {"brightness": brightness_N, "contrast": contrast_N, "sharpness": sharpness_N, "texture": texture_N}
