"""The task that decodes training images. Imports no torch, so that it starts in half a second."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from crackvae.config import ImageConfig
from crackvae.dataset.decoder import Decoder
from crackvae.images.appearance import FEATURES, cells, of_tiles
from crackvae.images.decode import Gray
from crackvae.images.ground import COARSEST
from crackvae.images.tile import cut, resample
from crackvae.schema import Status


def decode_batch(files: pa.Table, image: ImageConfig, most: int) -> dict[str, Any]:
    """Files, as for `Decoder.photographs`, to their tiles; those that fail are left out.

    Args:
        files: A block of them.
        image: How a file becomes tiles.
        most: Native tiles taken of one image; which, follows from the place of the file in the block.

    Returns:
        tile; is_first, once an image; and of native tiles, feature and mm_per_pixel (NaN where
        unknown).
    """
    if image.tiling != "native":
        tiles_NSS, part = _decoder(image).read(files)
        ok_N = np.asarray(part["status"].to_pylist()) == str(Status.OK)
        return {"tile": tiles_NSS[ok_N], "is_first": np.ones(np.count_nonzero(ok_N), np.bool_)}
    size = image.tile_size
    no_tile = np.empty((0, size, size), np.uint8), np.empty((0, len(FEATURES)), np.float32)
    columns = [(*no_tile, np.empty(0), np.empty(0, np.bool_))]
    for index, (row, arrays) in enumerate(_decoder(image).photographs(files)):
        gray_HW = at_pitch(row, arrays[0], image) if arrays else None
        if gray_HW is None:
            continue
        tile_NSS = cut(gray_HW, size, 0)
        feature_NF = of_tiles(cells(gray_HW, arrays[1]), gray_HW.shape, size, 0)
        taken = np.sort(np.random.default_rng(index).permutation(len(tile_NSS))[:most])
        own_N = np.full(len(taken), row.get("mm_per_pixel") or np.nan)
        columns.append((tile_NSS[taken], feature_NF[taken], own_N, np.arange(len(taken)) == 0))
    names = ("tile", "feature", "mm_per_pixel", "is_first")
    return {name: np.concatenate(parts) for name, parts in zip(names, zip(*columns, strict=True), strict=True)}


def at_pitch(row: Mapping[str, Any], gray_HW: Gray, image: ImageConfig) -> Gray | None:
    """A training image at the model's pixel pitch; None where it is unknown, too coarse or smaller than a tile."""
    own, pitch = row.get("mm_per_pixel"), image.mm_per_pixel
    if pitch and not (own and own <= COARSEST * pitch):
        return None
    factor = own / pitch if own and pitch else 1.0
    return resample(gray_HW, factor) if round(factor * min(gray_HW.shape)) >= image.tile_size else None


@cache
def _decoder(image: ImageConfig) -> Decoder:
    return Decoder(image)  # one per process: it keeps archives open between tasks, and ends with it
