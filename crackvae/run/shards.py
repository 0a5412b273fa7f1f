"""A shard's file: how it is written, found and read.

The name and the content of the file are functions of the run's inputs alone, so that a retry or a
late writer replaces equal bytes by equal bytes. Its presence, valid, is the record of completion.
"""

from __future__ import annotations

import io
from collections.abc import Set as AbstractSet

import pyarrow as pa
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import InputError
from crackvae.run.directory import Run
from crackvae.schema import PART, SCHEMA_VERSION

PARTS = "parts"
_IDENTITY_KEY = b"crackvae.run"
_VERSION_KEY = b"crackvae.schema_version"


def part_name(number: int) -> str:
    """The path of a shard's file below parts/, in folders of 1,000."""
    return f"{number // 1000:05d}/part-{number:08d}.parquet"


def write_part(run_location: str, identity: str, number: int, table: pa.Table) -> None:
    """Commits a shard: its file becomes visible whole.

    Args:
        run_location: The run directory.
        identity: Of the run.
        number: Of the shard.
        table: Columns of `schema.PART`, one row per file of the shard, in order.
    """
    metadata = {_IDENTITY_KEY: identity, _VERSION_KEY: str(SCHEMA_VERSION)}
    buffer = io.BytesIO()
    pq.write_table(table.cast(PART).replace_schema_metadata(metadata), buffer, compression="zstd")
    location = storage.join(run_location, PARTS, *part_name(number).split("/"))
    storage.write_bytes(location, buffer.getvalue())


def read_part(run: Run, number: int) -> pa.Table:
    """Reads a shard's file and checks that it is what the run needs there.

    Raises:
        InputError: It is missing, damaged, of another run, or its rows are others.
    """
    location = storage.join(run.location, PARTS, *part_name(number).split("/"))
    try:
        with storage.open_input(location) as stream:
            table = pq.read_table(stream)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{location}: cannot be read; run the same command again") from error
    if (table.schema.metadata or {}).get(_IDENTITY_KEY) != run.identity.encode():
        raise InputError(f"{location}: is of another run; delete it and run the command again")
    if not table["image_id"].equals(run.shard(number)["image_id"]):
        raise InputError(f"{location}: has other rows; delete it and run the command again")
    return table.replace_schema_metadata(None)


def missing_shards(run: Run) -> list[int]:
    """The shards without a valid file, in order."""
    present = frozenset(storage.list_files(storage.join(run.location, PARTS)))
    return [number for number in range(run.shards) if not _is_valid(run, number, present)]


def _is_valid(run: Run, number: int, present: AbstractSet[str]) -> bool:
    name = part_name(number)
    if name not in present:
        return False
    try:
        with storage.open_input(storage.join(run.location, PARTS, *name.split("/"))) as stream:
            footer = pq.ParquetFile(stream).metadata
    except (OSError, pa.ArrowException):
        return False
    same = (footer.metadata or {}).get(_IDENTITY_KEY) == run.identity.encode()
    return bool(same and footer.num_rows == run.shard(number).num_rows)
