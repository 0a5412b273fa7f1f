"""The task that decodes training images. Imports no torch, so that it starts in half a second."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from crackvae.config import ImageConfig
from crackvae.dataset.decoder import Decoder
from crackvae.schema import Status


def decode_batch(files: pa.Table, image: ImageConfig) -> dict[str, Any]:
    """Files, as for `Decoder.read`, to their `tile`; those that fail are left out."""
    tiles_NSS, part = _decoder(image).read(files)
    ok_N = np.asarray(part["status"].to_pylist()) == str(Status.OK)
    return {"tile": tiles_NSS[ok_N]}


@cache
def _decoder(image: ImageConfig) -> Decoder:
    return Decoder(image)  # one per process: it keeps archives open between tasks, and ends with it
