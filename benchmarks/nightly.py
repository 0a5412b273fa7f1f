"""What planning a night and making its snapshot cost: `python benchmarks/nightly.py [FILES]`.

A snapshot of FILES photographs, and a manifest in which 1% are new, 0.5% changed and 0.5% are gone; none of them is
read. Each step runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crackvae.dataset import manifest
from crackvae.report import tables
from crackvae.run import snapshot
from crackvae.schema import MANIFEST, RESULTS, Change, Status

FIRST = {"night": "2026-01-01"}


def main() -> None:
    """Prints a Markdown table."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 10**6
    with tempfile.TemporaryDirectory() as folder:
        _measured(_prepare, folder, files)
        steps = {"list the manifest": _list, "compare with the snapshot": _compare, "write the new snapshot": _write}
        rows = []
        for name, step in steps.items():
            seconds, before, peak = _measured(step, folder)
            rows.append([name, f"{seconds:.1f}", f"{before:.0f}", f"{peak:.0f}"])
        size = Path(snapshot.photographs(folder, "2026-01-02")).stat().st_size / 1e6
    print(tables.markdown([f"{files:,} photographs", "seconds", "MB before", "MB at most"], rows))
    print(f"snapshot: {size:.0f} MB")


def _measured(step: Callable[..., float], *arguments: object) -> tuple[float, float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_timed, (step, *arguments))


def _timed(step: Callable[..., float], *arguments: object) -> tuple[float, float, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = step(*arguments)
    return seconds, before / 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def _listing(first: int, stop: int) -> pa.Table:
    names = [f"bridge-{row // 5000:03d}/span-{row // 500 % 10}/DSC{row:07d}.JPG" for row in range(first, stop)]
    columns = {
        "image_id": names,
        "uri": [f"s3://survey-bucket/inspections/{name}" for name in names],
        "size": pa.array(8_000_000 + np.arange(first, stop) * 7919 % 999_983),
        "mtime": pa.array((1_750_000_000 + np.arange(first, stop)) * 10**6, pa.timestamp("us", "UTC")),
    }
    return pa.table({f.name: columns.get(f.name, pa.nulls(stop - first, f.type)) for f in MANIFEST}, MANIFEST)


def _results(listing: pa.Table) -> pa.Table:
    """Rows as photographs have them: every number is there, and no two are equal."""
    generator = np.random.default_rng(0)
    rows = listing.num_rows
    columns = {"image_id": listing["image_id"], "uri": listing["uri"], "status": pa.repeat(str(Status.OK), rows)}
    columns |= {"prediction": pa.repeat("normal", rows), "camera": pa.repeat("DJI M3E", rows)}
    for field in RESULTS:
        if pa.types.is_floating(field.type):
            columns[field.name] = pa.array(generator.random(rows), field.type)
    return pa.table({f.name: columns.get(f.name, pa.nulls(rows, f.type)) for f in RESULTS}, RESULTS)


def _prepare(folder: str, files: int) -> float:
    listing = _listing(0, files)
    compared = snapshot.compare(listing, snapshot.known(folder, None))
    blocks = (_results(listing.slice(start, 65_536)) for start in range(0, files, 65_536))
    snapshot.write(folder, str(FIRST["night"]), compared, None, blocks)
    later = _listing(files // 200, files + files // 100)
    changed = pa.array(np.arange(later.num_rows) % 200 == 0)
    size = pc.if_else(changed, pc.add(later["size"], 1), later["size"])
    manifest.write(later.set_column(later.schema.get_field_index("size"), "size", size), f"{folder}/manifest.parquet")
    return 0.0


def _list(folder: str) -> float:
    start = time.monotonic()
    manifest.build([f"{folder}/manifest.parquet"])
    return time.monotonic() - start


def _compare(folder: str) -> float:
    table = manifest.read(f"{folder}/manifest.parquet")
    start = time.monotonic()
    known = snapshot.known(folder, FIRST)
    listing = snapshot.compare(table, known)
    told = snapshot.differences(listing, known)
    snapshot.begin(folder, listing, {})
    seconds = time.monotonic() - start
    files = known.num_rows
    assert (told["new"], told["vanished"]) == (files // 100, files // 200), told
    return seconds


def _write(folder: str) -> float:
    begun = snapshot.begun(folder)
    assert begun is not None
    listing = begun[0]
    new = _results(listing.filter(pc.not_equal(listing["change"], str(Change.SAME))))
    start = time.monotonic()
    snapshot.write(folder, "2026-01-02", listing, FIRST, [new])
    return time.monotonic() - start


if __name__ == "__main__":
    main()
