"""A bucket of one folder with any number of photographs, as S3's ListObjectsV2 tells of it; no object is there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FOLDER = "survey-2026/"
_PAGE = 1000
_OBJECT = (
    "<Contents><Key>{}DJI_{:08d}.JPG</Key><LastModified>2026-11-27T00:00:00.000Z</LastModified>"
    "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>8000000</Size></Contents>"
)


@contextmanager
def served(count: int) -> Iterator[str]:
    """The URI of its folder, while a process of its own serves it; this one's environment leads there."""
    command = [sys.executable, __file__, str(count)]
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


class _Listing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", "0")[0])
        end = min(start + _PAGE, self.count)
        is_inside = query.get("prefix", [""])[0] == FOLDER
        objects = "".join(_OBJECT.format(FOLDER, number) for number in range(start, end)) if is_inside else ""
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if is_inside and end < self.count else ""
        data = (
            "<?xml version='1.0'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
            f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{token}{objects}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    """Serves until it is killed; the first line of its output is its port."""
    _Listing.count = int(sys.argv[1])
    with ThreadingHTTPServer(("127.0.0.1", 0), _Listing) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
