"""Object stores as pyarrow knows them: patience, errors that say what to do, whole objects only.

An OSError is about the one object; `UnavailableError` says that the store gave no answer, however
often it was asked. Credentials come from the environment alone.
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

import pyarrow as pa
from pyarrow import fs

from crackvae.errors import InputError, UnavailableError

T = TypeVar("T")

# A request to S3 is tried ten times, 25 ms to 6.4 s apart: for 13 s where errors come at once, for
# 43 s where nothing comes. A read is two requests, and the decoder waits a minute for it.
RETRIES, SILENT_SECONDS = 9, 3
_ONE_REQUEST = 5 * 2**20  # bytes; larger objects go up in parts
_NO_ROOM = "Failed to flush response stream"
_BUFFER = 2**18  # the headers of an archive's members do not cost a request each

# Of a URI: [user@]host[:port], and what names a secret in a query. AWS's secrets may hold a slash.
_HOST = re.compile(r"([^:@]*@)?(\[[^\]@]*\]|[^:@\[\]]*)(:\d*)?")
_SECRET = re.compile(r"secret|password|token|key|credential|signature|^sig", re.I)
_AWS = re.compile(r"AWS Error (\S+)(?: \(HTTP status (\d+)\))? during \w+ operation: ?(.*)")


def check_uri(location: str, named: str) -> None:
    """Refuses a location that cannot be parsed, or that holds a secret, which a run would keep.

    Args:
        location: A path or a URI.
        named: What the message calls it; never the URI itself, which may hold a secret.

    Raises:
        InputError: It is one of these.
    """
    scheme, is_uri, rest = location.partition("://")
    if not is_uri:
        return
    if "?" not in rest and "#" not in rest:  # then it is the host that can be wrong, which millions of URIs share
        location = scheme + is_uri + rest.partition("/")[0]
    if wrong := _wrong(location):
        raise InputError(f"{named}: {wrong}")


@lru_cache
def _wrong(uri: str) -> str:
    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query)
    except ValueError:  # whose text may hold the secret
        return "is no valid URI"
    if "#" in uri:  # what follows would be dropped
        return "a URI holds a #; write %23 for it"
    if not _HOST.fullmatch(parts.netloc) or any(_SECRET.search(name) or "@" in value for name, value in query):
        return (
            "holds a password or key, and a run keeps its URIs; give the URI without it, and credentials "
            "by the environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.aws, the machine's role)"
        )
    return ""


def remote(location: str, *, delayed: bool = False) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system and the path in it, of a location that is not local.

    Args:
        location: A URI.
        delayed: Whether S3 hears of a new object only when it is complete.

    Raises:
        InputError: No file system is known for its scheme, or it holds a secret.
    """
    check_uri(location, location.partition("://")[0] + "://...")
    parts = urlsplit(location)
    root = f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else "")
    path = parts.netloc.rpartition("@")[2] + os.fsdecode(unquote_to_bytes(parts.path))
    return ask(root, lambda: _s3(root, delayed) if parts.scheme == "s3" else _filesystem(root)), path


@lru_cache(maxsize=32)
def _filesystem(root: str) -> fs.FileSystem:
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (NotImplementedError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, NotImplementedError) or "Unrecognized filesystem" in reason:
            root, reason = f"{root.partition('://')[0]}://", "no such file system; use s3://, gs:// or a path"
        raise InputError(f"{root}: {reason}") from error


@lru_cache(maxsize=32)
def _s3(root: str, delayed: bool) -> fs.FileSystem:
    # What the URI and the environment say, as pyarrow has it (its constructor knows no AWS_ENDPOINT_URL), with our
    # patience. Written in the foreground, an object of which a part failed would be published without that part.
    _, (options,) = _filesystem(root).__reduce__()
    return fs.S3FileSystem(
        **options
        | {
            "retry_strategy": fs.AwsDefaultS3RetryStrategy(max_attempts=RETRIES),
            "request_timeout": SILENT_SECONDS,
            "connect_timeout": SILENT_SECONDS,
            "background_writes": True,
            "allow_delayed_open": delayed,
        }
    )


def ask(location: str, call: Callable[[], T]) -> T:
    """Makes a call of a remote file system, which Ctrl-C and SIGTERM interrupt at once.

    Python handles signals on the main thread, between its own steps: there, a call into C++ would
    hold them off until its last try. A call that is interrupted comes to its end on its thread, or
    ends with the process.

    Raises:
        OSError: What was raised is about this object.
        UnavailableError: It is about the store.
    """
    with _explaining(location):
        if threading.current_thread() is not threading.main_thread():
            return call()
        pool = ThreadPoolExecutor(1)
        try:
            return pool.submit(call).result()
        finally:
            pool.shutdown(wait=False)


def patiently(call: Callable[[], T], only: str = "") -> T:
    """Makes a call again and again while the store gives no answer, as pyarrow makes a request.

    Args:
        call: Makes a request once.
        only: What the error says.

    Raises:
        UnavailableError: It was the last one's.
    """
    for retry in range(RETRIES):
        try:
            return call()
        except UnavailableError as error:
            if only not in str(error):
                raise
        time.sleep(0.025 * 2**retry)
    return call()


@contextmanager
def _explaining(location: str) -> Iterator[None]:
    """Gives errors the location, in one line that is the same in every run."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(location) from error
    except (OSError, pa.ArrowInvalid) as error:
        text = re.sub(r" \(Request ID: \S*\)", "", " ".join(str(error).split()))
        found = _AWS.search(text)
        if found is None:  # such as a name with an empty part
            raise OSError(errno.EINVAL, text, location) from error
        code, status, details = found.groups()
        raise explained(location, code, status or "", details.rpartition("Details: ")[2]) from error


def explained(location: str, code: str, status: str, reason: str) -> OSError | UnavailableError:
    """The error of a request to S3.

    Args:
        location: What it was about.
        code: Of AWS, in its spelling or in that of its C++ library.
        status: Of HTTP; empty where there was no answer.
        reason: What the store says.
    """
    if not reason or reason.startswith("No response body"):
        reason = f"HTTP status {status}" if status else code
    code = code.replace("_", "").lower()
    if code == "nosuchbucket":
        return FileNotFoundError(errno.ENOENT, "no such bucket", location)
    if code in ("nosuchkey", "resourcenotfound", "404"):
        return missing(location)
    if code == "accessdenied" or status == "403":
        cure = "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, ~/.aws) and the bucket's policy"
        return PermissionError(errno.EACCES, f"access denied ({reason}); {cure}", location)
    if status == "416":
        return OSError(errno.EIO, "changed while it was read", location)
    return unavailable(location, reason)


def unavailable(location: str, reason: str) -> UnavailableError:
    """Says that the store gave no answer, and what to do."""
    return UnavailableError(
        f"{location}: the object store fails or cannot be reached ({reason}); "
        "check network, endpoint and credentials, then run the same command again"
    )


def missing(location: str) -> FileNotFoundError:
    """Says that there is no such object, or no such folder."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)


class _File(io.RawIOBase):
    """An object as Python has files."""

    def __init__(self, location: str) -> None:
        system, name = remote(location)
        self._location = location
        self._file = ask(location, lambda: system.open_input_file(name))
        self.size: int = self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        return int(self._patiently(lambda: self._file.readinto(buffer)))

    def readall(self) -> bytes:
        return bytes(self._patiently(self._file.read))

    def _patiently(self, read: Callable[[], Any]) -> Any:
        """Reads once more where an error of the store is longer than the data, at which AWS's library gives up."""
        return patiently(lambda: ask(self._location, read), only=_NO_ROOM)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class Reader(io.BufferedReader):
    """Random reads of an object. The rest of it is one request, and no more memory than that.

    Attributes:
        size: Of the object, in bytes.

    Raises:
        OSError: It cannot be read.
        UnavailableError: The store gave no answer.
    """

    def __init__(self, location: str) -> None:
        file = _File(location)
        super().__init__(file, _BUFFER)
        self.size = file.size

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file; `size` may be far more than there is."""
        is_rest = size is None or size < 0 or size >= self.size - self.tell()
        return super().read(-1 if is_rest else size)


def upload(path: str, location: str) -> None:
    """Makes an object of a local file, or replaces it: whole or not at all.

    A stream of pyarrow publishes what it was given, even when an exception destroys it. So it is
    given everything at once, on a thread where no signal can come in between.
    """
    with pa.memory_map(path) as file:
        data = file.read_buffer()
    # Delayed, a small object is a single request; but a large one is published empty where its first one fails.
    system, name = remote(location, delayed=data.size <= _ONE_REQUEST)

    def put() -> None:
        stream = system.open_output_stream(name)
        stream.write(data)
        stream.close()

    def put_patiently() -> None:
        try:
            put()
        except OSError as error:
            if "NO_SUCH_UPLOAD" not in str(error):
                raise
            put()  # it was completed, and the answer lost

    ask(location, put_patiently)
