"""Whether a run is what it says it is, from its files alone: no model, no source, no Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import pyarrow as pa
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import CrackvaeError, RefusedError
from crackvae.run import directory, finalize, judge, shards, summary
from crackvae.run.directory import Run
from crackvae.run.summary import Summary
from crackvae.schema import RESULTS


@dataclass
class Report:
    """What was found.

    Attributes:
        run: The run.
        done: Shards whose file is whole.
        rows: Input files in them.
        finished: Whether the run says that its results are complete.
        problems: What is wrong, a line each.
    """

    run: Run
    done: int = 0
    rows: int = 0
    finished: bool = False
    problems: list[str] = field(default_factory=list)


def check(location: str) -> Report:
    """Reads every byte of a run and derives its results again.

    Raises:
        InputError: It is no run, of a newer crackvae, or its run.json or manifest was altered.
    """
    run = directory.open_run(location)
    report = Report(run, finished=run.finished)
    _, foreign = shards.list_parts(run)
    report.problems += [f"{shards.PARTS}/{name}: does not belong there" for name in foreign]
    for part in shards.read_parts(run, range(run.plan.shards)):
        report.problems += [f"{name}: {why}" for name, why in part.damaged.items()]
        if part.next_attempt(run.retries) is None:
            report.done += 1
            report.rows += part.table.num_rows
        elif report.finished and not part.damaged:
            report.problems.append(f"{shards.PARTS}/{shards.part_name(part.shard)}: is missing")
    if report.finished:
        report.problems += _altered(run)
        if report.done == run.plan.shards:
            try:
                report.problems += _not_derived(run)
            except (OSError, ValueError, pa.ArrowException, CrackvaeError) as error:
                report.problems.append(f"results: cannot be read: {' '.join(str(error).split())}")
    return report


def _altered(run: Run) -> Iterator[str]:
    """The result files that are not those _SUCCESS was written for."""
    if run.version == 1:  # its _SUCCESS keeps no hashes
        return
    try:
        success = json.loads(storage.read_bytes(run.path(directory.SUCCESS)))
        identity, hashes = success["identity"], dict(success["files"])
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{directory.SUCCESS}: is damaged"
        return
    if identity != run.identity:
        yield f"{directory.SUCCESS}: is of another run"
    folder = storage.join(run.location, finalize.RESULTS_DIRECTORY)
    results = [f"{finalize.RESULTS_DIRECTORY}/{name}" for name in sorted(storage.list_files(folder))]
    for name in sorted({*finalize.success_files(results), *hashes}):
        try:
            sha = storage.sha256(storage.join(run.location, *name.split("/")))
        except OSError:
            yield f"{name}: is missing"
            continue
        if name not in hashes:
            yield f"{name}: does not belong there"
        elif sha != hashes[name]:
            yield f"{name}: was altered: its SHA-256 is another"


def _not_derived(run: Run) -> Iterator[str]:
    """The result files that do not follow from the shards, each with its first difference."""
    try:
        decides = judge.load(run)
    except RefusedError:  # of an older crackvae
        return
    total = Summary()
    found, row, line = _row_groups(run), 0, 1
    table_differs = csv_differs = ""
    with storage.open_input(run.path(finalize.CSV)) as csv:
        for block in chain([RESULTS.empty_table()], finalize.judged(run, decides)):
            data = finalize.csv_bytes(block, header=line == 1)
            csv_differs = csv_differs or _first_difference(data, csv.read(len(data)), line)
            line += data.count(b"\n")
            if block.num_rows:
                total.add(block)
                table_differs = table_differs or _first_row(block, next(found, None), row)
                row += block.num_rows
        if csv.read(1):
            csv_differs = csv_differs or f"goes on after line {line - 1}"
    if next(found, None) is not None:
        table_differs = table_differs or f"goes on after row {row}"
    if table_differs:
        yield f"{finalize.RESULTS_DIRECTORY}/: {table_differs}"
    if csv_differs:
        yield f"{finalize.CSV}: {csv_differs}"
    counts = total.as_dict(decides)["counts"]
    if summary.read(run.location).get("counts") != counts:
        yield f"{summary.METRICS}: its counts are not those of the shards"


def _row_groups(run: Run) -> Iterator[pa.Table]:
    """What results/ holds, in the blocks in which it was written."""
    folder = storage.join(run.location, finalize.RESULTS_DIRECTORY)
    for name in sorted(storage.list_files(folder)):
        with storage.open_input(storage.join(folder, name)) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)


def _first_row(expected: pa.Table, found: pa.Table | None, start: int) -> str:
    if found is not None and found.replace_schema_metadata(None).equals(expected):
        return ""
    if found is None or not found.schema.equals(expected.schema) or found.num_rows != expected.num_rows:
        return f"after row {start} it has other rows or columns than the shards"
    same = [expected.slice(row, 1).equals(found.slice(row, 1)) for row in range(expected.num_rows)]
    row = same.index(False)
    return f"row {start + row + 1} ({expected['image_id'][row]}) is not what the shards say"


def _first_difference(expected: bytes, found: bytes, line: int) -> str:
    if expected == found:
        return ""
    pairs = zip_longest(expected.splitlines(), found.splitlines())
    first = next(number for number, (ours, theirs) in enumerate(pairs, line) if ours != theirs)
    return f"line {first} is not what the shards say"
