"""Anomaly maps of the first photographs of a run, kept until its pictures are drawn.

To compute them again takes as long as to score them did: half of the time of a run of a few photographs. They are no
results: where one is missing, whoever draws computes it.
"""

from __future__ import annotations

import io
from contextlib import suppress
from hashlib import sha256

import numpy as np
from PIL import Image

from crackvae import storage
from crackvae.errors import UnavailableError
from crackvae.images.evidence import Bools
from crackvae.images.paths import Map

MAPS = "maps"

_SHARDS = 64  # of 4 MiB, a photograph, at most; beside the scoring of more, a dozen pictures take no time
_PIXELS = 10**6  # of the file; the map of a smaller one is soon computed
_LIMIT = 128  # gray level of the model's limit; 0 was not judged


def is_kept(shard: int, pixels: int) -> bool:
    """Whether the map of a photograph of a shard, with so many pixels, is kept."""
    return shard < _SHARDS and pixels >= _PIXELS


def keep(run: str, image_id: str, map_hw: Map, judged_hw: Bools, limit: float) -> None:
    """Keeps a map and what was judged. Where that fails, for whatever reason, nothing is kept.

    Args:
        run: Location of the run.
        image_id: Of the photograph.
        map_hw: Its anomaly map, at least 0.
        judged_hw: Where it was judged.
        limit: Of the map.
    """
    with suppress(Exception):  # the photograph is scored
        level_hw = judged_hw * np.clip(np.rint(map_hw * (_LIMIT / limit)), 1, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(level_hw).save(file, "PNG", compress_level=1)
        storage.write_bytes(_path(run, image_id), file.getvalue())


def kept(run: str, image_id: str, limit: float) -> tuple[Map, Bools] | None:
    """The map in steps of a 128th of the limit, up to twice as much, and what was judged; None where none was kept."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(_path(run, image_id))), formats=["PNG"]) as image:
            level_hw = np.asarray(image)
    except Exception:  # a damaged file raises nearly anything
        return None
    return np.asarray(level_hw * np.float32(limit / _LIMIT), np.float32), level_hw > 0


def remove(run: str) -> None:
    """Removes all of them, unless another process does so, too."""
    with suppress(OSError, UnavailableError):
        storage.remove(storage.join(run, MAPS))


def _path(run: str, image_id: str) -> str:
    return storage.join(run, MAPS, f"{sha256(image_id.encode()).hexdigest()[:32]}.png")
