"""From finished shards to results: judge, reconcile, add up, and say that it is complete."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import CrackvaeError, InputError
from crackvae.run import directory, judge, labels, shards, summary
from crackvae.run.directory import Run
from crackvae.run.judge import Judge
from crackvae.run.shards import Part
from crackvae.run.summary import Summary
from crackvae.schema import REGIONS, RESULTS, TILES, Status

RESULTS_DIRECTORY, REGIONS_DIRECTORY, TILES_DIRECTORY = "results", "regions", "tiles"
CSV = "results.csv"

_TABLES = {RESULTS_DIRECTORY: RESULTS, REGIONS_DIRECTORY: REGIONS, TILES_DIRECTORY: TILES}
_NESTED = {REGIONS_DIRECTORY: "regions", TILES_DIRECTORY: "tile_errors"}  # the column of a part that a table is made of

_BLOCK_SHARDS = 256  # held in memory, and a file of results/: some 65,000 rows

# A spreadsheet runs a cell that begins so as a formula (OWASP, "CSV Injection"). The apostrophe
# itself is in the list so that taking one away always gives back what was there.
_FORMULA = "^[=+\\-@\uff1d\uff0b\uff0d\uff20\t\r\n'|%]"  # with the full-width = + - @


def finalize(run: Run) -> dict[str, Any]:
    """Writes results/, regions/, results.csv, metrics.json and, last, _SUCCESS, in memory that does not grow.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: A shard's file is missing or not what it should be.
        CrackvaeError: The rows do not add up to the manifest's.
    """
    decides, given = judge.load(run), labels.read(run)  # before anything is removed: they may be damaged
    directory.keep_edited(run)
    storage.remove(run.path(directory.SUCCESS))
    for outdated in (*_TABLES, *directory.DERIVED):
        storage.remove(run.path(outdated))
    total, written = Summary(), []
    with storage.writing(run.path(CSV)) as csv:
        csv.write(csv_bytes(RESULTS.empty_table(), header=True))
        for number, block in enumerate(judged(run, decides, given)):
            for name, table in block.items():
                written.append(table_file(name, number))
                with (
                    storage.writing(run.path(written[-1])) as stream,
                    pq.ParquetWriter(stream, table.schema, compression="zstd") as writer,
                ):
                    if table.num_rows:  # in one row group, as `check` expects it
                        writer.write_table(table, row_group_size=table.num_rows)
            csv.write(csv_bytes(block[RESULTS_DIRECTORY]))
            total.add(block[RESULTS_DIRECTORY])
    content = total.as_dict(decides)
    text = json.dumps(content, indent=1, allow_nan=False)
    storage.write_bytes(run.path(summary.METRICS), text.encode())
    files = {name: storage.sha256(run.path(name)) for name in success_files(written)}
    success = {"identity": run.identity, "files": files}
    storage.write_bytes(run.path(directory.SUCCESS), json.dumps(success, indent=1).encode())
    return content


def check_scored(run: Run) -> None:
    """Refuses a run with another judge or other labels to come, before anything of it is removed.

    Raises:
        InputError: A shard's file is missing or not what it should be.
    """
    left, damaged = shards.missing(run)
    if left:
        found = "; ".join(f"{name} {why}" for name, why in damaged.items()) or "it has no file"
        cure = directory.REPAIR if run.finished else "run the command that began it again"
        raise InputError(f"{run.location}: shard {left[0].shard} is not scored ({found}); {cure}")


def success_files(results: Iterable[str]) -> list[str]:
    """What _SUCCESS keeps the SHA-256 of."""
    return [CSV, summary.METRICS, *results]


def table_file(name: str, number: int) -> str:
    """The path of a file of results/, regions/ or tiles/ in the run directory."""
    return f"{name}/{name}-{number:05d}.parquet"


def read_results(location: str, columns: list[str] | None = None) -> pa.Table:
    """The results of a finished run as one table, in manifest order."""
    return read_table(location, RESULTS_DIRECTORY, columns)


def read_table(location: str, name: str, columns: list[str] | None = None) -> pa.Table:
    """What results/, regions/ or tiles/ of a finished run holds; no rows where it has none."""
    empty = _TABLES[name].empty_table().select(columns or _TABLES[name].names)
    return pa.concat_tables(list(read_blocks(location, name, columns)) or [empty])


def read_blocks(location: str, name: str = RESULTS_DIRECTORY, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The same in the blocks in which it was written, in memory that does not grow with the survey.

    Raises:
        InputError: A file is damaged, or there are no results.
    """
    folder = storage.join(location, name)
    ours = re.compile(re.escape(name) + r"-\d+\.parquet")  # a Finder leaves files of its own in any folder
    files = sorted(file for file in storage.list_files(folder) if ours.fullmatch(file))
    if not files and name == RESULTS_DIRECTORY:
        raise InputError(f"{folder}: is gone; {directory.REPAIR}")
    for path in (storage.join(folder, file) for file in files):
        try:
            with storage.open_input(path) as stream:
                file = pq.ParquetFile(stream)
                blocks = (file.read_row_group(group, columns=columns) for group in range(file.num_row_groups))
                yield from blocks
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())}); {directory.REPAIR}") from error


def tables(run: Run) -> list[str]:
    """The folders of tables that the run ends with."""
    return list(run.facts.get("tables", [RESULTS_DIRECTORY]))


def judged(run: Run, decides: Judge, given: pd.Series | None) -> Iterator[dict[str, pa.Table]]:
    """The tables that follow from the shards' files, block by block in manifest order.

    Raises:
        InputError: A shard's file is missing or not what it should be.
        CrackvaeError: A file's rows do not add up.
    """
    rows = 0
    parts = shards.read_parts(run, range(run.plan.shards))
    while block := list(islice(parts, _BLOCK_SHARDS)):
        made = _judge(run, decides, given, block)
        rows += made[RESULTS_DIRECTORY].num_rows
        yield made
    if rows != run.plan.rows:
        raise CrackvaeError(f"{run.location}: {rows} rows for {run.plan.rows} files; please report it")


def _judge(run: Run, decides: Judge, given: pd.Series | None, parts: Sequence[Part]) -> dict[str, pa.Table]:
    """The tables of neighbouring shards, together: one by one, each of 20 photographs took 4 ms."""
    for part in parts:
        if part.next_attempt(run.retries) is not None:
            found = "; ".join(f"{name} {why}" for name, why in part.damaged.items()) or "it has no file"
            raise InputError(f"{run.location}: shard {part.shard} is not scored ({found}); run the same command again")
    scored = pa.concat_tables([part.table for part in parts]).combine_chunks()
    _reconcile(run, parts, scored)
    plan = pa.concat_tables([run.plan.shard(part.shard) for part in parts]).combine_chunks()
    columns = {name: plan[name] for name in ("uri", "label", "group", "set")}
    columns["label"] = labels.put(given, plan["image_id"], plan["label"])
    columns |= {name: scored[name] for name in scored.schema.names}
    columns |= decides.judge(scored)
    made = {RESULTS_DIRECTORY: pa.table([columns[name] for name in RESULTS.names], schema=RESULTS)}
    for name in tables(run)[1:]:
        nested = _NESTED[name]
        lists = scored[nested].combine_chunks()
        fields = dict(zip(_TABLES[name].names[1:], lists.flatten().flatten(), strict=True))
        owner = scored["image_id"].take(pc.list_parent_indices(lists))
        made[name] = pa.table({"image_id": owner, **fields}, schema=_TABLES[name])
    return made


def _reconcile(run: Run, parts: Sequence[Part], scored: pa.Table) -> None:
    """Every row has one known status, and a score exactly if that is ok."""
    status, score = scored["status"], scored["score"]
    known = pc.is_in(status, pa.array([str(s) for s in Status]))
    right = pc.equal(pc.equal(status, str(Status.OK)), pc.is_finite(score).fill_null(False))
    wrong = pc.index(pc.and_(known, right), False).as_py()
    if wrong < 0:
        return
    first_P = np.cumsum([0, *(part.table.num_rows for part in parts)])
    place = int(np.searchsorted(first_P, wrong, side="right")) - 1
    name = shards.part_name(parts[place].shard, parts[place].attempt)
    row = f"row {wrong - first_P[place] + 1}: status {status[wrong]} with score {score[wrong]}"
    raise CrackvaeError(
        f"{run.location}: {name}: {row}; delete the file, run the same command again, and please report it"
    )


def csv_bytes(table: pa.Table, *, header: bool = False) -> bytes:
    """A table as CSV; text that a spreadsheet would run gets an apostrophe in front."""
    for index, field in enumerate(table.schema):
        if field.type == pa.string():
            column = table[index]
            dangerous = pc.match_substring_regex(column, _FORMULA)
            safe = pc.if_else(dangerous, pc.binary_join_element_wise("'", column, ""), column)
            table = table.set_column(index, field.name, safe)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer, pyarrow.csv.WriteOptions(include_header=header))
    return buffer.getvalue()
