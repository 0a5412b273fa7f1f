"""What a nightly survey keeps between its nights.

::

    nights/2026-11-25/       a run of what was new or changed; the second of a day is 2026-11-25-2
    snapshots/2026-11-25/    photographs.parquet, the newest row of every photograph, and night.json; written once
    latest.json              night.json of the newest snapshot: with it the night is done
    listing.parquet          what the night under way has found; gone when it is done
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.dataset.table_files import counts
from crackvae.errors import InputError, RefusedError
from crackvae.run.directory import LOCK
from crackvae.schema import LISTING, RESULTS, SNAPSHOT, Change, Label, Status

NIGHTS, SNAPSHOTS = "nights", "snapshots"
LATEST, LISTED = "latest.json", "listing.parquet"
_PHOTOGRAPHS, _RECORD = "photographs.parquet", "night.json"
_KEY = b"crackvae.night"
_BLOCK = 65_536  # rows held in memory, and a row group
_LISTED = ("size", "mtime", "content_hash")  # of a photograph, as it was listed last
_KNOWN = ["uri", *_LISTED, "status", "present"]

Record = Mapping[str, Any]


def latest(root: str) -> Record | None:
    """The record of the newest night that is done, or None before the first.

    Raises:
        RefusedError: The directory holds something else.
        InputError: latest.json is damaged.
    """
    cure = f"copy {SNAPSHOTS}/NIGHT/{_RECORD} of the newest night there"
    record = storage.read_json(storage.join(root, LATEST), dict, cure)
    ours = (LOCK, LISTED, f"{NIGHTS}/", f"{SNAPSHOTS}/")
    if record is None and not all(name.startswith(ours) for name in storage.list_files(root)):
        raise RefusedError(f"{root}: holds something that is no nightly survey; give an empty directory")
    return record


def photographs(root: str, night: str) -> str:
    """Where the snapshot of a night lies."""
    return storage.join(root, SNAPSHOTS, night, _PHOTOGRAPHS)


def known(root: str, record: Record | None) -> pa.Table:
    """What a listing is compared with: a row per photograph of a snapshot, in its order; none without a record."""
    if record is None:
        return SNAPSHOT.empty_table().select(_KNOWN)
    path = photographs(root, record["night"])
    try:
        with storage.open_input(path) as stream:
            return pq.read_table(stream, columns=_KNOWN)
    except (OSError, ValueError, pa.ArrowException) as error:
        cure = f"restore it, or copy {_RECORD} of an older night over {LATEST}"
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); {cure}") from error


def compare(listing: pa.Table, before: pa.Table) -> pa.Table:
    """What of a manifest is new or changed since `known`, as a table of `schema.LISTING`.

    It goes by content where both hashes are known, else by size and mtime. What is not known of either (a table of
    URIs has no times) counts as equal. Neither this nor `write` makes a Python object per file.
    """
    at_L = _places(listing["uri"], before["uri"])
    was = before.select([*_LISTED, "status"]).take(at_L)
    same_L = pc.coalesce(
        pc.equal(listing["content_hash"], was["content_hash"]),
        pc.and_(*(_equal(listing[name], was[name]) for name in ("size", "mtime"))),
    )
    conditions = (pc.is_null(at_L), pc.invert(same_L), pc.equal(was["status"], str(Status.UNREADABLE)))
    cases = pc.make_struct(*(pc.fill_null(condition, False) for condition in conditions))
    change_L = pc.case_when(cases, *map(str, (Change.NEW, Change.CHANGED, Change.RETRIED, Change.SAME)))
    # An unchanged file keeps the hash that it had.
    content_L = pc.if_else(pc.and_(same_L, pc.is_valid(at_L)), was["content_hash"], None)
    place = LISTING.get_field_index("content_hash")
    listing = listing.set_column(place, "content_hash", pc.coalesce(listing["content_hash"], content_L))
    return listing.append_column("change", change_L).cast(LISTING)


def to_score(listing: pa.Table) -> pa.Table:
    """The files of a listing that a night scores."""
    return listing.filter(pc.not_equal(listing["change"], str(Change.SAME)))


def presence(listing: pa.Table, before: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Where each known photograph is in a listing (null: nowhere), and whether it counts as present.

    One below a folder that cannot be listed tonight counts as it did before.
    """
    at_K = _places(before["uri"], listing["uri"])
    present_K = pc.is_valid(at_K)
    for folder in listing.filter(pc.ends_with(listing["uri"], "/"))["uri"].to_pylist():
        present_K = pc.or_(present_K, pc.and_(before["present"], pc.starts_with(before["uri"], folder)))
    return at_K, present_K


def differences(listing: pa.Table, before: pa.Table) -> dict[str, int]:
    """How many files are listed, and what became of them since the snapshot.

    `touched` are those with another size or time, but equal content.
    """
    at_K, present_K = presence(listing, before)
    now = listing.select([*_LISTED, "change"]).take(at_K)
    moved_K = pc.invert(pc.and_(*(_equal(now[name], before[name]) for name in ("size", "mtime"))))
    masks = {
        "vanished": pc.and_(before["present"], pc.invert(present_K)),
        "returned": pc.and_(pc.invert(before["present"]), pc.is_valid(at_K)),
        "touched": pc.and_(pc.equal(now["change"], str(Change.SAME)), moved_K),
    }
    changes = Counter(counts(listing["change"]))
    told = {str(change): changes[str(change)] for change in Change if change is not Change.SAME}
    return {"listed": listing.num_rows} | told | {name: pc.sum(mask).as_py() or 0 for name, mask in masks.items()}


def knows_more(listing: pa.Table, before: pa.Table) -> bool:
    """Whether a listing has hashes of known photographs that the snapshot lacks."""
    at_L = _places(listing["uri"], before["uri"])
    learnt_L = pc.and_(pc.is_valid(listing["content_hash"]), pc.is_null(before["content_hash"].take(at_L)))
    return bool(pc.any(pc.and_(pc.is_valid(at_L), learnt_L)).as_py())


def begin(root: str, listing: pa.Table, record: Record) -> None:
    """Keeps what a night has found, before anything is scored."""
    with storage.writing(storage.join(root, LISTED)) as stream:
        pq.write_table(listing.replace_schema_metadata({_KEY: json.dumps(record)}), stream, compression="zstd")


def begun(root: str) -> tuple[pa.Table, Record] | None:
    """What `begin` kept of a night that is not done."""
    path = storage.join(root, LISTED)
    if not storage.exists(path):
        return None
    try:
        with storage.open_input(path) as stream:
            table = pq.read_table(stream)
        return table.cast(LISTING), json.loads(table.schema.metadata[_KEY])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise InputError(f"{path}: is damaged; delete it, and the night begins anew") from error


def write(root: str, night: str, listing: pa.Table, before: Record | None, results: Iterable[pa.Table]) -> Record:
    """Writes the snapshot of a night, block by block: what the last one holds, with the night's rows in place of older.

    Args:
        root: Of the nightly survey.
        night: Whose snapshot it is.
        listing: From `compare`.
        before: Record of the snapshot that it goes on from.
        results: Of the night's run, as `finalize.read_blocks` yields them: in the order of the files to score.

    Returns:
        For the record: how many photographs there are, present, flagged as crack, and by status.
    """
    status: Counter[str] = Counter()
    total = Counter(photographs=0, present=0, flagged=0)
    with (
        storage.writing(photographs(root, night)) as stream,
        pq.ParquetWriter(stream, SNAPSHOT, compression="zstd") as writer,
    ):
        for block in _in_blocks(_rows(root, night, listing, before, results)):
            writer.write_table(block, row_group_size=_BLOCK)
            total["photographs"] += block.num_rows
            total["present"] += pc.sum(block["present"]).as_py()
            total["flagged"] += pc.sum(pc.equal(block["prediction"], str(Label.CRACK))).as_py() or 0
            status.update(counts(block["status"]))
    return {**total, "status": dict(sorted(status.items()))}


def finish(root: str, record: Record) -> None:
    """Makes a night the newest one."""
    text = json.dumps(record, indent=1, allow_nan=False).encode()
    for path in (storage.join(root, SNAPSHOTS, record["night"], _RECORD), storage.join(root, LATEST)):
        storage.write_bytes(path, text)
    storage.remove(storage.join(root, LISTED))


def _rows(
    root: str, night: str, listing: pa.Table, before: Record | None, results: Iterable[pa.Table]
) -> Iterator[pa.Table]:
    """Photographs of the last snapshot that the night did not score, then those that it did."""
    if before is not None:
        at_K, present_K = presence(listing, known(root, before))
        known_again = listing.select([*_LISTED, "change"]).combine_chunks()
        start = 0
        with storage.open_input(photographs(root, before["night"])) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(_BLOCK):
                rows = slice(start, start := start + batch.num_rows)
                yield _carried(pa.table(batch), known_again.take(at_K[rows]), present_K[rows], night)
    scored = to_score(listing).select(_LISTED)
    for block in results:
        listed, scored = scored.slice(0, block.num_rows), scored.slice(block.num_rows)
        ours = {"night": pa.repeat(night, block.num_rows), "present": pa.repeat(True, block.num_rows)}
        columns = {name: block[name] for name in RESULTS.names} | {name: listed[name] for name in _LISTED} | ours
        yield pa.table(columns | {"missing_since": pa.nulls(block.num_rows, pa.string())}, SNAPSHOT)


def _carried(block: pa.Table, listed: pa.Table, present: pa.ChunkedArray, night: str) -> pa.Table:
    since = pc.if_else(present, None, pc.coalesce(block["missing_since"], night))
    values = {name: pc.coalesce(listed[name], block[name]) for name in _LISTED}
    for name, column in (values | {"present": present, "missing_since": since}).items():
        block = block.set_column(SNAPSHOT.get_field_index(name), SNAPSHOT.field(name), column)
    kept = pc.fill_null(pc.equal(listed["change"], str(Change.SAME)), True)
    folder = pc.ends_with(block["uri"], "/")  # one that could not be listed is no photograph: it goes when it is cured
    return block.filter(pc.and_(kept, pc.or_(present, pc.invert(folder))))


def _in_blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, _BLOCK at a time: small nights would leave small row groups for ever."""
    held = SNAPSHOT.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while held.num_rows >= _BLOCK:
            yield held.slice(0, _BLOCK)
            held = held.slice(_BLOCK)
    if held.num_rows:
        yield held.combine_chunks()


def _places(values: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.ChunkedArray:
    """Where each value is first; Arrow's plain strings end at 2 GiB in all, which ten million long URIs exceed."""
    return pc.index_in(values.cast(pa.large_string()), among.cast(pa.large_string()))


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """With unknown values equal to anything."""
    return pc.fill_null(pc.equal(left, right), True)
