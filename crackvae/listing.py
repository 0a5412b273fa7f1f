"""What is in a folder of an object store, in the order of its paths and in memory that does not grow with it.

S3 is asked for pages of a thousand names by botocore: pyarrow, which does everything else, gives a folder whole.
"""

from __future__ import annotations

import errno
import re
import ssl
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
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

    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.endswith("/")


_Page = list[Entry]
_Begun = tuple[Iterator[_Page], Future[list[_Page]]]


def list_remote(location: str) -> Iterator[Entry]:
    """The files below a remote folder, sorted by path; markers of folders are none.

    Folders are listed one by one, the next ones in parallel.

    Raises:
        OSError: There is no such folder, or it cannot be listed.
        UnavailableError: The object store gave no answer.
    """
    pool = ThreadPoolExecutor(_LISTERS)
    listed = partial(_s3_pages, _client(location)) if location.startswith("s3://") else _folder_page

    def begun(folder: str) -> _Begun:
        pages = _in_order(location, listed(location, folder))
        return pages, pool.submit(_some, pages)

    def inside(pages: Iterator[_Page], asked: Future[list[_Page]]) -> Iterator[Entry | _Begun]:
        while some := asked.result():
            asked = pool.submit(_some, pages)  # while these are read
            for page in some:
                later = (begun(entry.path) for entry in page if entry.is_folder())
                ahead = deque(islice(later, _LISTERS))
                for entry in page:
                    if not entry.is_folder():
                        yield entry
                        continue
                    ahead.extend(islice(later, 1))  # asked for before this one is waited for
                    yield ahead.popleft()

    try:
        open_folders = [inside(*begun(""))]
        while open_folders:
            found = next(open_folders[-1], None)
            if found is None:
                open_folders.pop()
            elif isinstance(found, Entry):
                yield found
            else:
                open_folders.append(inside(*found))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what is asked for is not waited for


def _some(pages: Iterator[_Page]) -> list[_Page]:
    return list(islice(pages, _PAGES))


def _in_order(location: str, pages: Iterator[_Page]) -> Iterator[_Page]:
    last = ""
    for found in pages:
        page = sorted(found)
        if page and page[0].path < last:  # as S3's directory buckets do
            raise OSError(errno.EINVAL, "the store names its objects in no order", location)
        last = page[-1].path if page else last
        yield page


def _s3_pages(client: Any, location: str, folder: str) -> Iterator[_Page]:
    """What is in a folder below a location, by S3's ListObjectsV2."""
    _, path = remote(location)
    bucket, _, prefix = path.partition("/")
    start = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    request = {"Bucket": bucket, "Prefix": start + folder, "Delimiter": "/"}
    is_there = bool(folder or not start)  # a folder whose last object goes meanwhile is gone
    while True:
        page = object_store.patiently(partial(_answer, client, location, request))
        folders = [Entry(item["Prefix"][len(start) :]) for item in page.get("CommonPrefixes", ())]
        objects = page.get("Contents", ())
        is_there = is_there or bool(folders or objects)
        files = (Entry(item["Key"][len(start) :], item.get("Size"), item.get("LastModified")) for item in objects)
        yield [*folders, *(file for file in files if file.path and not file.is_folder())]
        if not page.get("IsTruncated"):
            break
        if not page.get("NextContinuationToken"):  # no part of a folder is taken for all of it
            raise object_store.unavailable(location, "its list ends before its end")
        request["ContinuationToken"] = page["NextContinuationToken"]
    if not is_there:
        raise object_store.missing(location)


def _answer(client: Any, location: str, request: dict[str, str]) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
    from botocore.parsers import ResponseParserError

    try:
        answer: dict[str, Any] = client.list_objects_v2(**request)
    except ClientError as error:
        status = str(error.response["ResponseMetadata"].get("HTTPStatusCode", ""))
        said = error.response["Error"]
        raise object_store.explained(location, said.get("Code", ""), status, said.get("Message", "")) from error
    except ParamValidationError as error:
        raise OSError(errno.EINVAL, "is no name of a bucket", location) from error
    except (BotoCoreError, ResponseParserError) as error:
        raise object_store.unavailable(location, _line(error)) from error
    return answer


def _line(error: Exception) -> str:
    return re.sub(r"\?[^\s\"]*", "", " ".join(str(error).split()))  # without a request's query, which is long


def _client(location: str) -> Any:
    """A client of the store that pyarrow reads from, as pyarrow comes to it."""
    from botocore.exceptions import BotoCoreError

    system, _ = remote(location)
    (options,) = system.__reduce__()[1]
    endpoint = options["endpoint_override"]
    if endpoint and "://" not in endpoint:
        endpoint = f"{options['scheme']}://{endpoint}"
    is_public = options["anonymous"] or bool(options["access_key"] and not options["secret_key"])  # anonymous@bucket
    try:
        # Asked each time: the machine's role may have been silent once.
        is_signed = not is_public and _session().get_credentials() is not None
        return _s3_client(system.region, endpoint, options["tls_ca_file_path"], is_signed)
    except BotoCoreError as error:  # such as a profile that is not there
        raise object_store.unavailable(location, _line(error)) from error


@lru_cache
def _session() -> Any:
    import botocore.session  # 0.2 s, which only an object store is worth

    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    return session


@lru_cache(maxsize=32)
def _s3_client(region: str, endpoint: str, ca_file: str, is_signed: bool) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        signature_version=None if is_signed else UNSIGNED,
        retries={"total_max_attempts": 1},  # `patiently` tries again: botocore counts all threads' tries together
        connect_timeout=object_store.SILENT_SECONDS,
        read_timeout=object_store.SILENT_SECONDS,
        max_pool_connections=_LISTERS,
        proxies={},  # pyarrow takes none from the environment
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    return _session().create_client(
        "s3",
        region_name=region or None,
        endpoint_url=endpoint or None,
        verify=ca_file or ssl.get_default_verify_paths().cafile,
        config=config,
    )


def _time(said: Any) -> datetime:
    """A time as S3 writes it; botocore's own parser takes 60 microseconds, more than all else of an object."""
    from botocore.utils import parse_timestamp

    with suppress(AttributeError, ValueError):
        if said.endswith("Z"):
            return datetime.fromisoformat(said)
    found: datetime = parse_timestamp(said)  # such as the end of a credential, in seconds
    return found


def _folder_page(location: str, folder: str) -> Iterator[_Page]:
    """The same of any other store, in one page."""
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
