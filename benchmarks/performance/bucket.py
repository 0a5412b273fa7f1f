"""A bucket of one folder, as S3 tells of it, by a process of its own.

Either it names any number of photographs, of which none is there, or it has the files of a folder, and answers each
request as late as an object store does.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

FOLDER = "survey-2026/"
_PAGE = 1000
_OBJECT = (
    "<Contents><Key>{}</Key><LastModified>2026-11-27T00:00:00.000Z</LastModified>"
    "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>{}</Size></Contents>"
)
_ANSWER = (
    "HTTP/1.1 {}\r\nContent-Length: {}\r\nContent-Type: {}\r\nLast-Modified: Fri, 27 Nov 2026 00:00:00 GMT\r\n{}\r\n"
)


@contextmanager
def served(files: int | Path, delay: float = 0.0) -> Iterator[str]:
    """The URI of its folder, while it is served; this process's environment leads there.

    Args:
        files: How many it names, or the folder that has them.
        delay: Of each answer, in seconds.
    """
    command = [sys.executable, __file__, str(files), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                del os.environ[name]
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{process.stdout.readline().strip()}",
                "AWS_ACCESS_KEY_ID": "none",
                "AWS_SECRET_ACCESS_KEY": "none",
                "AWS_REGION": "us-east-1",
            }
            yield f"s3://bucket/{FOLDER.rstrip('/')}"
        finally:
            process.kill()


class _Bucket:
    def __init__(self, files: str, delay: float) -> None:
        self._folder, self._delay = Path(files), delay
        self._files = [] if files.isdigit() else sorted((p.name, p.stat().st_size) for p in self._folder.iterdir())
        self._count = len(self._files) or int(files)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers what comes on a connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                await asyncio.sleep(self._delay)
                writer.write(self._answer(request))
        writer.close()

    def _answer(self, request: str) -> bytes:
        method, target, _ = request.split(" ", 2)
        answer = self._get(target, request)
        return answer[: answer.index(b"\r\n\r\n") + 4] if method == "HEAD" else answer

    def _get(self, target: str, request: str) -> bytes:
        place = urlsplit(target)
        key = unquote(place.path).removeprefix("/bucket").lstrip("/")
        if not key:
            return _answer("200 OK", self._list(place.query), "application/xml")
        path = self._folder / key.removeprefix(FOLDER)
        if not (key.startswith(FOLDER) and path.is_file()):
            return _answer("404 Not Found", b"", "application/xml")
        data = path.read_bytes()
        if found := re.search(r"\r\nrange: bytes=(\d+)-(\d+)", request, re.I):
            start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            told = f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n"
            return _answer("206 Partial Content", data[start:end], "image/jpeg", more=told)
        return _answer("200 OK", data, "image/jpeg")

    def _list(self, query: str) -> bytes:
        asked = parse_qs(query)
        start, most = (
            int(asked.get(name, [value])[0]) for name, value in (("continuation-token", 0), ("max-keys", _PAGE))
        )
        count = self._count if asked.get("prefix", [""])[0] == FOLDER else 0
        page = range(count)[start : start + min(most, _PAGE)]
        objects = "".join(_OBJECT.format(*self._entry(number)) for number in page)
        end = start + len(page)
        is_more = end < count
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if is_more else ""
        return (
            "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
            f"<IsTruncated>{str(is_more).lower()}</IsTruncated><KeyCount>{len(page)}</KeyCount>{token}{objects}"
            "</ListBucketResult>"
        ).encode()

    def _entry(self, number: int) -> tuple[str, int]:
        name, size = self._files[number] if self._files else (f"DJI_{number:08d}.JPG", 8_000_000)
        return FOLDER + name, size


def _answer(status: str, body: bytes, kind: str, more: str = "") -> bytes:
    return _ANSWER.format(status, len(body), kind, more).encode() + body


async def _main(files: str, delay: str) -> None:
    """Serves until it is killed; the first line of its output is its port."""
    server = await asyncio.start_server(_Bucket(files, float(delay)).talk, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
