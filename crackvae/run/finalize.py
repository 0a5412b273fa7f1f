"""From finished shards to results: judge, reconcile, add up, and say that it is complete."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import CrackvaeError, InputError
from crackvae.run import directory, judge, shards, summary
from crackvae.run.directory import Run
from crackvae.run.judge import Judge
from crackvae.run.shards import Part
from crackvae.run.summary import Summary
from crackvae.schema import RESULTS, Label, Status
from crackvae.statistics import calibration

RESULTS_DIRECTORY = "results"
CSV = "results.csv"

_BLOCK_SHARDS = 256  # held in memory, and a row group of results/
_FILE_BLOCKS = 16  # per file of results/: some million rows

# A spreadsheet runs a cell that begins so as a formula (OWASP, "CSV Injection"). The apostrophe
# itself is in the list so that taking one away always gives back what was there.
_FORMULA = r"^[=+\-@\t\r\n'|%]"
_TEXT = ("image_id", "uri", "message", "group")


def finalize(run: Run) -> dict[str, Any]:
    """Writes results/, results.csv, metrics.json and, last, _SUCCESS, in memory that does not grow.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: A shard's file is missing or not what it should be.
        CrackvaeError: The rows do not add up to the manifest's.
    """
    decides = judge.load(run)
    storage.remove(run.path(directory.SUCCESS))
    for outdated in (RESULTS_DIRECTORY, directory.FIGURES):
        storage.remove(run.path(outdated))
    total, written = Summary(), []
    blocks = judged(run, decides)
    with storage.writing(run.path(CSV)) as csv:
        csv.write(csv_bytes(RESULTS.empty_table(), header=True))
        for number in count():
            first = next(blocks, None)
            if first is None:
                break
            written.append(f"{RESULTS_DIRECTORY}/results-{number:05d}.parquet")
            with (
                storage.writing(results_file(run, number)) as stream,
                pq.ParquetWriter(stream, RESULTS, compression="zstd") as writer,
            ):
                for block in chain([first], islice(blocks, _FILE_BLOCKS - 1)):
                    writer.write_table(block)
                    csv.write(csv_bytes(block))
                    total.add(block)
    content = total.as_dict(decides)
    text = json.dumps(content, indent=1, allow_nan=False)
    storage.write_bytes(run.path(summary.METRICS), text.encode())
    files = {name: storage.sha256(storage.join(run.location, *name.split("/"))) for name in success_files(written)}
    success = {"identity": run.identity, "files": files}
    storage.write_bytes(run.path(directory.SUCCESS), json.dumps(success, indent=1).encode())
    return content


def success_files(results: Iterable[str]) -> list[str]:
    """What _SUCCESS keeps the SHA-256 of."""
    return [CSV, summary.METRICS, *results]


def results_file(run: Run, number: int) -> str:
    """Where a file of results/ lies."""
    return storage.join(run.location, RESULTS_DIRECTORY, f"results-{number:05d}.parquet")


def read_results(location: str, columns: list[str] | None = None) -> pa.Table:
    """The results of a finished run as one table, in manifest order."""
    folder = storage.join(location, RESULTS_DIRECTORY)
    tables = []
    for name in sorted(storage.list_files(folder)):
        with storage.open_input(storage.join(folder, name)) as stream:
            tables.append(pq.read_table(stream, columns=columns))
    return pa.concat_tables(tables)


def judged(run: Run, decides: Judge) -> Iterator[pa.Table]:
    """The results that follow from the shards' files, block by block in manifest order.

    Raises:
        InputError: A shard's file is missing or not what it should be.
        CrackvaeError: A file's rows do not add up.
    """
    rows = 0
    parts = shards.read_parts(run, range(run.plan.shards))
    while block := [_judge_part(run, decides, part) for part in islice(parts, _BLOCK_SHARDS)]:
        table = pa.concat_tables(block).combine_chunks()
        rows += table.num_rows
        yield table
    if rows != run.plan.rows:
        raise CrackvaeError(f"{run.location}: {rows} rows for {run.plan.rows} files; please report it")


def _judge_part(run: Run, decides: Judge, part: Part) -> pa.Table:
    if part.next_attempt(run.retries) is not None:
        found = "; ".join(f"{name} {why}" for name, why in part.damaged.items()) or "it has no file"
        raise InputError(f"{run.location}: shard {part.shard} is not scored ({found}); run the same command again")
    _reconcile(run, part)
    plan, score_N = run.plan.shard(part.shard), part.table["score"].to_numpy().astype(np.float64)
    crack_N = calibration.is_anomalous(score_N, decides.threshold)
    unscored_N = np.isnan(score_N)
    columns = {name: plan[name] for name in ("uri", "label", "group", "set")}
    columns |= {name: part.table[name] for name in part.table.schema.names}
    columns["p_value"] = pa.array(calibration.p_values(score_N, decides.score_n), mask=unscored_N)
    prediction_N = np.where(crack_N, str(Label.CRACK), str(Label.NORMAL))
    columns["prediction"] = pa.array(prediction_N, pa.string(), mask=unscored_N)
    return pa.table([columns[field.name] for field in RESULTS], schema=RESULTS)


def _reconcile(run: Run, part: Part) -> None:
    """Every row has one known status, and a score exactly if that is ok."""
    status, score = part.table["status"], part.table["score"]
    known = pc.is_in(status, pa.array([str(s) for s in Status]))
    right = pc.equal(pc.equal(status, str(Status.OK)), pc.is_finite(score).fill_null(False))
    wrong = pc.index(pc.and_(known, right), False).as_py()
    if wrong >= 0:
        name = shards.part_name(part.shard, part.attempt)
        row = f"row {wrong + 1}: status {status[wrong]} with score {score[wrong]}"
        raise CrackvaeError(
            f"{run.location}: {shards.PARTS}/{name}: {row}; "
            "delete the file, run the same command again, and please report it"
        )


def csv_bytes(table: pa.Table, *, header: bool = False) -> bytes:
    """Rows of results.csv; text that a spreadsheet would run gets an apostrophe in front."""
    for name in _TEXT:
        column = table[name]
        dangerous = pc.match_substring_regex(column, _FORMULA)
        safe = pc.if_else(dangerous, pc.binary_join_element_wise("'", column, ""), column)
        table = table.set_column(table.schema.get_field_index(name), name, safe)
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer, pyarrow.csv.WriteOptions(include_header=header))
    return buffer.getvalue()
