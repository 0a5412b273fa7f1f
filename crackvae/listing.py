"""What is in a folder of an object store, in the order of its paths and in memory that does not grow with it.

S3 is asked for pages of a thousand names by botocore: pyarrow, which does everything else, gives a folder whole.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from pyarrow import fs

from crackvae import object_store
from crackvae.object_store import ask, remote

_LISTERS = 8  # folders that are listed at a time
_PAGES = 16  # of a folder that are asked for at a time


class Entry(NamedTuple):
    """A file or a folder.

    Attributes:
        path: Relative to the folder that is listed; that of a folder ends with `/`.
        size: Bytes of a file.
        mtime: When it changed last, where the store tells.
    """

    path: str
    size: int | None = None
    mtime: datetime | None = None


_Page = list[Entry]


def list_remote(location: str) -> Iterator[Entry]:
    """The files below a remote folder, sorted by path; markers of folders are none.

    Folders are listed one by one, the next ones in parallel.

    Raises:
        OSError: There is no such folder, or it cannot be listed.
        UnavailableError: The object store gave no answer.
    """
    pool = ThreadPoolExecutor(_LISTERS)

    def begun(folder: str) -> tuple[Iterator[_Page], Future[list[_Page]]]:
        pages = _pages(location, folder)
        return pages, pool.submit(_some, pages)

    def inside(pages: Iterator[_Page], asked: Future[list[_Page]]) -> Iterator[Entry]:
        while some := asked.result():
            asked = pool.submit(_some, pages)  # while these are read
            for page in some:
                yield from files(page)

    def files(page: _Page) -> Iterator[Entry]:
        later = (begun(entry.path) for entry in page if entry.path.endswith("/"))
        ahead = deque(islice(later, _LISTERS))
        for entry in page:
            if not entry.path.endswith("/"):
                yield entry
                continue
            folder = ahead.popleft()
            ahead.extend(islice(later, 1))  # asked for before this one is waited for
            yield from inside(*folder)

    try:
        yield from inside(*begun(""))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what is asked for is not waited for


def _some(pages: Iterator[_Page]) -> list[_Page]:
    return list(islice(pages, _PAGES))


def _pages(location: str, folder: str) -> Iterator[_Page]:
    """What is in a folder below a location, sorted by path; all in one page where the store is not S3."""
    pages = _s3_pages if location.startswith("s3://") else _folder_page
    for page in pages(location, folder):
        yield sorted(page)


def _s3_pages(location: str, folder: str) -> Iterator[_Page]:
    _, path = remote(location)
    bucket, _, prefix = path.partition("/")
    start = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    asked = {"Bucket": bucket, "Prefix": start + folder, "Delimiter": "/"}
    is_there = bool(folder or not start)  # a folder whose last object goes meanwhile is gone
    with _explaining(location):
        pages = iter(_client(location).get_paginator("list_objects_v2").paginate(**asked))
    while page := _answer(location, pages):
        folders = [Entry(item["Prefix"][len(start) :]) for item in page.get("CommonPrefixes", ())]
        objects = page.get("Contents", ())
        is_there = is_there or bool(folders or objects)
        files = (Entry(item["Key"][len(start) :], item["Size"], item["LastModified"]) for item in objects)
        yield [*folders, *(file for file in files if file.path and not file.path.endswith("/"))]
    if not is_there:
        raise object_store.missing(location)


def _answer(location: str, pages: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
    with _explaining(location):
        return next(pages, None)


def _client(location: str) -> Any:
    system, _ = remote(location)
    (options,) = system.__reduce__()[1]
    where = (options[name] for name in ("endpoint_override", "scheme", "force_virtual_addressing"))
    return _s3_client(system.region, *where)


@lru_cache(maxsize=32)
def _s3_client(region: str, endpoint: str, scheme: str, is_virtual: bool) -> Any:
    """Of the store that pyarrow reads from, with the same patience."""
    import botocore.session  # 0.2 s, which only a survey in a bucket is worth
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    if endpoint and "://" not in endpoint:
        endpoint = f"{scheme}://{endpoint}"
    config = Config(
        signature_version=None if session.get_credentials() else UNSIGNED,  # what is public is read without a key
        retries={"mode": "standard", "total_max_attempts": object_store.RETRIES + 1},
        connect_timeout=object_store.SILENT_SECONDS,
        read_timeout=object_store.SILENT_SECONDS,
        max_pool_connections=_LISTERS,
        proxies={},
        s3={"addressing_style": "virtual" if is_virtual or not endpoint else "path"},
    )
    return session.create_client("s3", region_name=region or None, endpoint_url=endpoint or None, config=config)


def _time(said: Any) -> datetime:
    """What botocore takes 60 microseconds for, more than for all else that it reads of an object."""
    from botocore.utils import parse_timestamp

    if isinstance(said, str) and said.endswith("Z"):
        return datetime.fromisoformat(said)
    found: datetime = parse_timestamp(said)  # such as the end of a credential
    return found


@contextmanager
def _explaining(location: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClientError as error:
        status = str(error.response["ResponseMetadata"].get("HTTPStatusCode", ""))
        said = error.response["Error"]
        raise object_store.explained(location, said["Code"], status, said.get("Message", "")) from error
    except (BotoCoreError, ResponseParserError) as error:
        reason = re.sub(r"\?[^\s\"]*", "", " ".join(str(error).split()))  # a request's query is long
        raise object_store.unavailable(location, reason) from error


def _folder_page(location: str, folder: str) -> Iterator[_Page]:
    system, root = remote(location)
    start = root.rstrip("/") + "/"

    def asked(*, recursive: bool) -> list[fs.FileInfo]:
        path = start + folder if folder else root
        # A folder whose last object goes meanwhile is gone.
        chosen = fs.FileSelector(path.rstrip("/"), recursive=recursive, allow_not_found=bool(folder))
        return list(ask(location, lambda: system.get_file_info(chosen)))

    found = asked(recursive=False)
    if any(not info.path.startswith(start + folder) or info.path.endswith("/") for info in found):
        found = [info for info in asked(recursive=True) if info.is_file]  # keys with empty parts are no folders
    yield [
        Entry(info.path[len(start) :], info.size, info.mtime) if info.is_file else Entry(info.path[len(start) :] + "/")
        for info in found
    ]
