"""`crackvae split`: reads every image once, groups twins, plans the splits, checks for leaks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crackvae.config import ImageConfig
from crackvae.dataset import leakage, manifest, splits, twins
from crackvae.dataset.leakage import Leakage
from crackvae.dataset.reader import Reader
from crackvae.dataset.tiles import hash_content, of_each
from crackvae.errors import ImageError, InputError
from crackvae.images.decode import decode
from crackvae.schema import MANIFEST, Label, Split, Status
from crackvae.terminal import log


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
    twins are. Images that cannot be decoded get no split. Options are those of `splits.plan`.

    Raises:
        InputError: There are no normals, too few of something, or no readable image.
    """
    grouped = group(table)
    names, labels = grouped.table["group"].to_pylist(), table["label"].to_pylist()
    failed = {row: status for row, status in enumerate(grouped.statuses) if status != Status.OK}
    labels = [None if row in failed else label for row, label in enumerate(labels)]
    planned = splits.plan(labels, names, external_normal=external_normal, external_crack=external_crack, seed=seed)
    return Plan(
        _with(grouped.table, "split", planned),
        leakage.check(grouped.vector_ND, grouped.table["content_hash"].to_pylist(), planned, seed=seed),
        len(set(names)),
        {table["image_id"][row].as_py(): status for row, status in failed.items()},
    )


class Grouped(NamedTuple):
    """A manifest whose twins share a group.

    Attributes:
        table: The manifest with group and content_hash filled in.
        vector_ND: Thumbnail of each image, as by `twins.thumbnail_vector`; zeros where one failed.
        statuses: Of each image.
    """

    table: pa.Table
    vector_ND: NDArray[np.float32]
    statuses: list[Status]


def group(table: pa.Table) -> Grouped:
    """Reads every image of a manifest once and groups twins, joined with the groups that it brings along.

    Raises:
        InputError: No image can be read.
    """
    uris, limits = table["uri"].to_pylist(), ImageConfig()
    vector_ND = np.zeros((len(uris), twins.THUMBNAIL**2), np.float32)
    content_hash: list[str | None] = [None] * len(uris)
    statuses = [Status.OK] * len(uris)

    def read(reader: Reader, row: int) -> None:
        try:
            data = reader.read(uris[row], limits.max_megabytes * 10**6)
            content_hash[row] = hash_content(data)
            gray_HW = decode(data, min_side=limits.min_side, max_megapixels=limits.max_megapixels).gray_HW
            vector_ND[row] = twins.thumbnail_vector(gray_HW)
        except ImageError as error:
            statuses[row] = error.status

    for _ in of_each(read, range(len(uris)), len(os.sched_getaffinity(0)), "images"):
        pass
    if Status.OK not in statuses:
        reason = Counter(statuses).most_common(1)[0][0] if statuses else "there is none"
        raise InputError(f"none of {len(table)} images can be read ({reason}); check the manifest")
    given_N2 = np.stack([np.arange(len(table)), twins.first_rows(table["group"].to_pylist())], axis=1)
    group_N = twins.joined(twins.twin_groups(vector_ND, content_hash), [given_N2])
    image_id = table["image_id"].to_pylist()
    table = _with(table, "group", [image_id[row] for row in group_N])
    return Grouped(_with(table, "content_hash", content_hash), vector_ND, statuses)


def apart(table: pa.Table) -> pa.Table:
    """The training normals of a manifest, without those that have a twin in another split.

    `split` leaves none, but images may have joined its manifest since, or the splits be the user's own: where an
    image has no group, all that have a split are read and compared.

    Raises:
        InputError: Every training normal has such a twin.
    """
    train = manifest.rows(table, split=Split.TRAIN, label=Label.NORMAL)
    others = table.filter(pc.not_equal(table["split"], str(Split.TRAIN)).fill_null(False))
    if others.num_rows == 0 or train["group"].null_count + others["group"].null_count == 0:
        return train
    log.info("some images are in no group: looking for twins of training images in the other splits")
    name = group(pa.concat_tables([train, others])).table["group"]
    crossing_N = pc.is_in(name[: train.num_rows], name[train.num_rows :].combine_chunks()).to_numpy()
    if crossing_N.any():
        first = train["image_id"][int(np.argmax(crossing_N))]
        log.warning("%d training images, first %s, have a twin in another split; left out", crossing_N.sum(), first)
    if crossing_N.all():
        raise InputError("every training normal has a twin in another split; run `crackvae split`")
    return train.filter(pa.array(~crossing_N))


def _with(table: pa.Table, name: str, values: Sequence[str | None]) -> pa.Table:
    return table.set_column(MANIFEST.get_field_index(name), MANIFEST.field(name), pa.array(values, pa.string()))
