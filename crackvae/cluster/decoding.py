"""The task that decodes training images. Imports no torch, so that it starts in half a second."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np

from crackvae.config import ImageConfig
from crackvae.dataset.sources import Reader
from crackvae.dataset.tiles import read_tiles
from crackvae.schema import Status

Batch = dict[str, Any]


def decode_batch(batch: Batch, image: ImageConfig) -> Batch:
    """Files by `uri` to their `tile`; those that fail are left out."""
    cv2.setNumThreads(1)
    tiles_NSS, part = read_tiles(list(batch["uri"]), image, _reader())
    ok_N = np.asarray(part["status"].to_pylist()) == str(Status.OK)
    return {"tile": tiles_NSS[ok_N]}


@cache
def _reader() -> Reader:
    return Reader()  # one per process: it keeps archives open between tasks
