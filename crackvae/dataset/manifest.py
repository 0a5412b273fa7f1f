"""The manifest: one row per input file of one or more sources, as Parquet."""

from __future__ import annotations

import os
import posixpath
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crackvae import object_store, storage
from crackvae.dataset import labels, naming, sources, table_files
from crackvae.dataset.labels import FolderLabels
from crackvae.dataset.naming import Hashes
from crackvae.errors import InputError
from crackvae.schema import MANIFEST, SCHEMA_VERSION, Label
from crackvae.terminal import printable

_VERSION_KEY = b"crackvae.schema_version"
# What files are checked by: taken from crackvae's own manifests, as elsewhere a size may be anything.
_OWN = frozenset({"size", "mtime", "content_hash"})
_NAMES = ("uri", "image_id")  # that no two rows share
_BLOCK_FILES = 2**16


@dataclass
class Summary:
    """What indexing found.

    Attributes:
        images: Rows of the manifest.
        bytes: Their total size, where sizes are known.
        labels: Images by label; those without under "unlabelled".
        splits: That rows have.
        skipped: Files that are no images, by suffix; macOS's shadows of files as `._*`.
        unlisted: Folders that cannot be listed, and links to folders elsewhere; each is a row that says why when read.
        repeated: URIs that were named more than once and kept once.
        seconds: Time taken.
    """

    images: int = 0
    bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    splits: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    unlisted: int = 0
    repeated: int = 0
    seconds: float = 0.0

    def add(self, table: pa.Table) -> None:
        """Counts rows of a manifest."""
        self.images += table.num_rows
        self.bytes += pc.sum(table["size"]).as_py() or 0
        self.splits |= {*pc.unique(table["split"].drop_null()).to_pylist()}
        self.labels.update({label or "unlabelled": n for label, n in table_files.counts(table["label"]).items()})

    def lines(self) -> list[str]:
        """For people."""
        labels = ", ".join(f"{count:,} {label}" for label, count in sorted(self.labels.items()))
        lines = [f"{self.images:,} images ({self.bytes / 1e6:,.0f} MB): {labels}"]
        if self.skipped:
            lines.append(f"no images by their name: {_listed(self.skipped)}")
        if self.unlisted:
            lines.append(f"warning: {self.unlisted:,} folders are not listed; each is a row, unreadable, that says why")
        if self.repeated:
            lines.append(f"warning: {self.repeated:,} files were named more than once, kept once")
        return [printable(line) for line in lines]


def build(
    locations: Sequence[str],
    *,
    normal: Sequence[str] = (),
    crack: Sequence[str] = (),
    label_column: str = "label",
    folder_labels: bool = True,
) -> tuple[pa.Table, Summary]:
    """Lists sources into a manifest; opens no image. Arguments, order and errors are those of `listing`."""
    listed = listing(locations, normal=normal, crack=crack, label_column=label_column, folder_labels=folder_labels)
    with listed as (blocks, summary):
        return pa.concat_tables(blocks).combine_chunks(), summary


@contextmanager
def listing(
    locations: Sequence[str],
    *,
    normal: Sequence[str] = (),
    crack: Sequence[str] = (),
    label_column: str = "label",
    folder_labels: bool = True,
    unlabelled_if_unclear: bool = False,
) -> Iterator[tuple[Iterator[pa.Table], Summary]]:
    """Lists sources; the rows wait in a temporary file, so that memory does not grow with them.

    It does grow with the largest folder and an archive's members, and by 150 bytes a row where a name is there twice.

    Args:
        locations: Folders, archives, images, or tables of URIs (a manifest is one).
        normal: Folder names or values that mean normal, instead of the common ones.
        crack: Folder names or values that mean crack, instead of the common ones.
        label_column: The column of a table that holds labels.
        folder_labels: Whether folder names are labels. Where a survey grows, any folder may come.
        unlabelled_if_unclear: Whether a folder in which only some folders mean a label has none, with a warning. Where
            the names were given, it is an error all the same.

    Yields:
        The rows of the manifest in blocks, and what was found. Rows are sorted by path within a source, those
        of a .tar.gz are in its own order.

    Raises:
        InputError: A source cannot be listed, labels are unclear, or there is no image.
    """
    start, summary = time.monotonic(), Summary()
    names, given = labels.vocabulary(normal, crack), bool(normal or crack)
    with tempfile.TemporaryDirectory(prefix="crackvae-") as folder:
        spool = _Spool(Path(folder))
        for location in locations:
            if sources.kind(location) == "table":
                required = given or label_column != "label"
                spool.add(_from_table(location, label_column, names, required=required), None)
            else:
                of_names, optional = names if folder_labels else {}, unlabelled_if_unclear and not given
                of_folder = FolderLabels(_root(location), of_names, required=given, optional=optional)
                spool.add(_from_listing(location, of_folder, summary), of_folder)
        if not spool.rows:
            found = _listed(summary.skipped, most=5) or "no file at all"
            raise InputError(f"{', '.join(locations)}: no image; found {found}")
        blocks = partial(_unique, spool, summary) if spool.repeats() else spool.blocks
        for block in blocks():
            summary.add(block)
        summary.seconds = time.monotonic() - start
        yield blocks(), summary


class _Spool:
    """Rows of a manifest in a temporary folder, source by source."""

    def __init__(self, folder: Path) -> None:
        self.rows = 0
        self._folder = folder
        self._labels: list[tuple[bool, Label | None]] = []  # of a source: whether all rows have one label, and which

    def add(self, blocks: Iterator[pa.Table], of_folder: FolderLabels | None) -> None:
        """Takes the rows of a source, and once they are known the label that all of them have."""
        with ExitStack() as stack:
            writer = stack.enter_context(pq.ParquetWriter(self._file(len(self._labels)), MANIFEST))
            hashes = {name: stack.enter_context(self._hashes(name).open("ab")) for name in _NAMES}
            for block in blocks:
                writer.write_table(block)
                self.rows += block.num_rows
                for name, stream in hashes.items():
                    stream.write(naming.hashed(block[name].to_pylist()).tobytes())
        self._labels.append(of_folder.of_all() if of_folder else (False, None))

    def blocks(self) -> Iterator[pa.Table]:
        """The rows, as they were added."""
        for number, (of_all, label) in enumerate(self._labels):
            with pq.ParquetFile(self._file(number)) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    if of_all:
                        column = pa.array([label] * table.num_rows, pa.string())
                        table = table.set_column(table.schema.get_field_index("label"), "label", column)
                    yield table.cast(MANIFEST)

    def repeats(self) -> bool:
        """Whether two rows share a URI or an image_id, as far as hashes of 64 bits tell."""
        return any(naming.repeats(self._hashes(name)) for name in _NAMES)

    def hashes(self, name: str) -> Hashes:
        """Of the names of all rows."""
        return np.fromfile(self._hashes(name), np.uint64)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.parquet"

    def _hashes(self, name: str) -> Path:
        return self._folder / f"{name}.hashes"


def write(table: pa.Table, location: str) -> None:
    """Writes a manifest, whole or not at all."""
    write_blocks([table], location)


def write_blocks(blocks: Iterable[pa.Table], location: str) -> None:
    """The same from blocks, in memory for one of them."""
    schema = MANIFEST.with_metadata({_VERSION_KEY: str(SCHEMA_VERSION)})
    with storage.writing(location) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for block in blocks:
            writer.write_table(block.replace_schema_metadata(schema.metadata))


def read(location: str) -> pa.Table:
    """Reads a manifest that crackvae wrote.

    Raises:
        InputError: It is missing, damaged, newer than this version, or something else.
    """
    table = table_files.read_parquet(location)
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
        table = table.filter(pc.equal(table[column], value))
    return table


def one_per_group(table: pa.Table) -> pa.Table:
    """The first row of each group: twins are one image photographed once, and would count it twice."""
    frame = table.select(["group"]).to_pandas()
    return table.filter(pa.array((frame["group"].isna() | ~frame["group"].duplicated()).to_numpy()))


def _root(location: str) -> str:
    """The name that the paths in a source are relative to, which may mean a label."""
    is_one_image = sources.kind(location) == "image"
    return storage.name(storage.parent(location) if is_one_image else location).partition(".")[0]


def _from_listing(location: str, of_folder: FolderLabels, summary: Summary) -> Iterator[pa.Table]:
    files = _images(sources.list_source(location), summary)
    in_order = storage.name(location).lower().endswith(sources.SEQUENTIAL_SUFFIXES)
    if sources.kind(location) == "archive" and not in_order:
        files = iter(sorted(files, key=lambda file: (file.path, file.uri)))
    while block := list(islice(files, _BLOCK_FILES)):
        yield _table(
            {
                "image_id": [file.path for file in block],
                "uri": [file.uri for file in block],
                "size": [file.size for file in block],
                "mtime": [file.mtime for file in block],
                "label": [None if file.path.endswith("/") else of_folder.add(file.path) for file in block],
            }
        )


def _images(files: Iterable[sources.File], summary: Summary) -> Iterator[sources.File]:
    """Images, and folders that cannot be listed; the rest is counted."""
    for file in files:
        is_folder = file.path.endswith("/")
        summary.unlisted += is_folder
        if is_folder or sources.is_image(file.path):
            yield file
        else:
            name = PurePosixPath(file.path)
            suffix = "._*" if name.name.startswith("._") else name.suffix.lower()
            summary.skipped[suffix or "(no suffix)"] += 1


def _listed(skipped: Mapping[str, int], most: int | None = None) -> str:
    ranked = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {suffix}" for suffix, count in ranked[:most])


def _from_table(location: str, label_column: str, names: Mapping[str, Label], *, required: bool) -> Iterator[pa.Table]:
    schema = table_files.read_schema(location)
    for column in ["uri", *[label_column] * required]:
        if column not in schema.names:
            found = ", ".join(map(repr, schema.names))
            cure = "; separate columns by commas" if len(schema.names) == 1 and ";" in schema.names[0] else ""
            raise InputError(f"{location}: has no column {column!r}; found {found}{cure}")
    for column in {*MANIFEST.names, label_column}:
        if schema.names.count(column) > 1:
            raise InputError(f"{location}: has several columns {column!r}; keep one")
    taken = {*MANIFEST.names} & {*schema.names} - {"image_id", "uri", "label"}  # over as they are
    if _VERSION_KEY not in (schema.metadata or {}):
        taken -= _OWN
    row = 1
    for block in table_files.read_blocks(location, ({"uri", "image_id", label_column} & {*schema.names}) | taken):
        yield _block_of_table(block, location, label_column, names, taken, row)
        row += block.num_rows


def _block_of_table(
    table: pa.Table, location: str, label_column: str, names: Mapping[str, Label], taken: set[str], row: int
) -> pa.Table:
    of_uri = table["uri"].type
    if pa.types.is_binary(of_uri) or pa.types.is_large_binary(of_uri):
        raise InputError(f"{location}: its column 'uri' is of the type {of_uri}; write it as text")
    given = [str(value) if value is not None else "" for value in table["uri"].to_pylist()]
    if "" in given:
        raise InputError(f"{location}: row {row + given.index('')} has no uri; fill or remove it")
    folder = storage.parent(location)
    columns: dict[str, Any] = {name: table[name].combine_chunks() for name in taken}
    columns["uri"] = [_absolute(uri, folder, f"{location}: row {number}") for number, uri in enumerate(given, row)]
    columns["image_id"] = given
    if "image_id" in table.schema.names:
        named = zip(table["image_id"].to_pylist(), given, strict=True)
        columns["image_id"] = [uri if name is None else str(name) for name, uri in named]
    if label_column in table.schema.names:
        columns["label"] = labels.from_column(table[label_column].to_pylist(), location, names)
    try:
        return _table(columns)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{location}: a column has the wrong type: {reason}") from error


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


def _table(columns: dict[str, Any]) -> pa.Table:
    unknown = {field.name: pa.nulls(len(columns["uri"]), field.type) for field in MANIFEST}
    return pa.table(unknown | columns).cast(MANIFEST)


def _unique(spool: _Spool, summary: Summary) -> Iterator[pa.Table]:
    """Keeps one row per URI, and gives each its own image_id, in memory for some 150 bytes a row.

    An id that an earlier row has already used gets `#2`, `#3`: a file keeps the id of its
    relative path whenever nothing else claims it.
    """
    again, codes = [], []
    for block in spool.blocks():
        again.append(naming.hashed(block["uri"].to_pylist(), naming.SECOND_KEY))
        codes.append(pc.index_in(block["label"], pa.array(list(Label))).fill_null(-1).to_numpy())
    first_N, before_N = naming.earlier(spool.hashes("uri"), np.concatenate(again))
    is_first_N, code_N, id_N = before_N == 0, np.concatenate(codes), spool.hashes("image_id")
    unclear_N = code_N != code_N[first_N]
    summary.repeated = int((~is_first_N).sum())
    before_N[is_first_N] = naming.earlier(id_N[is_first_N])[1]
    id_N.sort()
    made, start = set[str](), 0
    for block in spool.blocks():
        rows = slice(start, start := start + block.num_rows)
        if unclear_N[rows].any():
            uri = block["uri"][int(unclear_N[rows].argmax())]
            raise InputError(f"{uri}: is named twice with different labels; name it once")
        first = block.filter(pa.array(is_first_N[rows]))
        ids = naming.numbered(first["image_id"].to_pylist(), before_N[rows][is_first_N[rows]], id_N, made)
        yield first.set_column(
            MANIFEST.get_field_index("image_id"), MANIFEST.field("image_id"), pa.array(ids, pa.string())
        )
