"""Pictures of photographs with their anomaly maps: those with the highest scores, and some others."""

from __future__ import annotations

import io
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from crackvae.dataset.decoder import Decoder
from crackvae.dataset.reader import Reader
from crackvae.images.decode import FORMATS, Gray
from crackvae.images.ground import Ground
from crackvae.model import backend
from crackvae.model.artifact import Artifact
from crackvae.model.photograph import PhotoScorer
from crackvae.report import overlay
from crackvae.report.findings import read_regions
from crackvae.run import maps
from crackvae.terminal import log, progress

WORST, OTHERS = 8, 4
"""How many are drawn."""

_THREADS = 2  # they take 8 s for what one takes 14 s, on two cores; each holds a photograph and its maps, 0.7 GB

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NAME_LETTERS = 60


def highest(scored: pd.DataFrame) -> pd.Index[int]:
    """Those that are drawn, whatever others there are."""
    return scored["score"].sort_values(ascending=False, kind="stable").index[:WORST]


def draw(run: str, scored: pd.DataFrame, model: Artifact, seed: int) -> Iterator[tuple[str, bytes]]:
    """Draws photographs; one that can no longer be read is left out, and the log says so.

    Args:
        run: Where it lies.
        scored: Rows of its results that have a score, those of `highest` among them.
        model: What scored them.
        seed: Of the choice of the others.

    Yields:
        File name and JPEG.
    """
    rows = scored.loc[_chosen(scored, seed)]
    files = pa.table({"uri": pa.array(rows["uri"])})
    boxes = read_regions(run, rows["image_id"].tolist()).boxes
    assert model.photographs is not None
    limit = model.photographs.map_limit
    scorer = PhotoScorer(model, "cpu", backend.resolve("cpu", "auto").precision)
    with (
        Decoder(model.config.image) as decoder,
        Reader() as reader,
        ThreadPoolExecutor(_THREADS) as pool,
        progress("drawing", len(rows), "images") as advance,
    ):
        lock = threading.Lock()

        def picture(row: dict[Any, Any], answer: tuple[dict[str, Any], list[Gray]]) -> bytes:
            found, arrays = answer
            if not arrays:
                raise OSError(found["message"])
            size = row["height"], row["width"]
            with lock:
                data = reader.read(row["uri"], model.config.image.max_megabytes * 10**6)
            pitch = row["mm_per_pixel"]
            ground = None if pd.isna(pitch) else Ground(pitch, row["mm_per_pixel_error"])
            with Image.open(io.BytesIO(data), formats=FORMATS) as photo:
                if arrays[0].shape != size or sorted(photo.size) != sorted(size):
                    raise OSError("changed since it was scored")
                shown = maps.kept(run, row["image_id"], limit) or scorer.anomaly_map(arrays[0], arrays[1], ground)
                return overlay.draw(
                    photo,
                    *shown,
                    limit,
                    boxes.get(row["image_id"], ()),
                    title=row["image_id"],
                    score=row["score"],
                    p_value=row["p_value"],
                    is_bound=bool(row["p_value_is_bound"]),
                )

        records = rows.to_dict("records")
        drawn = _ahead(pool, picture, zip(records, decoder.photographs(files), strict=True))
        for rank, (row, future) in enumerate(zip(records, drawn, strict=True), 1):
            name = _UNSAFE.sub("_", row["image_id"])[-_NAME_LETTERS:].removesuffix(".jpg")
            try:
                yield f"{rank:02d}-{name}.jpg", future.result()
            except Exception as error:  # a picture less is no reason to end a job that has scored everything
                log.warning("%s: cannot be drawn: %s", row["image_id"], " ".join(str(error).split()))
            advance(1)


def _chosen(scored: pd.DataFrame, seed: int) -> list[int]:
    """Rows: the highest scores first, then others at random."""
    first = highest(scored)
    return [*first, *np.random.default_rng(seed).permutation(scored.index.drop(first))[:OTHERS]]


def _ahead(
    pool: ThreadPoolExecutor, act: Callable[..., bytes], items: Iterable[tuple[Any, ...]]
) -> Iterator[Future[bytes]]:
    """As `pool.map`, with no more than a few items in memory."""
    waiting: deque[Future[bytes]] = deque()
    for item in items:
        waiting.append(pool.submit(act, *item))
        if len(waiting) > _THREADS:
            yield waiting.popleft()
    yield from waiting
