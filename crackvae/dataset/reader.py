"""The bytes of listed files, from a disk, an archive or an object store; the next few are on their way meanwhile."""

from __future__ import annotations

import io
import os
import stat
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Self
from urllib.parse import unquote_to_bytes

from crackvae import object_store, storage
from crackvae.dataset.sources import ARCHIVE_SUFFIXES, NO_FILE, Archive, open_archive, reason
from crackvae.errors import ImageError, UnavailableError
from crackvae.schema import Status

_AHEAD = 16  # files, as long as they have
_AHEAD_BYTES = 2**25  # together; a larger file is read in its turn
_UNKNOWN_BYTES = 2**21  # what a file may have of which the list does not say

_Opened = tuple[IO[bytes], int]  # and bytes to expect


class Reader:
    """Gives the bytes of listed files, and keeps archives open between them.

    One thread, one reader. Members of a .tar.gz are quick in the archive's order only.
    """

    def __init__(self) -> None:
        self._archives: dict[str, Archive] = {}
        self._damaged: dict[str, str] = {}
        self._expected: deque[tuple[str, int]] = deque()
        self._begun: dict[str, tuple[int, _Opened | Future[_Opened]]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def expect(self, files: Iterable[tuple[str, int | None]]) -> None:
        """Tells which files will be read next, and how many bytes they have, where that is known.

        The next few are then on their way while one is decoded: a disk begins to read them into memory, an object
        store sends them. Members of archives are not.
        """
        self._forget()
        self._expected.extend((uri, _UNKNOWN_BYTES if size is None else size) for uri, size in files)

    def read(self, uri: str, max_bytes: int) -> bytes:
        """Reads a file, or a member of an archive.

        Raises:
            ImageError: `unreadable`, or `too_large` over `max_bytes`.
            UnavailableError: An object store gave no answer.
        """
        _, begun = self._begun.pop(uri, (0, None))
        self._look_ahead(uri)
        try:
            stream, expected = _arrived(begun) or self._open(uri)
            expected = min(max_bytes, expected)  # to reserve half a gigabyte takes as long as to read METU's files
            with stream:
                data = stream.read(expected + 1)
                if len(data) > expected:
                    data += stream.read(max_bytes + 1 - len(data))
        except (ImageError, UnavailableError):
            raise
        except Exception as error:  # each archive library has its own
            raise ImageError(Status.UNREADABLE, reason(error)) from error
        if len(data) > max_bytes:
            raise ImageError(Status.TOO_LARGE, f"over {max_bytes:,} bytes")
        return data

    def _open(self, uri: str) -> _Opened:
        archive, member = _parts(uri)
        if member is not None:
            return self._member(archive, member), 2**63
        path = storage.local_name(uri)
        if path is None:
            return storage.open_input(uri), 2**63
        if uri.endswith("/"):
            raise ImageError(Status.UNREADABLE, _unlisted(path.rstrip("/")))
        return _open_local(path)

    def _member(self, uri: str, name: str) -> IO[bytes]:
        if uri in self._damaged:
            raise ImageError(Status.UNREADABLE, self._damaged[uri])
        if uri not in self._archives:
            try:
                self._archives[uri] = open_archive(uri)
            except (OSError, UnavailableError):  # it may be there the next time
                raise
            except Exception as error:  # not read from the start once more for each member
                self._damaged[uri] = reason(error)
                raise
        return self._archives[uri].open(name)

    def _look_ahead(self, current: str) -> None:
        while self._expected and len(self._begun) < _AHEAD:
            uri, size = self._expected[0]
            coming = sum(size for size, _ in self._begun.values())
            if coming and coming + size > _AHEAD_BYTES:
                return
            self._expected.popleft()
            with suppress(Exception):  # it is opened again in its turn, and fails there
                if uri != current and uri not in self._begun and (begun := self._begin(uri, size)):
                    self._begun[uri] = size, begun

    def _begin(self, uri: str, size: int) -> _Opened | Future[_Opened] | None:
        if _parts(uri)[1] is not None or size > _AHEAD_BYTES:
            return None
        path = storage.local_name(uri)
        if path is None:
            object_store.remote(uri)  # each thread would make a client of its own
            self._pool = self._pool or ThreadPoolExecutor(_AHEAD)
            return self._pool.submit(_fetch, uri, size)
        stream, size = _open_local(path)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, size, os.POSIX_FADV_WILLNEED)
        return stream, size

    def _forget(self) -> None:
        for _, begun in self._begun.values():
            if isinstance(begun, Future):
                begun.cancel()
            else:
                begun[0].close()
        self._begun.clear()
        self._expected.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        if self._pool:
            self._pool.shutdown(wait=False)
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()


def _parts(uri: str) -> tuple[str, str | None]:
    """An archive and its member, or a file and None."""
    archive, separator, member = uri.partition("!/")
    if separator and storage.name(archive).lower().endswith(ARCHIVE_SUFFIXES):
        return archive, os.fsdecode(unquote_to_bytes(member))
    return uri, None


def _open_local(path: str) -> _Opened:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):  # opening a pipe waits for its other end
        raise ImageError(Status.UNREADABLE, NO_FILE)
    return open(path, "rb"), info.st_size


def _fetch(uri: str, size: int) -> _Opened:
    """An object of a store, in memory; one of more bytes than were expected is read in its turn."""
    stream = object_store.Reader(uri)
    if stream.size > size:
        return stream, stream.size
    with stream:
        return io.BytesIO(stream.read()), stream.size


def _arrived(begun: _Opened | Future[_Opened] | None) -> _Opened | None:
    """What was begun; None where it failed by itself, as for want of memory that another file had."""
    if not isinstance(begun, Future):
        return begun
    with suppress(OSError, MemoryError):
        return begun.result()
    return None


def _unlisted(folder: str) -> str:
    if os.path.islink(folder):
        return "a link to a folder is not followed; give that folder as a source, too, and remove the link"
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f"the folder cannot be listed: {reason(error)}"
    return "the folder could not be listed before, and now it can; start a new run for its files"
