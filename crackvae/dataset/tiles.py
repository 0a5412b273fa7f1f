"""Files of a survey to tiles, a failed file keeping its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crackvae.config import ImageConfig
from crackvae.dataset.sources import Reader
from crackvae.errors import ImageError
from crackvae.images.tile import prepare
from crackvae.schema import PART, Status


def read_tiles(uris: Sequence[str], image: ImageConfig, reader: Reader) -> tuple[NDArray[np.uint8], pa.Table]:
    """Reads and decodes files.

    Args:
        uris: Of the files.
        image: How a file becomes a tile.
        reader: Keeps archives open between calls.

    Returns:
        tiles_NSS with zeros in the place of a file that failed, and a table of `schema.PART` with
        the URI as image_id and without scores.
    """
    tiles_NSS = np.zeros((len(uris), image.tile_size, image.tile_size), np.uint8)
    rows: list[dict[str, Any]] = []
    for index, uri in enumerate(uris):
        row: dict[str, Any] = {"image_id": uri, "status": str(Status.OK)}
        try:
            data = reader.read(uri, image.max_megabytes * 10**6)
            tiles_NSS[index], row["darkness"] = prepare(data, image)
        except ImageError as error:
            row |= {"status": str(error.status), "message": error.message}
        rows.append(row)
    return tiles_NSS, pa.Table.from_pylist(rows, PART)
