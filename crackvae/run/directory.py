"""A run directory: everything that one run wrote, fenced by the run's identity.

::

    manifest.parquet    the input files and the shard of each; never listed again
    run.json            identity; with it the run exists
    parts/00000/...     one file per finished shard
    results/, results.csv, metrics.json, figures/, _SUCCESS      written at the end
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crackvae import storage
from crackvae.errors import InputError, RefusedError
from crackvae.schema import MANIFEST, SCHEMA_VERSION

FORMAT = "crackvae run"
RUN = "run.json"
PLAN = "manifest.parquet"
SUCCESS = "_SUCCESS"

SHARD_FILES = 256
SHARD_BYTES = 2 * 2**30

PLAN_SCHEMA = pa.schema([*MANIFEST, pa.field("set", pa.string()), pa.field("shard", pa.int32())])


@dataclass(frozen=True)
class Run:
    """An open run.

    Attributes:
        location: Its directory, a path or a URI.
        identity: SHA-256 of everything that decides its results.
        plan: The manifest with the set and the shard of each file, in shard order.
        facts: What the identity was made of, by name.
    """

    location: str
    identity: str
    plan: pa.Table
    facts: Mapping[str, Any]

    @property
    def shards(self) -> int:
        """How many shards the run has."""
        return int(self.plan["shard"][-1].as_py()) + 1

    def shard(self, number: int) -> pa.Table:
        """The files of a shard."""
        shard_N = self.plan["shard"].to_numpy()
        start, stop = np.searchsorted(shard_N, [number, number + 1])
        return self.plan.slice(start, stop - start)

    @property
    def finished(self) -> bool:
        """Whether the results are complete."""
        return storage.exists(storage.join(self.location, SUCCESS))


def assign_shards(size_N: Sequence[int | None]) -> NDArray[np.int32]:
    """Numbers the shards of a manifest: neighbours, up to 256 files or 2 GiB, whichever is first.

    Args:
        size_N: Bytes of each file, in manifest order; None where unknown.

    Returns:
        shard_N, not decreasing, without gaps. A file over 2 GiB has a shard of its own.
    """
    shard_N = np.empty(len(size_N), np.int32)
    shard, files, held = 0, 0, 0
    for index, size in enumerate(size_N):
        if files and (files == SHARD_FILES or held + (size or 0) > SHARD_BYTES):
            shard, files, held = shard + 1, 0, 0
        files, held = files + 1, held + (size or 0)
        shard_N[index] = shard
    return shard_N


def create(location: str, table: pa.Table, sets: pa.Array, facts: Mapping[str, Any]) -> Run:
    """Starts a run in an empty or missing directory.

    Args:
        location: The directory.
        table: The manifest.
        sets: The evaluation set of each row, or nulls.
        facts: What decides the results besides the manifest, by name; it must fit in JSON.

    Raises:
        RefusedError: The directory holds something else.
    """
    if not set(storage.list_files(location)) <= {PLAN}:  # all that an interrupted call leaves
        raise RefusedError(f"{location}: holds something that is no run; give an empty directory")
    shard_N = pa.array(assign_shards(table["size"].to_pylist()), pa.int32())
    plan = table.append_column("set", sets).append_column("shard", shard_N)
    plan = plan.replace_schema_metadata(None).cast(PLAN_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(plan, buffer, compression="zstd")
    storage.write_bytes(storage.join(location, PLAN), buffer.getvalue())
    all_facts = {**facts, "manifest": hashlib.sha256(buffer.getvalue()).hexdigest()}
    identity = _identity(all_facts)
    header = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "identity": identity,
        "facts": all_facts,
    }
    storage.write_bytes(storage.join(location, RUN), json.dumps(header, indent=1).encode())
    return Run(location, identity, plan, all_facts)


def exists(location: str) -> bool:
    """Whether a run was started there."""
    return storage.exists(storage.join(location, RUN))


def open_run(location: str) -> Run:
    """Opens a run that was started before; its source is not listed again.

    Raises:
        InputError: It is no run, newer than this crackvae, or damaged.
    """
    path = storage.join(location, RUN)
    try:
        header = json.loads(storage.read_bytes(path))
        known, version = header["format"] == FORMAT, int(header["schema_version"])
        identity, facts, manifest_hash = header["identity"], header["facts"], header["facts"]["manifest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{location}: is no run of crackvae, or {RUN} is damaged") from error
    if not known or version > SCHEMA_VERSION:
        raise InputError(f"{path}: was written by a newer crackvae; update this one")
    try:
        data = storage.read_bytes(storage.join(location, PLAN))
    except OSError as error:
        raise InputError(f"{location}: {PLAN} cannot be read; start in a new directory") from error
    if hashlib.sha256(data).hexdigest() != manifest_hash or _identity(facts) != identity:
        raise InputError(f"{location}: {RUN} or {PLAN} was altered; start in a new directory")
    return Run(location, identity, pq.read_table(io.BytesIO(data)), facts)


def check_same(run: Run, facts: Mapping[str, Any]) -> None:
    """Refuses to go on with anything that would change the results.

    Raises:
        RefusedError: It names each fact that differs, as it was and as it is.
    """
    was = {name: value for name, value in run.facts.items() if name != "manifest"}
    differs = differences(was, facts)
    if differs:
        raise RefusedError(
            f"{run.location}: is another run: {'; '.join(differs)}; give a new --out, or the same as before to go on"
        )


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names what differs between two nested JSON objects, by dotted key."""
    old, new = dict(_leaves(was)), dict(_leaves(now))
    return [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _identity(facts: Mapping[str, Any]) -> str:
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
