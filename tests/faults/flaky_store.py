"""An object store that fails and stalls: a proxy on loopback in front of a real S3 server.

Which requests fail follows from a seed, the request and how often it has come, not from time.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from faults.comparing import compare
from object_store import server

# An answer of 500 or 503; no answer; the request is carried out and its answer lost, or cut short.
FAULTS = ("500", "503", "reset", "lost reply", "cut")
_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>made by the test</Message></Error>"
_CODES = {
    "400": "ExpiredToken",
    "403": "AccessDenied",
    "404": "NoSuchUpload",
    "500": "InternalError",
    "503": "SlowDown",
}


class FlakyStore(ThreadingHTTPServer):
    """The proxy.

    Args:
        upstream: URL of the server behind it.
        share: Of requests that fail, each fault as often as any other.
        stall_share: Of requests that get nothing for `stall_seconds`, and then no answer.
        stall_seconds: How long; `slow` requests wait as long, and get their answer.
        seed: Which ones.
        faults: What may happen to those that fail; more are `slow` and the other statuses.
        only: Pattern of those that may fail: the method, a space, path and query.
        most: How often each may fail.

    Attributes:
        url: Its own.
        counts: Requests by what became of them; `ok` where they were left alone.
        log: The same, one by one.
        most_at_once: Requests that were being answered at the same time.
    """

    daemon_threads = True

    def __init__(
        self,
        upstream: str,
        *,
        share: float = 0.0,
        stall_share: float = 0.0,
        stall_seconds: float = 4.0,
        seed: int = 0,
        faults: tuple[str, ...] = FAULTS,
        only: str = "",
        most: int = 10**9,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.counts: Counter[str] = Counter()
        self.log: list[tuple[str, str]] = []
        self.most_at_once = self._at_once = 0
        self.stall_seconds = stall_seconds
        self._share, self._stall_share, self._seed, self._faults = share, stall_share, seed, faults
        self._only, self._most = re.compile(only), most
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def fault(self, request: str) -> str:
        """What becomes of a request, `ok` where nothing; counts it."""
        request = re.sub(r"uploadId=[^& ]*", "uploadId", request)  # the server's random numbers
        with self._lock:
            self._seen[request] += 1
            digest = hashlib.sha256(f"{self._seed} {self._seen[request]} {request}".encode()).digest()
            chance = int.from_bytes(digest[:6]) / 2**48
            spared = self._seen[request] > self._most or not self._only.search(request)
            if spared or chance >= self._share + self._stall_share:
                kind = "ok"
            elif chance < self._stall_share:
                kind = "stall"
            else:
                kind = self._faults[digest[6] % len(self._faults)]
            self.counts[kind] += 1
            self.log.append((kind, request))
        return kind

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a request while it is answered."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def handle_error(self, *_: object) -> None:
        """A client that went away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FlakyStore

    def answer(self) -> None:
        with self.server.answering():
            self._answer()

    def _answer(self) -> None:
        body = self._body()
        kind = self.server.fault(f"{self.command} {self.path} {self.headers.get('Range', '')}")
        if kind in ("stall", "slow"):
            time.sleep(self.server.stall_seconds)
        if kind in ("stall", "reset"):
            return self._hang_up()
        if kind in _CODES:
            return self._send(int(kind), {"Content-Type": "application/xml"}, _ERROR.format(_CODES[kind]).encode())
        status, headers, answer = self._forward(body)
        if kind == "lost reply" or (kind == "cut" and (not answer or self.command == "HEAD")):
            return self._hang_up()
        return self._send(status, headers, answer, cut=kind == "cut")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        dropped = {"transfer-encoding", "content-length", "connection", "expect"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        connection.request(self.command, self.path, body, headers)
        reply = connection.getresponse()
        answer = reply.read()
        connection.close()
        return reply.status, dict(reply.headers), answer

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        dropped = {"connection", "transfer-encoding", "content-length"}
        if self.command == "HEAD" or status in {204, 304}:
            body, dropped = b"", dropped - {"content-length"}
        else:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            if name.lower() not in dropped:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection |= cut  # in an orderly way: nothing but the length tells that something is missing

    def _hang_up(self) -> None:
        """Closes so that the client sees a reset."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def flaky(upstream: str, **options: Any) -> Iterator[FlakyStore]:
    """Runs a `FlakyStore` with these options."""
    store = FlakyStore(upstream, **options)
    thread = threading.Thread(target=store.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join()


def trial(
    model: Path,
    survey: Path,
    folder: Path,
    *,
    share: float = 0.1,
    stall_share: float = 0.005,
    stall_seconds: float = 4.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores a survey from a store to a store twice, undisturbed and with faults, and compares the runs.

    Args:
        model: Directory of a model.
        survey: Folder of images; it is copied to the store.
        folder: An empty one, for copies of both runs.
        share: Of requests that fail.
        stall_share: Of requests that stall.
        stall_seconds: How long; the client waits 3 s for each.
        seed: Which ones.

    Returns:
        requests, failed, stalled; difference, of the run with faults from the undisturbed one;
        exit_code and said, of the former; seconds_undisturbed and seconds_flaky.
    """
    calm, rough = folder / "undisturbed", folder / "flaky"
    outcome: dict[str, Any] = {}
    with server.running() as url:
        server.put_folder(url, survey, "survey/")
        source = f"s3://{server.BUCKET}/survey"
        with flaky(url, share=share, stall_share=stall_share, stall_seconds=stall_seconds, seed=seed) as store:
            for run, endpoint in ((calm, url), (rough, store.url)):
                began = time.monotonic()
                out = f"s3://{server.BUCKET}/{run.name}"
                done = server.crackvae(endpoint, "score", str(model), source, "--out", out, timeout=1200)
                outcome |= {f"seconds_{run.name}": time.monotonic() - began}
                outcome |= {"exit_code": done.returncode, "said": done.stderr}
                server.get_folder(url, f"{run.name}/", run)
            counts = store.counts
    failed = counts.total() - counts["ok"] - counts["stall"]
    return outcome | {
        "requests": counts.total(),
        "failed": failed,
        "stalled": counts["stall"],
        "difference": compare(calm, rough),
    }
