"""Sources: folders, archives, tables and single images, local or by URI.

`list_source` names the files of a source without opening one; `reader.Reader` gives their bytes. A
member of an archive has the URI `ARCHIVE!/MEMBER`, percent-encoded; it is read in place.
What cannot be listed is named too, so that nothing vanishes: a folder's path then ends with `/`.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import IO, NamedTuple, Self
from urllib.parse import quote

from crackvae import object_store, storage
from crackvae.errors import ImageError, InputError, RefusedError, UnavailableError
from crackvae.listing import list_remote
from crackvae.schema import Status

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .tif .tiff .bmp .dib .webp .gif .pgm .ppm .pnm "
    ".jp2 .j2k .jpf .jpx .heic .heif .hif".split()
)
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
SEQUENTIAL_SUFFIXES = (".tar.gz", ".tgz")  # a step back reads from the start again
TABLE_SUFFIXES = (".parquet", ".csv")
NO_FILE = "is no regular file"


@dataclass(frozen=True, slots=True)
class File:
    r"""One file of a source.

    Attributes:
        path: Relative to the source, with `/`, and never outside of it; bytes that are no UTF-8 are
            written as `\xff`. It ends with `/` where it is a folder that cannot be listed.
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
        InputError: There is no such file or folder, it is none of these, or it holds a secret.
    """
    if not source.strip():
        raise InputError(f"{source!r}: is no source; give a folder, an archive, an image or a table")
    object_store.check_uri(source, source.partition("://")[0] + "://...")
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


def check_outside(out: str, locations: Sequence[str]) -> None:
    """Refuses to write below a folder that is scored: the pictures of a run would be photographs of the next one.

    Raises:
        RefusedError: out lies in one of them.
    """
    for folder in locations:
        if kind(folder) == "folder" and f"{_real(out)}/".startswith(f"{_real(folder)}/"):
            raise RefusedError(
                f"{out}: lies in {folder}, where its pictures would be taken for photographs; give another"
            )


def _real(location: str) -> str:
    path = storage.local_path(location)
    return storage.to_uri(location) if path is None else os.path.realpath(path)


def list_source(source: str) -> Iterator[File]:
    """Names every file of a folder, an archive or a single image, images or not.

    A folder's are sorted by path, a disk's in memory for the largest folder in it; an archive's are in its own order. A
    link to a folder is not followed: it is named like a folder that cannot be listed, or, where what it leads to
    is listed anyway, like a file.

    Raises:
        InputError: The archive is damaged, or the folder cannot be listed.
    """
    what = kind(source)
    path = storage.local_path(source)
    uri = storage.to_uri(source if path is None else str(path))  # encoded, however it was given
    if what == "archive":
        yield from _list_archive(uri)
    elif what == "image":
        name = _text(os.fsencode(storage.name(uri)))
        yield File(name, uri, None, None) if path is None else _local_file(str(path), name, uri)
    elif path is None:
        yield from _list_remote_folder(uri)
    else:
        yield from _list_local_folder(str(path), uri)


class _Folder(NamedTuple):
    path: str  # each of these with what goes before a name in it
    relative: str
    uri: str


def _list_local_folder(root: str, uri: str) -> Iterator[File]:
    folder = _Folder(os.path.join(root, ""), "", uri.rstrip("/") + "/")
    real = os.path.join(os.path.realpath(root), "")
    open_folders = [(folder, _sorted_entries(folder, real))]  # not os.walk, which leaves out what it cannot list
    while open_folders:
        folder, left = open_folders[-1]
        name, is_folder = next(left, ("", False))
        if not name:
            open_folders.pop()
            continue
        data = os.fsencode(name)
        path, relative, uri = folder.path + name, folder.relative + _text(data), folder.uri + quote(data)
        if not is_folder:
            yield _local_file(path, relative, uri)
            continue
        inner = _Folder(f"{path}/", f"{relative}/", f"{uri}/")
        try:
            if not os.path.islink(path):
                open_folders.append((inner, _sorted_entries(inner, real)))
                continue
        except InputError:
            pass
        yield File(inner.relative, inner.uri, None, None)


def _sorted_entries(folder: _Folder, root: str) -> Iterator[tuple[str, bool]]:
    """What is in a folder, in an order that makes that of all paths: a/b comes after a.jpg."""
    try:
        with os.scandir(folder.path) as found:
            entries = [(entry.name, _is_folder(entry, root)) for entry in found]
    except OSError as error:
        raise InputError(f"{folder.path.rstrip('/')}: cannot be listed: {reason(error)}") from error
    entries.sort(key=lambda entry: (_text(os.fsencode(entry[0])) + "/" * entry[1], entry[0]))
    return iter(entries)


def _is_folder(entry: os.DirEntry[str], root: str) -> bool:
    """A folder, or a link to one whose files are not listed anyway."""
    if not entry.is_symlink():
        return entry.is_dir()
    return os.path.isdir(entry.path) and not os.path.join(os.path.realpath(entry.path), "").startswith(root)


def _local_file(path: str, relative: str, uri: str) -> File:
    try:
        info = os.stat(path)
    except OSError:  # a dangling link is a row all the same: reading it says why
        return File(relative, uri, None, None)
    return File(relative, uri, info.st_size, _time(info.st_mtime))


def _list_remote_folder(uri: str) -> Iterator[File]:
    try:
        for entry in list_remote(uri):
            yield File(entry.path, storage.join(uri, entry.path), entry.size, entry.mtime)
    except OSError as error:
        raise InputError(f"{uri}: cannot be listed: {reason(error)}") from error


def _list_archive(uri: str) -> Iterator[File]:
    try:
        archive = open_archive(uri)
    except UnavailableError:
        raise
    except Exception as error:  # each archive library has its own
        raise InputError(f"{uri}: cannot be read as an archive: {_line(error)}") from error
    with closing(archive):
        for name, size, mtime in archive.files:
            data = os.fsencode(name)
            # tar -C survey . puts ./ before every name, an attacker ../ or /
            path = posixpath.normpath("/" + _text(data)).lstrip("/")
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

    def _block(self, count: int) -> int:
        if count < 0:  # a size that leads back to this header, for ever (CVE-2025-8194)
            raise tarfile.ReadError("negative size")
        return super()._block(count)  # type: ignore[misc, no-any-return]


class Archive:
    """An open .zip or tar file.

    Attributes:
        files: Name, size and time of each member that is no folder. Where two have one name, the
            later one is meant.
    """

    def __init__(self, stream: IO[bytes], is_zip: bool) -> None:
        self._stream = stream
        self._archive: zipfile.ZipFile | tarfile.TarFile
        if is_zip:
            self._archive = archive = zipfile.ZipFile(stream)
            infos = [archive.getinfo(name) for name in archive.namelist()]
            self.files = [(info.filename, info.file_size, _zip_time(info)) for info in infos if not info.is_dir()]
        else:
            gzipped = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            self._archive = tar = tarfile.open(  # noqa: SIM115 (closed by close)
                fileobj=stream, mode="r:gz" if gzipped else "r:", tarinfo=_TarInfo
            )
            names = [member.name for member in tar if not member.isdir()]
            self._members = {member.name: member for member in tar.getmembers()}
            members = [self._members[name] for name in names]
            self.files = [(member.name, member.size, _time(member.mtime)) for member in members]

    def open(self, name: str) -> IO[bytes]:
        """Opens a member.

        Raises:
            KeyError: The archive has no such member.
            ImageError: It is a device or the like.
        """
        if isinstance(self._archive, zipfile.ZipFile):
            return self._archive.open(name)
        stream = self._archive.extractfile(self._members[name])
        if stream is None:
            raise ImageError(Status.UNREADABLE, NO_FILE)
        return stream

    def close(self) -> None:
        """Closes the file, too."""
        self._archive.close()
        self._stream.close()


def open_archive(uri: str) -> Archive:
    """Opens an archive; what its library raises comes through."""
    stream = storage.open_input(uri)
    try:
        return Archive(stream, storage.name(uri).lower().endswith(".zip"))
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


def reason(error: Exception) -> str:
    """What is wrong with a file or a member, in a line that does not name it."""
    if isinstance(error, KeyError):
        return "the archive has no such member"
    if isinstance(error, RecursionError):
        return "a link that leads to itself"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {_line(error)}".removesuffix(": ")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
