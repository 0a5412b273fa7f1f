"""Bytes in and out, on a local disk or on any file system that pyarrow.fs knows by URI.

A location is a plain local path, or a URI (file://, s3://, gs://) whose path is percent-encoded.
`writing` is the only way in which crackvae makes a file that others may rely on: it becomes
visible whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, cast
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlsplit

import pyarrow as pa
from pyarrow import fs

from crackvae.errors import InputError


def local_path(location: str) -> Path | None:
    """The local path behind a location, or None where it lies on another file system."""
    if "://" not in location:
        return Path(location)
    parts = urlsplit(location)
    return Path(os.fsdecode(unquote_to_bytes(parts.path))) if parts.scheme == "file" else None


def to_uri(location: str) -> str:
    """The absolute URI of a location; bytes that are not UTF-8 survive, percent-encoded."""
    if "://" in location:
        return location.rstrip("/")
    absolute = os.path.abspath(location)
    return "file://" + quote_from_bytes(os.fsencode(absolute))


def absolute(location: str) -> str:
    """A local location as an absolute path, any other as it is: what Ray calls a storage path."""
    path = local_path(location)
    return location if path is None else os.path.abspath(path)


def join(location: str, *parts: str) -> str:
    """A location below another; for a URI the parts are percent-encoded."""
    if "://" not in location:
        return "/".join([location.removesuffix("/"), *parts])
    base, mark, query = location.partition("?")  # s3://bucket/folder?region=..., as pyarrow has it
    return "/".join([base.removesuffix("/"), *map(quote, parts)]) + mark + query


def parent(location: str) -> str:
    """The URI of the folder that a location lies in."""
    base, mark, query = to_uri(location).partition("?")
    return base.rpartition("/")[0] + "/" + mark + query


def name(location: str) -> str:
    """The last part of a location, decoded."""
    base = to_uri(location).partition("?")[0]
    return os.fsdecode(unquote_to_bytes(base.rstrip("/").rpartition("/")[2]))


def remote(location: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system and the path in it, of a location that is not local.

    Raises:
        InputError: No file system is known for its scheme.
    """
    parts = urlsplit(location)
    root = f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else "")
    path = parts.netloc.rpartition("@")[2] + os.fsdecode(unquote_to_bytes(parts.path))
    return _remote_filesystem(root), path


@lru_cache(maxsize=32)
def _remote_filesystem(root: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, NotImplementedError) as error:
        scheme = root.partition("://")[0]
        raise InputError(f"{scheme}://: no such file system; use s3://, gs:// or a path") from error


def open_input(location: str) -> IO[bytes]:
    """Opens a file for random reads."""
    path = local_path(location)
    if path is not None:
        return path.open("rb")
    system, name = remote(location)
    return cast("IO[bytes]", system.open_input_file(name))


def read_bytes(location: str) -> bytes:
    """Everything in a file."""
    with open_input(location) as stream:
        return stream.read()


def exists(location: str) -> bool:
    """Whether there is a file or folder."""
    path = local_path(location)
    if path is not None:
        return path.exists()
    system, name = remote(location)
    return bool(system.get_file_info(name).type != fs.FileType.NotFound)


@contextmanager
def writing(location: str) -> Iterator[IO[bytes]]:
    """Makes a file, or replaces it, in one step: readers see the old bytes or the new, whole.

    Yields a stream to write to. Where the block raises, nothing becomes visible. On a local disk
    the bytes are on the disk before the name is; an object store takes them when they are complete.
    """
    path = local_path(location)
    if path is None:
        with tempfile.TemporaryFile() as stream:
            yield stream
            stream.seek(0)
            system, name = remote(location)
            with system.open_output_stream(name) as target:
                shutil.copyfileobj(stream, target, 2**24)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(location: str, data: bytes) -> None:
    """Makes a file of these bytes, or replaces it, as `writing` does."""
    with writing(location) as stream:
        stream.write(data)


def list_files(location: str) -> Iterator[str]:
    """The files below a folder, as paths relative to it, in no order; none where it is missing."""
    path = local_path(location)
    if path is not None:
        for folder, _, names in os.walk(path):
            for name in names:
                if not name.endswith(".tmp"):
                    yield os.path.relpath(os.path.join(folder, name), path)
        return
    system, root = remote(location)
    for info in system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
        if info.is_file:
            yield str(info.path)[len(root) :].lstrip("/")


def remove(location: str) -> None:
    """Removes a file or a folder with everything in it; nothing happens where there is none."""
    path = local_path(location)
    if path is None:
        system, name = remote(location)
        kind = system.get_file_info(name).type
        if kind == fs.FileType.Directory:
            system.delete_dir(name)
        elif kind == fs.FileType.File:
            system.delete_file(name)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256(location: str) -> str:
    """The SHA-256 of a file, read in pieces."""
    with open_input(location) as stream:
        digest = hashlib.sha256()
        while piece := stream.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
