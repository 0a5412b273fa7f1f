"""One file per finished shard and attempt, whose presence, whole, is the record of completion.

Name and content of the file are functions of the run's inputs and of the attempt, so that a worker
that runs twice or late replaces equal bytes by equal bytes. The footer keeps the SHA-256 of all the
file's bytes, with the digest itself taken as zeros.

Attempt 0 scores a shard. A further attempt scores the rows of one status again and copies the
others; a shard without such rows has no file of that attempt.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.run.directory import Run
from crackvae.schema import PART, SCHEMA_VERSION, Status

PARTS = "parts"
_NAME = re.compile(r"(\d{5})/part-(\d{8,})(?:\.a(\d+))?\.parquet")
_IDENTITY_KEY = b"crackvae.run"
_SHARD_KEY = b"crackvae.shard"
_ATTEMPT_KEY = b"crackvae.attempt"
_DIGEST_KEY = b"crackvae.sha256"
_ZEROS = b"0" * 64
_DIGEST = re.compile(_DIGEST_KEY + rb"..([0-9a-f]{64})", re.DOTALL)  # two bytes of Thrift say: a text, 64 long
_READERS = 8  # files read at a time: an object store answers in tens of milliseconds


@dataclass(frozen=True, slots=True)
class Work:
    """A shard that has to be scored.

    Attributes:
        shard: Its number.
        attempt: 0, or which of the run's retries.
    """

    shard: int
    attempt: int


_FIRST = (0,)
_NOTHING = PART.empty_table()  # to make takes 0.7 ms, of 4 ms that a part takes to be read


@dataclass
class Part:
    """What the directory holds of a shard.

    Attributes:
        shard: Its number.
        attempt: Of the newest whole file; -1 where there is none.
        table: Columns of `schema.PART`, one row per file of the shard; empty where there is none.
        damaged: Files that do not count, by name, and why.
    """

    shard: int
    attempt: int = -1
    table: pa.Table = field(default_factory=lambda: _NOTHING)
    damaged: dict[str, str] = field(default_factory=dict)

    def next_attempt(self, retries: Sequence[Status]) -> int | None:
        """The attempt that this shard needs next, or None where it is complete."""
        if self.attempt < 0:
            return 0
        if len(retries) <= self.attempt:
            return None
        present = set(pc.unique(self.table["status"]).to_pylist())
        later = enumerate(retries[self.attempt :], self.attempt + 1)
        return next((attempt for attempt, status in later if str(status) in present), None)


class _NotWholeError(Exception):
    """A file that does not count; says why."""


def part_name(number: int, attempt: int = 0) -> str:
    """The path of a shard's file in the run directory, in folders of 1,000."""
    return f"{PARTS}/{number // 1000:05d}/part-{number:08d}{f'.a{attempt}' if attempt else ''}.parquet"


def write_part(run_location: str, identity: str, work: Work, table: pa.Table) -> None:
    """Commits a shard, a row of `schema.PART` for each of its files in order: its file becomes visible whole."""
    metadata = {
        _IDENTITY_KEY: identity,
        b"crackvae.schema_version": str(SCHEMA_VERSION),
        _SHARD_KEY: str(work.shard),
        _ATTEMPT_KEY: str(work.attempt),
        b"crackvae.rows": str(table.num_rows),
        _DIGEST_KEY: _ZEROS,
    }
    buffer = io.BytesIO()
    # Without store_schema the footer holds the metadata once, not again inside an Arrow schema.
    with pq.ParquetWriter(buffer, PART, compression="zstd", store_schema=False) as writer:
        writer.write_table(table.cast(PART))
        writer.add_key_value_metadata(metadata)
    data = bytearray(buffer.getvalue())
    at = _digest_at(data)
    data[at] = _sha256(data, at)
    storage.write_bytes(storage.join(run_location, part_name(work.shard, work.attempt)), bytes(data))


def _sha256(data: bytes | bytearray, at: slice) -> bytes:
    """Of the file's bytes, with the digest that they hold taken as zeros."""
    digest = hashlib.sha256(data[: at.start])
    digest.update(_ZEROS)
    digest.update(data[at.stop :])
    return digest.hexdigest().encode()


def _digest_at(data: bytes | bytearray) -> slice:
    *_, last = _DIGEST.finditer(data)
    return slice(*last.span(1))


def read_part(run: Run, number: int, attempts: Iterable[int]) -> Part:
    """Reads a shard from the newest whole file of these attempts; those that the run never made are damage too."""
    return _read(run, number, attempts, run.plan.shard(number)["image_id"])


def read_parts(run: Run, numbers: Iterable[int]) -> Iterator[Part]:
    """Reads shards, in the order asked for."""
    names, _ = list_parts(run)
    left = iter(numbers)
    with ThreadPoolExecutor(_READERS) as pool:
        while block := list(islice(left, 4 * _READERS)):
            ids = [run.plan.shard(number)["image_id"] for number in block]  # here: the plan is read by one thread
            yield from pool.map(lambda number, rows: _read(run, number, names[number], rows), block, ids)


def list_parts(run: Run) -> tuple[list[tuple[int, ...]], list[str]]:
    """The attempts of each shard whose files are there, and the files that have no place there."""
    attempts: list[tuple[int, ...]] = [()] * run.plan.shards  # nearly all are _FIRST in the end: 8 bytes a shard
    foreign = []
    for name in storage.list_files(storage.join(run.location, PARTS)):
        match = _NAME.fullmatch(name)
        number, attempt = (int(match[2]), int(match[3] or 0)) if match else (-1, 0)
        if 0 <= number < run.plan.shards and part_name(number, attempt) == f"{PARTS}/{name}":
            others = attempts[number]
            attempts[number] = (*others, attempt) if others or attempt else _FIRST
        else:
            foreign.append(f"{PARTS}/{name}")
    return attempts, sorted(foreign)


def missing(run: Run, numbers: Iterable[int] | None = None) -> tuple[list[Work], dict[str, str]]:
    """What is left to score, by default of all shards, in order, and the files that do not count, with why."""
    left: list[Work] = []
    damaged: dict[str, str] = {}
    for part in read_parts(run, range(run.plan.shards) if numbers is None else numbers):
        damaged |= part.damaged
        attempt = part.next_attempt(run.retries)
        if attempt is not None:
            left.append(Work(part.shard, attempt))
    return left, damaged


def _read(run: Run, number: int, attempts: Iterable[int], ids: pa.ChunkedArray) -> Part:
    part = Part(number)
    for attempt in sorted(attempts, reverse=True):
        try:
            table = _read_file(run, number, attempt, ids)
        except _NotWholeError as error:
            part.damaged[part_name(number, attempt)] = str(error)
            continue
        if part.attempt < 0:
            part.attempt, part.table = attempt, table
    return part


def _read_file(run: Run, number: int, attempt: int, ids: pa.ChunkedArray) -> pa.Table:
    if attempt > len(run.retries):
        raise _NotWholeError("is of an attempt that this run never made")
    try:
        data = storage.read_bytes(run.path(part_name(number, attempt)))
        at = _digest_at(data)
        if _sha256(data, at) != data[at]:  # before it is parsed: then nothing surprises the parser
            raise _NotWholeError("was altered: its SHA-256 is another")
        file = pq.ParquetFile(pa.BufferReader(data))
        metadata = file.metadata.metadata or {}
        table = file.read(use_threads=False) if file.schema_arrow.equals(PART) else None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _NotWholeError("is truncated, or no file of a run") from error
    if metadata.get(_IDENTITY_KEY) != run.identity.encode():
        raise _NotWholeError("is of another run")
    placed = (metadata.get(_SHARD_KEY), metadata.get(_ATTEMPT_KEY))
    if placed != (b"%d" % number, b"%d" % attempt):
        raise _NotWholeError("is of another shard or attempt")
    if table is None:
        raise _NotWholeError("has other columns")
    if not table["image_id"].equals(ids):
        raise _NotWholeError("has other rows than the manifest")
    return table
