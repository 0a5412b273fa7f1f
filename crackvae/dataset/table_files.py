"""CSV and Parquet tables from anywhere, whole or in blocks of bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from crackvae import storage
from crackvae.errors import InputError

_BLOCK_ROWS = 2**16
_LINES = pyarrow.csv.ParseOptions(newlines_in_values=True)


def read_table(location: str, text: Iterable[str]) -> pa.Table:
    """Reads a table, by its name CSV or Parquet. Takes and raises what `read_csv` does."""
    return read_csv(location, text) if _is_csv(location) else read_parquet(location)


def read_csv(location: str, text: Iterable[str]) -> pa.Table:
    """Reads a CSV file; a cell may go on in the next line.

    Args:
        location: Of the file.
        text: Columns that are not guessed at: a group 007 is no number. An empty cell of them is null.

    Raises:
        InputError: It is missing, or damaged.
    """
    with _opened(location) as stream:
        return _checked(pyarrow.csv.read_csv(stream, parse_options=_LINES, convert_options=_as_text(text)))


def read_parquet(location: str) -> pa.Table:
    """Reads a Parquet file. Raises as `read_csv`."""
    with _opened(location) as stream:
        return _checked(pq.read_table(stream))


def read_schema(location: str) -> pa.Schema:
    """The columns of a table, and what a Parquet file says of itself. Raises as `read_csv`."""
    with _opened(location) as stream:
        source = pyarrow.csv.open_csv(stream, parse_options=_LINES) if _is_csv(location) else None
        schema = source.schema if source else pq.ParquetFile(stream).schema_arrow
        schema.names  # noqa: B018 (fails here where they are not UTF-8)
        return schema


def read_blocks(location: str, columns: Iterable[str]) -> Iterator[pa.Table]:
    """Some columns of a table, in pieces; of a CSV file as text, as by `read_csv`. Raises as that."""
    names = list(columns)
    with _opened(location) as stream:
        if _is_csv(location):
            batches = pyarrow.csv.open_csv(stream, parse_options=_LINES, convert_options=_as_text(names, names))
        else:
            batches = pq.ParquetFile(stream).iter_batches(_BLOCK_ROWS, columns=names)
        for batch in batches:
            yield _checked(pa.Table.from_batches([batch]))


def check_columns(table: pa.Table, names: Iterable[str], location: str) -> None:
    """Raises InputError where a table has not each of these columns once."""
    for name in names:
        if table.schema.names.count(name) != 1:
            found = ", ".join(map(repr, table.schema.names))
            raise InputError(f"{location}: needs one column {name!r}; found {found}")


def counts(column: pa.ChunkedArray) -> dict[Any, int]:
    """How often each value is there."""
    return {row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()}


def _is_csv(location: str) -> bool:
    return storage.name(location).lower().endswith(".csv")


def _as_text(text: Iterable[str], include: list[str] | None = None) -> pyarrow.csv.ConvertOptions:
    return pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(text, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        include_columns=include,
    )


def _checked(table: pa.Table) -> pa.Table:
    table.validate(full=True)  # that text is UTF-8: Arrow takes a file's word for it
    return table


@contextmanager
def _opened(location: str) -> Iterator[IO[bytes] | pa.NativeFile]:
    """The file; what goes wrong with it in the block is told in one line."""
    try:
        path = storage.local_path(location)
        # Where there is an error, Arrow's threads read on: for a stream of Python's, they want an interpreter that is
        # about to end, and abort the process.
        with storage.open_input(location) if path is None else pa.OSFile(os.fsencode(path)) as stream:
            yield stream
    except FileNotFoundError as error:
        raise InputError(f"{location}: no such file") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        kind = "CSV" if _is_csv(location) else "Parquet"
        raise InputError(f"{location}: cannot be read as {kind}: {reason}") from error
