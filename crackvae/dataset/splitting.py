"""`crackvae split`: reads every image once, groups twins, plans the splits, checks for leaks."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crackvae.config import ImageConfig
from crackvae.dataset import leakage, splits, twins
from crackvae.dataset.leakage import Leakage
from crackvae.dataset.sources import Reader
from crackvae.dataset.tiles import hash_content
from crackvae.errors import ImageError, InputError
from crackvae.images.decode import decode
from crackvae.schema import MANIFEST, Status
from crackvae.terminal import progress

_CHUNK = 64  # images a thread takes at a time: enough to read an archive mostly in its order


@dataclass(frozen=True)
class Plan:
    """A manifest with splits, and the proof that they do not leak.

    Attributes:
        table: The manifest with group, split and content_hash filled in.
        leakage: What brute force found across the splits.
        groups: Number of groups; the images fewer than that are twins.
        failed: Why an image has no split because it cannot be decoded, by image_id.
    """

    table: pa.Table
    leakage: Leakage
    groups: int
    failed: dict[str, Status]


def split(table: pa.Table, *, external_normal: float = 0.25, external_crack: float = 0.75, seed: int = 0) -> Plan:
    """Splits a labelled manifest by the reference plan; no group crosses a split.

    A `group` that the manifest brings along (the photograph of a crop, say) is kept together as
    twins are. Images that cannot be decoded get no split.

    Args:
        table: The manifest.
        external_normal: Share (float) or number (int) of normals in the external set.
        external_crack: The same for cracks.
        seed: Another seed, another order of the groups.

    Raises:
        InputError: There are no normals, too few of something, or no readable image.
    """
    vector_ND, content_hash, statuses = _read(table["uri"].to_pylist())
    ok_N = np.array([status == Status.OK for status in statuses], bool)
    if not ok_N.any():
        reason = Counter(statuses).most_common(1)[0][0]
        raise InputError(f"none of {len(table)} images can be read ({reason}); check the manifest")
    given_N2 = np.stack([np.arange(len(table)), twins.first_rows(table["group"].to_pylist())], axis=1)
    group_N = twins.joined(twins.twin_groups(vector_ND, content_hash), [given_N2])
    image_id = table["image_id"].to_pylist()
    names = [image_id[row] for row in group_N]
    labels = [label if ok else None for label, ok in zip(table["label"].to_pylist(), ok_N, strict=True)]
    planned = splits.plan(labels, names, external_normal=external_normal, external_crack=external_crack, seed=seed)
    columns = {"group": names, "split": planned, "content_hash": content_hash}
    for name, values in columns.items():
        index = MANIFEST.get_field_index(name)
        table = table.set_column(index, MANIFEST.field(name), pa.array(values, pa.string()))
    return Plan(
        table,
        leakage.check(vector_ND, content_hash, planned, seed=seed),
        len(set(names)),
        {name: status for name, status in zip(image_id, statuses, strict=True) if status != Status.OK},
    )


def _read(
    uris: Sequence[str],
) -> tuple[NDArray[np.float32], list[str | None], list[Status]]:
    """Thumbnail vector_ND, content hash and status of each image; zeros where one failed."""
    limits = ImageConfig()
    local = threading.local()
    vector_ND = np.zeros((len(uris), twins.THUMBNAIL**2), np.float32)
    hashes: list[str | None] = [None] * len(uris)
    statuses = [Status.OK] * len(uris)

    def read(start: int) -> int:
        if not hasattr(local, "reader"):
            local.reader = Reader()
        stop = min(start + _CHUNK, len(uris))
        for row in range(start, stop):
            try:
                data = local.reader.read(uris[row], limits.max_megabytes * 10**6)
                hashes[row] = hash_content(data)
                gray_HW = decode(data, min_side=limits.min_side, max_megapixels=limits.max_megapixels).gray_HW
                vector_ND[row] = twins.thumbnail_vector(gray_HW)
            except ImageError as error:
                statuses[row] = error.status
        return stop - start

    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        progress("reading", len(uris), "images") as advance,
    ):
        for count in pool.map(read, range(0, len(uris), _CHUNK)):
            advance(count)
    return vector_ND, hashes, statuses
