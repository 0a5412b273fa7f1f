"""A run directory: everything that one run wrote, fenced by the run's identity.

::

    manifest.parquet      the input files and the shard of each; never listed again
    calibration.parquet   the scores that p-values and thresholds follow from
    run.json              identity; with it the run exists
    parts/00000/...       one file per finished shard and attempt
    retries.json          the statuses that were tried again, one per attempt; absent before the first
    threshold.json        the threshold that `crackvae threshold` set; absent before
    labels.parquet        the labels that `crackvae evaluate RUN --labels` brought; absent before
    maps/                 anomaly maps of the first photographs, until the pictures are drawn
    results/, regions/, tiles/, results.csv, metrics.json, _SUCCESS      written at the end
    figures/, report.html, positions.*, structures.csv, review.*          made of them
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import count, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crackvae import storage
from crackvae.config import leaves
from crackvae.errors import InputError, RefusedError
from crackvae.schema import MANIFEST, SCHEMA_VERSION, Status
from crackvae.terminal import log

FORMAT = "crackvae run"
RUN = "run.json"
PLAN = "manifest.parquet"
CALIBRATION = "calibration.parquet"
RETRIES = "retries.json"
FIGURES = "figures"
POSITIONS, POSITIONS_GEOJSON = "positions.parquet", "positions.geojson"
STRUCTURES = "structures.csv"
REPORT = "report.html"
SHOWN = "shown.json"  # no part of DERIVED: who left the positions out of the page does not want them in the next one
REVIEW, REVIEW_CSV, DECISIONS = "review.json", "review.csv", "decisions.json"
DERIVED = (FIGURES, REPORT, POSITIONS, POSITIONS_GEOJSON, STRUCTURES, REVIEW, REVIEW_CSV, DECISIONS)
"""Made of the results: a new finalize removes them."""
SUCCESS = "_SUCCESS"
REPAIR = f"remove {SUCCESS} from the run and call the command that made it: what is damaged is made anew"
LOCK = ".lock"

SHARD_FILES = 256
SHARD_BYTES = 128 * 2**20  # some 16 photographs of 20 megapixels, which take a core minutes
_GROWN, _EVERY = 5, 64  # doublings from the first shard on, and after how many shards there is one
_LARGER, _LATER = 3, 4096  # then others: 10^7 photographs of 8 MB are 83,000 shards, which would be 627,000
_UNKNOWN_BYTES = 4 * 2**20  # in tables without sizes: 32 photographs a shard
_OF_THE_RUN = ("manifest", "calibration", "schema_version")  # facts that are not the caller's
_GROUP_SHARDS = 64  # per row group of the manifest: a worker reads one for the shard it needs, 16,384 rows in 1.3 ms

PLAN_SCHEMA = pa.schema([*MANIFEST, pa.field("set", pa.string()), pa.field("shard", pa.int32())])


class Plan:
    """The manifest of a run on disk, read shard by shard: memory does not grow with the survey.

    Attributes:
        rows: Input files.
        shards: How many shards they are cut into.
    """

    def __init__(self, location: str) -> None:
        self._file = pq.ParquetFile(storage.open_input(location))
        self._held: tuple[int, pa.Table] = (-1, pa.table({}))
        footer, column = self._file.metadata, PLAN_SCHEMA.get_field_index("shard")
        of_groups = [footer.row_group(group).column(column).statistics for group in range(footer.num_row_groups)]
        self._first_G = [of_group.min for of_group in of_groups]
        self.rows: int = footer.num_rows
        self.shards: int = of_groups[-1].max + 1

    def shard(self, number: int) -> pa.Table:
        """The files of a shard. Quick for neighbours."""
        group = bisect_right(self._first_G, number) - 1
        if group != self._held[0]:
            self._held = (group, self._file.read_row_group(group).combine_chunks())
        table = self._held[1]
        start, stop = np.searchsorted(table["shard"].to_numpy(), [number, number + 1])
        return table.slice(start, stop - start)


@dataclass(frozen=True)
class Run:
    """An open run.

    Attributes:
        location: Its directory, a path or a URI.
        identity: SHA-256 of everything that decides its results.
        facts: What the identity was made of, by name.
        created: When its sources were listed.
        model: Where the model lay then; empty where that is not known.
        retries: The status whose rows were tried again in attempt 1, 2, ...
    """

    location: str
    identity: str
    facts: Mapping[str, Any]
    created: str
    model: str = ""
    retries: tuple[Status, ...] = ()

    @cached_property
    def plan(self) -> Plan:
        """The manifest with the set and the shard of each file, in shard order."""
        return Plan(self.path(PLAN))

    def path(self, name: str) -> str:
        """Where a file of the run lies; its name may be a path below the directory."""
        return storage.join(self.location, name)

    @property
    def short_identity(self) -> str:
        """Enough of the identity to tell runs apart in logs and metrics."""
        return self.identity[:12]

    @property
    def finished(self) -> bool:
        """Whether the results are complete."""
        return storage.exists(self.path(SUCCESS))


class Sharding:
    """Numbers the shards of a manifest: neighbours, up to 256 files or a number of bytes, whichever is first.

    The first 64 hold 4 MiB, a photograph, so that there is a shard for every core in a survey that nobody knows
    the size of yet; the next 64 hold twice as much, until they hold 128 MiB; and a large survey's up to 1 GiB.
    """

    def __init__(self) -> None:
        self._shard = self._files = self._held = 0

    def assign(self, size_N: Sequence[int | None]) -> NDArray[np.int32]:
        """Takes the next files.

        Args:
            size_N: Bytes of each, in manifest order; None where unknown.

        Returns:
            shard_N, not decreasing, without gaps. A larger file has a shard of its own.
        """
        shard_N = np.empty(len(size_N), np.int32)
        for index, size in enumerate(size_N):
            assumed = _UNKNOWN_BYTES if size is None else size
            most = SHARD_BYTES >> max(0, _GROWN - self._shard // _EVERY) << min(_LARGER, self._shard // _LATER)
            if self._files and (self._files == SHARD_FILES or self._held + assumed > most):
                self._shard, self._files, self._held = self._shard + 1, 0, 0
            self._files, self._held = self._files + 1, self._held + assumed
            shard_N[index] = self._shard
        return shard_N


def create(
    location: str,
    blocks: Iterable[pa.Table],
    facts: Mapping[str, Any],
    calibration: pa.Table | None = None,
    model: str = "",
) -> Run:
    """Starts a run in an empty or missing directory, in memory for a block.

    Args:
        location: The directory.
        blocks: The manifest in pieces; where it is labelled, with a column `set`, the evaluation set of each row.
        facts: What decides the results besides the files below, by name; it must fit in JSON.
        calibration: What the calibration normals scored, as for `judge.load`; without it, the run
            can be scored and not be judged.
        model: Where the model lies, for the report; no part of the identity.

    Raises:
        RefusedError: The directory holds something else.
    """
    check_empty(location)
    all_facts = {
        **facts,
        "schema_version": SCHEMA_VERSION,
        "manifest": _write(storage.join(location, PLAN), _groups(blocks), PLAN_SCHEMA),
    }
    if calibration is not None:
        table = calibration.replace_schema_metadata(None)
        all_facts["calibration"] = _write(storage.join(location, CALIBRATION), [table], table.schema)
    header = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "identity": _identity(all_facts),
        "model": model,
        "facts": all_facts,
    }
    storage.write_bytes(storage.join(location, RUN), json.dumps(header, indent=1).encode())
    return open_run(location)


def _groups(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The plan in its row groups."""
    sharding, held = Sharding(), PLAN_SCHEMA.empty_table()
    for block in blocks:
        columns = {name: block[name] for name in block.schema.names}
        columns.setdefault("set", pa.nulls(block.num_rows, pa.string()))
        columns["shard"] = pa.array(sharding.assign(block["size"].to_pylist()))
        planned = pa.table(columns).select(PLAN_SCHEMA.names).cast(PLAN_SCHEMA)
        held = pa.concat_tables([held, planned]).combine_chunks()
        group_N = held["shard"].to_numpy() // _GROUP_SHARDS
        edges = [0, *(np.flatnonzero(np.diff(group_N)) + 1)]
        for start, stop in pairwise(edges):
            yield held.slice(start, stop - start)
        held = held.slice(edges[-1])
    yield held


def _write(location: str, groups: Iterable[pa.Table], schema: pa.Schema) -> str:
    """Writes a table with a row group for each piece, and returns the SHA-256 of the file."""
    # Whoever opens the file holds all its statistics: of every column, of 10^7 rows, 40 MB.
    options: dict[str, Any] = {"compression": "zstd", "write_statistics": ["shard"]}
    with storage.writing(location) as stream, pq.ParquetWriter(stream, schema, **options) as writer:
        for group in groups:
            writer.write_table(group)
    return storage.sha256(location)


def check_empty(location: str) -> None:
    """Refuses a directory that holds anything but what an interrupted `create` leaves.

    Raises:
        RefusedError: It does.
    """
    if not set(storage.list_files(location)) <= {PLAN, CALIBRATION, LOCK}:
        raise RefusedError(f"{location}: holds something that is no run; give an empty directory")


def exists(location: str) -> bool:
    """Whether a run was started there."""
    return storage.exists(storage.join(location, RUN))


def open_run(location: str) -> Run:
    """Opens a run that was started before; its source is not listed again.

    Raises:
        InputError: It is no run, of another version of crackvae, or damaged.
    """
    run = read_header(location)
    for name, fact in ((PLAN, "manifest"), (CALIBRATION, "calibration")):
        if fact not in run.facts:  # a run that calibrates a model has none to be judged by
            continue
        try:
            same = storage.sha256(run.path(name)) == run.facts[fact]
        except OSError as error:
            raise InputError(f"{run.path(name)}: cannot be read; start in a new directory") from error
        if not same:
            raise InputError(f"{run.path(name)}: was altered; start in a new directory")
    return run


def open_finished(location: str) -> Run:
    """The same, of a run whose results are complete.

    Raises:
        InputError: As for `open_run`, or it is not finished.
    """
    run = open_run(location)
    if not run.finished:
        raise InputError(f"{location}: is not finished; run the same command again")
    return run


def read_header(location: str) -> Run:
    """Opens a run without reading its manifest, which whoever opened it before has checked.

    Raises:
        InputError: It is no run, of another version of crackvae, or its run.json is damaged.
    """
    path = storage.join(location, RUN)
    try:
        header = json.loads(storage.read_bytes(path))
        known, version = header["format"] == FORMAT, int(header["schema_version"])
        run = Run(
            location, header["identity"], header["facts"], header.get("created", "unknown"), header.get("model", "")
        )
        altered = "manifest" not in run.facts or _identity(run.facts) != run.identity
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{location}: is no run of crackvae, or {RUN} is damaged") from error
    if not known or version > SCHEMA_VERSION:
        raise InputError(f"{path}: was written by a newer crackvae; update this one")
    if version < SCHEMA_VERSION:
        raise InputError(f"{path}: was written by an older crackvae; score again in a new directory")
    if altered:
        raise InputError(f"{path}: was altered; start in a new directory")
    cure = "delete it to go on without the retries"
    retries = storage.read_json(run.path(RETRIES), lambda names: tuple(map(Status, names)), cure)
    return replace(run, retries=retries or ())


def success(run: Run) -> bytes:
    """What _SUCCESS holds, empty without one: the same as long as the results are."""
    path = run.path(SUCCESS)
    return storage.read_bytes(path) if storage.exists(path) else b""


def keep_edited(run: Run) -> None:
    """Copies a review.csv that was edited since it was written, before it is removed: people have decided there."""
    path = run.path(REVIEW_CSV)
    if not storage.exists(path):
        return
    text = storage.read_bytes(path)
    with suppress(InputError):
        if storage.read_json(run.path(REVIEW), lambda content: content["csv"], "") == hashlib.sha256(text).hexdigest():
            return
    names = (run.path(f"review-edited-{number}.csv") for number in count(1))
    kept = next(name for name in names if not storage.exists(name))
    storage.write_bytes(kept, text)
    log.warning("%s was edited, and is kept as %s: `crackvae review %s --decisions` takes it", path, kept, run.location)


def add_retry(run: Run, status: Status) -> Run:
    """Begins an attempt at the rows of a status. The results stop being complete first."""
    storage.remove(run.path(SUCCESS))
    retries = (*run.retries, status)
    storage.write_bytes(run.path(RETRIES), json.dumps(retries).encode())
    return replace(run, retries=retries)


def check_same(run: Run, facts: Mapping[str, Any]) -> None:
    """Refuses to go on with anything that would change the results.

    Raises:
        RefusedError: It names each fact that differs, as it was and as it is.
    """
    was, facts = ({k: v for k, v in f.items() if k not in _OF_THE_RUN} for f in (run.facts, facts))
    differs = differences(was, facts)
    if differs:
        raise RefusedError(
            f"{run.location}: is another run: {'; '.join(differs)}; give a new --out, or the same as before to go on"
        )


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what differs between two nested JSON objects, by dotted key."""
    old, new = dict(leaves(was)), dict(leaves(now))
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _identity(facts: Mapping[str, Any]) -> str:
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
