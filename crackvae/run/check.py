"""Whether a run is what it says it is, from its files alone: no model, no source, no Ray."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import pyarrow as pa

from crackvae import storage
from crackvae.errors import CrackvaeError
from crackvae.run import directory, finalize, judge, labels, shards, summary
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
    report.problems += [f"{name}: does not belong there" for name in foreign]
    for part in shards.read_parts(run, range(run.plan.shards)):
        report.problems += [f"{name}: {why}" for name, why in part.damaged.items()]
        if part.next_attempt(run.retries) is None:
            report.done += 1
            report.rows += part.table.num_rows
        elif report.finished and not part.damaged:
            report.problems.append(f"{shards.part_name(part.shard)}: is missing")
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
    try:
        success = json.loads(storage.read_bytes(run.path(directory.SUCCESS)))
        identity, hashes = success["identity"], dict(success["files"])
    except (OSError, ValueError, KeyError, TypeError):
        yield f"{directory.SUCCESS}: is damaged"
        return
    if identity != run.identity:
        yield f"{directory.SUCCESS}: is of another run"
    found = [f"{folder}/{name}" for folder in finalize.tables(run) for name in storage.list_files(run.path(folder))]
    for name in sorted({*finalize.success_files(found), *hashes}):
        try:
            sha = storage.sha256(run.path(name))
        except OSError:
            yield f"{name}: is missing"
            continue
        if name not in hashes:
            yield f"{name}: does not belong there"
        elif sha != hashes[name]:
            yield f"{name}: was altered: its SHA-256 is another"


def _not_derived(run: Run) -> Iterator[str]:
    """The result files that do not follow from the shards, each with its first difference."""
    decides = judge.load(run)
    total, line = Summary(), 1
    names = finalize.tables(run)
    found = {name: finalize.read_blocks(run.location, name) for name in names}
    rows = Counter[str]()
    differs: dict[str, str] = {}  # the first difference of each file or folder

    def note(name: str, difference: str) -> None:
        if difference:
            differs.setdefault(name, difference)

    with storage.open_input(run.path(finalize.CSV)) as csv:
        empty = {finalize.RESULTS_DIRECTORY: RESULTS.empty_table()}
        for block in chain([empty], finalize.judged(run, decides, labels.read(run))):
            results = block[finalize.RESULTS_DIRECTORY]
            data = finalize.csv_bytes(results, header=line == 1)
            note(finalize.CSV, _first_difference(data, csv.read(len(data)), line))
            line += data.count(b"\n")
            total.add(results)
            for name, table in block.items():
                if table.num_rows:
                    note(f"{name}/", _first_row(table, next(found[name], None), rows[name]))
                    rows[name] += table.num_rows
        note(finalize.CSV, f"goes on after line {line - 1}" if csv.read(1) else "")
    for name in names:
        note(f"{name}/", f"goes on after row {rows[name]}" if next(found[name], None) is not None else "")
    yield from (f"{name}: {difference}" for name, difference in differs.items())
    counts = total.as_dict(decides)["counts"]
    if summary.read(run.location).get("counts") != counts:
        yield f"{summary.METRICS}: its counts are not those of the shards"


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
