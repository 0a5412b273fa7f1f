"""The manifest: one row per input file of one or more sources, as Parquet."""

from __future__ import annotations

import io
import os
import posixpath
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from crackvae import object_store, storage
from crackvae.dataset import labels, sources
from crackvae.errors import InputError
from crackvae.schema import MANIFEST, SCHEMA_VERSION, Label

_VERSION_KEY = b"crackvae.schema_version"
# What files are checked by: taken from crackvae's own manifests, as elsewhere a size may be anything.
_OWN = frozenset({"size", "mtime", "content_hash"})


@dataclass
class Summary:
    """What indexing found.

    Attributes:
        images: Rows of the manifest.
        bytes: Their total size, where sizes are known.
        labels: Images by label; those without under "unlabelled".
        skipped: Files that are no images, by suffix; macOS's shadows of files as `._*`.
        unlisted: Folders that cannot be listed; each is a row, which says why when it is read.
        repeated: URIs that were named more than once and kept once.
        seconds: Time taken.
    """

    images: int = 0
    bytes: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)
    unlisted: int = 0
    repeated: int = 0
    seconds: float = 0.0

    def lines(self) -> list[str]:
        """For people."""
        labels = ", ".join(f"{count:,} {label}" for label, count in sorted(self.labels.items()))
        lines = [f"{self.images:,} images ({self.bytes / 1e6:,.0f} MB): {labels}"]
        if self.skipped:
            lines.append(f"no images by their name: {_listed(self.skipped)}")
        if self.unlisted:
            lines.append(f"warning: {self.unlisted:,} folders cannot be listed; each is a row that will be unreadable")
        if self.repeated:
            lines.append(f"warning: {self.repeated:,} files were named more than once, kept once")
        return lines


def build(
    locations: Sequence[str],
    *,
    normal: Sequence[str] = (),
    crack: Sequence[str] = (),
    label_column: str = "label",
) -> tuple[pa.Table, Summary]:
    """Lists sources into a manifest; opens no image.

    Args:
        locations: Folders, archives, images, or tables of URIs (a manifest is one).
        normal: Folder names or values that mean normal, instead of the common ones.
        crack: Folder names or values that mean crack, instead of the common ones.
        label_column: The column of a table that holds labels.

    Returns:
        The manifest and what was found. Rows are sorted by path within a source, those of a
        .tar.gz are in its own order.

    Raises:
        InputError: A source cannot be listed, labels are unclear, or there is no image.
    """
    start = time.monotonic()
    summary = Summary()
    names = labels.vocabulary(normal, crack)
    tables = []
    for location in locations:
        if sources.kind(location) == "table":
            tables.append(_from_table(location, label_column, names))
        else:
            tables.append(_from_listing(location, names, bool(normal or crack), summary))
    table = pa.concat_tables(tables)
    if table.num_rows == 0:
        found = _listed(summary.skipped, most=5) or "no file at all"
        raise InputError(f"{', '.join(locations)}: no image; found {found}")
    table = _unique(table, summary)
    summary.images = table.num_rows
    summary.bytes = pc.sum(table["size"]).as_py() or 0
    summary.labels = {
        str(row["values"] or "unlabelled"): row["counts"] for row in pc.value_counts(table["label"]).to_pylist()
    }
    summary.seconds = time.monotonic() - start
    return table, summary


def write(table: pa.Table, location: str) -> None:
    """Writes a manifest, whole or not at all."""
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({_VERSION_KEY: str(SCHEMA_VERSION)}),
        buffer,
        compression="zstd",
    )
    storage.write_bytes(location, buffer.getvalue())


def read(location: str) -> pa.Table:
    """Reads a manifest that crackvae wrote.

    Raises:
        InputError: It is missing, damaged, newer than this version, or something else.
    """
    table = _read_parquet(location)
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"")
    if version.isdigit() and int(version) > SCHEMA_VERSION:
        raise InputError(f"{location}: was written by a newer crackvae; update this one")
    try:
        if version.isdigit():
            return table.select(MANIFEST.names).cast(MANIFEST)
    except (KeyError, ValueError, pa.ArrowException):  # a column is missing or of another type
        pass
    raise InputError(f"{location}: is no manifest; make one with `crackvae index`")


def rows(table: pa.Table, **values: str) -> pa.Table:
    """The rows in which each named column has the given value."""
    for column, value in values.items():
        table = table.filter(pc.equal(table[column], str(value)))
    return table


def _from_listing(location: str, names: Mapping[str, Label], required: bool, summary: Summary) -> pa.Table:
    files = []
    for file in sources.list_source(location):
        is_folder = file.path.endswith("/")
        summary.unlisted += is_folder
        if is_folder or sources.is_image(file.path):
            files.append(file)
        else:
            name = PurePosixPath(file.path)
            suffix = "._*" if name.name.startswith("._") else name.suffix.lower()
            summary.skipped[suffix or "(no suffix)"] += 1
    kind = sources.kind(location)
    if not storage.name(location).lower().endswith(sources.SEQUENTIAL_SUFFIXES):
        files.sort(key=lambda file: (file.path, file.uri))
    paths = [file.path for file in files]
    is_one_image = kind == "image"
    root = storage.name(storage.parent(location) if is_one_image else location).partition(".")[0]
    images = [path for path in paths if not path.endswith("/")]
    label_of = dict(zip(images, labels.from_folders(images, root, names, required=required), strict=True))
    return _table(
        {
            "image_id": paths,
            "uri": [file.uri for file in files],
            "size": [file.size for file in files],
            "mtime": [file.mtime for file in files],
            "label": [str(label) if (label := label_of.get(path)) else None for path in paths],
        }
    )


def _listed(skipped: Mapping[str, int], most: int | None = None) -> str:
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {suffix}" for suffix, count in ranked[:most])


def _from_table(location: str, label_column: str, names: Mapping[str, Label]) -> pa.Table:
    table = read_table(location, {label_column, *(field.name for field in MANIFEST if field.type == pa.string())})
    for column in {"uri", label_column} - {"label"}:
        if column not in table.schema.names:
            found = ", ".join(map(repr, table.schema.names))
            raise InputError(f"{location}: has no column {column!r}; found {found}")
    for column in {*MANIFEST.names, label_column}:
        if table.schema.names.count(column) > 1:
            raise InputError(f"{location}: has several columns {column!r}; keep one")
    given = [str(value) if value is not None else "" for value in table["uri"].to_pylist()]
    if "" in given:
        raise InputError(f"{location}: row {given.index('') + 1} has no uri; fill or remove it")
    folder = storage.parent(location)
    columns: dict[str, Any] = {
        "image_id": given,
        "uri": [_absolute(uri, folder, f"{location}: row {row}") for row, uri in enumerate(given, 1)],
    }
    columns |= {name: table[name].combine_chunks() for name in _taken(table.schema)}
    if "image_id" in table.schema.names:
        named = zip(table["image_id"].to_pylist(), given, strict=True)
        columns["image_id"] = [uri if name is None else str(name) for name, uri in named]
    if label_column in table.schema.names:
        values = table[label_column].to_pylist()
        columns["label"] = [v and str(v) for v in labels.from_column(values, location, names)]
    try:
        return _table(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location}: a column has the wrong type: {reason}") from error


def _taken(schema: pa.Schema) -> set[str]:
    """The columns that a manifest takes over as they are."""
    taken = {*MANIFEST.names} & {*schema.names} - {"image_id", "uri", "label"}
    return taken if _VERSION_KEY in (schema.metadata or {}) else taken - _OWN


def _absolute(uri: str, folder: str, named: str) -> str:
    """The URI in a row of a table; what is no URI is a plain path, if need be from the folder."""
    if "://" in uri:
        object_store.check_uri(uri, named)
        return uri
    if not uri.startswith("/") and (posixpath.normpath(uri) + "/").startswith("../"):
        raise InputError(f"{named}: {uri!r} leaves the table's folder; give a full path or URI")
    local = storage.local_path(folder)
    if local is None and not uri.startswith("/"):
        return storage.join(folder, uri)
    return storage.to_uri(os.path.join(local or "", uri))


def _table(columns: Mapping[str, Any]) -> pa.Table:
    unknown = {field.name: pa.nulls(len(columns["uri"]), field.type) for field in MANIFEST}
    return pa.table(unknown | {**columns}).cast(MANIFEST)


def _unique(table: pa.Table, summary: Summary) -> pa.Table:
    """Keeps one row per URI, and gives each its own image_id.

    An id that an earlier source has already used gets `#2`, `#3`: a file keeps the id of its
    relative path whenever nothing else claims it.
    """
    first: dict[str, int] = {}
    label = table["label"].to_pylist()
    for row, uri in enumerate(table["uri"].to_pylist()):
        if label[first.setdefault(uri, row)] != label[row]:
            raise InputError(f"{uri}: is named twice with different labels; name it once")
    summary.repeated = table.num_rows - len(first)
    if summary.repeated:
        table = table.take(pa.array(list(first.values())))
    ids = table["image_id"].to_pylist()
    if len(set(ids)) < len(ids):
        taken: set[str] = set()
        uses: Counter[str] = Counter()
        for index, name in enumerate(ids):
            unique = name
            while unique in taken:
                uses[name] += 1
                unique = f"{name}#{uses[name] + 1}"
            taken.add(unique)
            ids[index] = unique
        position = table.schema.get_field_index("image_id")
        table = table.set_column(position, MANIFEST.field("image_id"), pa.array(ids, pa.string()))
    return table


def read_table(location: str, text: Iterable[str]) -> pa.Table:
    """Reads a table, by its name CSV or Parquet.

    Args:
        location: Of the file.
        text: As for `read_csv`.

    Raises:
        InputError: It is missing, or damaged.
    """
    return read_csv(location, text) if storage.name(location).lower().endswith(".csv") else _read_parquet(location)


def read_csv(location: str, text: Iterable[str]) -> pa.Table:
    """Reads a CSV file; a cell may go on in the next line.

    Args:
        location: Of the file.
        text: Columns that are not guessed at: a group 007 is no number. An empty cell of them is null.

    Raises:
        InputError: It is missing, or damaged.
    """
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(text, pa.string()), null_values=[""], strings_can_be_null=True
    )
    lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return _read(
        location, "CSV", lambda stream: pyarrow.csv.read_csv(stream, parse_options=lines, convert_options=options)
    )


def _read_parquet(location: str) -> pa.Table:
    return _read(location, "Parquet", pq.read_table)


def _read(location: str, kind: str, parse: Callable[[IO[bytes]], pa.Table]) -> pa.Table:
    try:
        with storage.open_input(location) as stream:
            table = parse(stream)
            table.validate(full=True)  # that text is UTF-8: Arrow takes a file's word for it
            return table
    except FileNotFoundError as error:
        raise InputError(f"{location}: no such file") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location}: cannot be read as {kind}: {reason}") from error
