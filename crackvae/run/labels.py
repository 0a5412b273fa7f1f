"""Labels that came after scoring: where a run has some, they take the place of its manifest's."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import InputError
from crackvae.run.directory import PLAN, SUCCESS, Run
from crackvae.schema import Label

LABELS = "labels.parquet"


def keep(run: Run, labels: pd.Series, origin: str) -> None:
    """Adds labels to those that the run directory has; the next finalize goes by them.

    Args:
        run: The run.
        labels: Of `schema.Label`, by image_id. An apostrophe before a name that the run does not know is taken
            away, as it is put before some names in results.csv.
        origin: Where they come from, for the error message.

    Raises:
        InputError: The run has no such image, or one is there twice.
    """
    unknown = _unknown(run, labels.index)
    as_in_csv = {name: name[1:] for name in unknown if name.startswith("'")}
    if as_in_csv:
        labels = labels.rename(index=as_in_csv)
        unknown = _unknown(run, labels.index)
    if labels.index.has_duplicates:
        twice = labels.index[labels.index.duplicated()][0]
        raise InputError(f"{origin}: {twice!r} is there twice, once with an apostrophe before it; keep one")
    if len(unknown):
        raise InputError(
            f"{origin}: {len(unknown):,} of {len(labels):,} images are not in {run.location}, first {unknown[0]!r}; "
            "give each its image_id, as in results.csv"
        )
    before = read(run)
    if before is not None:
        labels = labels.combine_first(before)
    storage.remove(run.path(SUCCESS))  # from now on the results are no longer complete
    with storage.writing(run.path(LABELS)) as stream:
        pq.write_table(pa.table({"image_id": labels.index.tolist(), "label": labels.tolist()}), stream)


def _unknown(run: Run, names: pd.Index) -> pd.Index:
    """Those of the names that no image of the run has."""
    with storage.open_input(run.path(PLAN)) as stream:
        for batch in pq.ParquetFile(stream).iter_batches(columns=["image_id"]):
            names = names.difference(pd.Index(batch["image_id"].to_pylist()), sort=False)
    return names


def read(run: Run) -> pd.Series | None:
    """What `keep` has written, by image_id.

    Raises:
        InputError: The file is damaged.
    """
    path = run.path(LABELS)
    if not storage.exists(path):
        return None
    try:
        with storage.open_input(path) as stream:
            table = pq.read_table(stream)
        labels = pd.Series(table["label"].to_pylist(), table["image_id"].to_pylist(), dtype=object)
        if not labels.index.is_unique or not labels.isin([str(label) for label in Label]).all():
            raise ValueError("an image is there twice, or has a label that is none")
        return labels
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        cure = "remove it and give all labels again by `crackvae evaluate RUN --labels FILE`"
        raise InputError(f"{path}: is damaged; {cure}") from error


def put(labels: pd.Series | None, image_id: pa.ChunkedArray, before: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The label of each image: the one that came after scoring, or else the one from before."""
    if labels is None:
        return before
    given = labels.reindex(image_id.to_pylist())
    return pa.array(given.where(given.notna(), before.to_pandas().to_numpy()), pa.string(), from_pandas=True)
