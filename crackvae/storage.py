"""Bytes in and out, on a local disk or on any file system that pyarrow.fs knows by URI.

A location is a plain local path, or a URI (file://, s3://, gs://) whose path is percent-encoded.
`writing` is the only way in which crackvae makes a file that others may rely on: it becomes
visible whole or not at all.

An OSError is about the one file; `UnavailableError` says that an object store gave no answer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlsplit

from pyarrow import fs

from crackvae import object_store
from crackvae.errors import InputError
from crackvae.listing import list_remote
from crackvae.object_store import ask, remote

T = TypeVar("T")

_PIECE = 2**23


def local_path(location: str) -> Path | None:
    """The local path behind a location, or None where it lies on another file system.

    Raises:
        InputError: It is a URI with a fragment.
    """
    path = local_name(location)
    return None if path is None else Path(path)


def local_name(location: str) -> str | None:
    """The same as text, which takes half the time."""
    scheme, mark, _ = location.partition("://")
    if not mark:
        return location
    if "#" in location:  # what follows would be dropped
        raise InputError(f"{location}: a URI holds a #; write %23 for it")
    return os.fsdecode(unquote_to_bytes(urlsplit(location).path)) if scheme == "file" else None


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


def open_input(location: str) -> IO[bytes]:
    """Opens a file for random reads.

    Raises:
        OSError: It cannot be read.
        UnavailableError: The object store gave no answer.
    """
    path = local_path(location)
    return path.open("rb") if path is not None else object_store.Reader(location)


def read_bytes(location: str) -> bytes:
    """Everything in a file. Raises as `open_input`."""
    with open_input(location) as stream:
        return stream.read()


def read_json(location: str, parse: Callable[[Any], T], cure: str) -> T | None:
    """What `parse` makes of a JSON file; None where there is none.

    Raises:
        InputError: It is damaged; the message says the cure.
    """
    if not exists(location):
        return None
    try:
        return parse(json.loads(read_bytes(location)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{location}: is damaged; {cure}") from error


def sha256(location: str) -> str:
    """The SHA-256 of a file, read in pieces. Raises as `open_input`."""
    digest = hashlib.sha256()
    with open_input(location) as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def exists(location: str) -> bool:
    """Whether there is a file or folder."""
    path = local_path(location)
    if path is not None:
        return path.exists()
    system, name = remote(location)
    return bool(ask(location, lambda: system.get_file_info(name)).type != fs.FileType.NotFound)


def check_file(location: str) -> None:
    """Refuses a folder where a file is to be made.

    Raises:
        IsADirectoryError: There is one.
    """
    path = local_path(location)
    if path is not None and path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


@contextmanager
def writing(location: str) -> Iterator[IO[bytes]]:
    """Makes a file, or replaces it, in one step: readers see the old bytes or the new, whole.

    Yields a stream to write to. Where the block raises, nothing becomes visible. On a local disk
    the bytes are on the disk before the name is; an object store takes them when they are complete.
    """
    path = local_path(location)
    if path is None:
        with tempfile.NamedTemporaryFile() as stream:
            yield stream.file
            stream.flush()
            object_store.upload(stream.name, location)
        return
    check_file(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):  # a name that nobody has given
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # it is there after an error only
            temporary.unlink()


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
    with suppress(FileNotFoundError):
        for entry in list_remote(location):
            yield entry.path


def remove(location: str) -> None:
    """Removes a file or a folder with everything in it; nothing happens where there is none."""
    path = local_path(location)
    if path is None:
        system, name = remote(location)
        with suppress(FileNotFoundError):
            is_folder = ask(location, lambda: system.get_file_info(name)).type == fs.FileType.Directory
            ask(location, lambda: (system.delete_dir if is_folder else system.delete_file)(name))
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
