"""Sources: folders, archives, tables and single images, local or by URI.

`list_source` names the files of a source without opening one. `Reader` gives the bytes of a listed
file. A member of an archive has the URI `ARCHIVE!/MEMBER`, percent-encoded; it is read in place.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, NoReturn, Self
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa
from pyarrow import fs

from crackvae import storage
from crackvae.errors import ImageError, InputError
from crackvae.schema import Status

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .jpe .jfif .mpo .png .tif .tiff .bmp .webp .gif .pgm .ppm .pnm .jp2".split())
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
SEQUENTIAL_SUFFIXES = (".tar.gz", ".tgz")  # a step back reads from the start again
TABLE_SUFFIXES = (".parquet", ".csv")
_NO_FILE = "is no regular file"


@dataclass(frozen=True, slots=True)
class File:
    r"""One file of a source.

    Attributes:
        path: Relative to the source, with `/`; bytes that are no UTF-8 are written as `\xff`.
        uri: Absolute.
        size: Bytes, None where unknown.
        mtime: Time of the last change, None where unknown.
    """

    path: str
    uri: str
    size: int | None
    mtime: datetime | None


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image (and not macOS's shadow of one)."""
    name = PurePosixPath(path)
    return name.suffix.lower() in IMAGE_SUFFIXES and not name.name.startswith("._")


def kind(source: str) -> str:
    """`archive`, `table`, `image` or `folder`.

    Raises:
        InputError: There is no such file or folder, or it is none of these.
    """
    path = storage.local_path(source)
    if path is not None and not path.exists():
        raise InputError(f"{source}: no such file or folder")
    if path is not None and path.is_dir():
        return "folder"
    name = storage.name(source).lower()
    if name.endswith(ARCHIVE_SUFFIXES):
        return "archive"
    if name.endswith(TABLE_SUFFIXES):
        return "table"
    if is_image(name):
        return "image"
    if path is not None:
        known = "a folder, an image, " + ", ".join((*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES))
        raise InputError(f"{source}: is no source; use {known}")
    return "folder"


def list_source(source: str) -> Iterator[File]:
    """Names every file of a folder, an archive or a single image, images or not, in no order.

    A link to a folder is named as if it were a file: it is not followed, and so it is counted.

    Raises:
        InputError: The archive is damaged, or the folder cannot be listed.
    """
    path = storage.local_path(source)
    uri = storage.to_uri(source if path is None else str(path))  # encoded, however it was given
    what = kind(source)
    if what == "archive":
        yield from _list_archive(uri)
    elif path is None and what == "image":
        yield File(_text(os.fsencode(storage.name(uri))), uri, None, None)
    elif path is None:
        yield from _list_remote_folder(uri)
    elif what == "image":
        yield _local_file(str(path), path.name)
    else:
        yield from _list_local_folder(str(path))


def _list_local_folder(root: str) -> Iterator[File]:
    for folder, inner, names in os.walk(root, onerror=_refuse):
        links = [name for name in inner if os.path.islink(os.path.join(folder, name))]
        for name in names + links:
            path = os.path.join(folder, name)
            yield _local_file(path, os.path.relpath(path, root))


def _refuse(error: OSError) -> NoReturn:
    """Ends a listing that would leave out a folder, where os.walk would go on without a word."""
    raise InputError(f"{error.filename}: cannot be listed: {_reason(error)}") from error


def _local_file(path: str, relative: str) -> File:
    try:
        info = os.stat(path)
    except OSError:  # a dangling link is a row all the same: reading it says why
        size, mtime = None, None
    else:
        size, mtime = info.st_size, _time(info.st_mtime)
    return File(_text(os.fsencode(relative)), storage.to_uri(path), size, mtime)


def _list_remote_folder(uri: str) -> Iterator[File]:
    system, root = storage.remote(uri)
    try:
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{uri}: cannot be listed: {_line(error)}") from error
    for info in found:
        if info.is_file:
            relative = str(info.path)[len(root.rstrip("/")) + 1 :]
            yield File(relative, storage.join(uri, relative), info.size, info.mtime)


def _list_archive(uri: str) -> Iterator[File]:
    try:
        archive = _open_archive(uri)
    except Exception as error:  # each archive library has its own
        raise InputError(f"{uri}: cannot be read as an archive: {_line(error)}") from error
    with archive:
        for name, size, mtime in archive.files:
            data = os.fsencode(name)
            path = posixpath.normpath(_text(data))  # tar -C survey . puts ./ before every name
            yield File(path, f"{uri}!/{quote(data)}", size, mtime)


class _TarInfo(tarfile.TarInfo):
    """A member whose header has to be right: at a damaged one, tarfile would end its list."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # zeros, or nothing, are the end
                raise tarfile.ReadError(str(error)) from error
            raise


class _Archive:
    """An open .zip or tar file.

    Attributes:
        files: Name, size and time of each member that is no folder. Where two have one name, the
            later one is meant.
    """

    def __init__(self, stream: IO[bytes], is_zip: bool) -> None:
        self._stream = stream
        self.files: list[tuple[str, int, datetime | None]] = []
        if is_zip:
            self._zip: zipfile.ZipFile | None = zipfile.ZipFile(stream)
            for name in self._zip.namelist():
                info = self._zip.getinfo(name)
                if not info.is_dir():
                    self.files.append((name, info.file_size, _zip_time(info)))
        else:
            self._zip = None
            gzipped = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            self._tar = tarfile.open(  # noqa: SIM115 (closed by __exit__)
                fileobj=stream, mode="r:gz" if gzipped else "r:", tarinfo=_TarInfo
            )
            names = [member.name for member in self._tar if not member.isdir()]
            self._members = {member.name: member for member in self._tar.getmembers()}
            for name in names:
                member = self._members[name]
                self.files.append((name, member.size, _time(member.mtime)))

    def open(self, name: str) -> IO[bytes]:
        """Opens a member.

        Raises:
            KeyError: The archive has no such member.
            ImageError: It is a device or the like.
        """
        if self._zip is not None:
            return self._zip.open(name)
        stream = self._tar.extractfile(self._members[name])
        if stream is None:
            raise ImageError(Status.UNREADABLE, _NO_FILE)
        return stream

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        (self._zip or self._tar).close()
        self._stream.close()


class Reader:
    """Gives the bytes of listed files, and keeps archives open between them.

    One thread, one reader. Members of a .tar.gz are quick in the archive's order only.
    """

    def __init__(self) -> None:
        self._archives: dict[str, _Archive] = {}

    def read(self, uri: str, max_bytes: int) -> bytes:
        """Reads a file, or a member of an archive.

        Raises:
            ImageError: `unreadable`, or `too_large` over `max_bytes`.
        """
        archive, separator, member = uri.partition("!/")
        try:
            if separator and storage.name(archive).lower().endswith(ARCHIVE_SUFFIXES):
                stream = self._member(archive, os.fsdecode(unquote_to_bytes(member)))
            else:
                path = storage.local_path(uri)
                if path is not None and not stat.S_ISREG(path.stat().st_mode):
                    raise ImageError(Status.UNREADABLE, _NO_FILE)
                stream = storage.open_input(uri)
            with stream:
                data = stream.read(max_bytes + 1)
        except ImageError:
            raise
        except Exception as error:  # each archive library has its own
            raise ImageError(Status.UNREADABLE, _reason(error)) from error
        if len(data) > max_bytes:
            raise ImageError(Status.TOO_LARGE, f"over {max_bytes:,} bytes")
        return data

    def _member(self, uri: str, name: str) -> IO[bytes]:
        if uri not in self._archives:
            self._archives[uri] = _open_archive(uri)
        return self._archives[uri].open(name)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for archive in self._archives.values():
            archive.__exit__()
        self._archives.clear()


def _open_archive(uri: str) -> _Archive:
    stream = storage.open_input(uri)
    try:
        return _Archive(stream, storage.name(uri).lower().endswith(".zip"))
    except BaseException:
        stream.close()
        raise


def _time(seconds: float) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):  # after the year 9999
        return None


def _zip_time(info: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*info.date_time, tzinfo=UTC)
    except ValueError:  # a month of 0 and the like
        return None


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return "the archive has no such member"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {_line(error)}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
