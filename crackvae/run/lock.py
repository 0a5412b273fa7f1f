"""One process at a time works on a run.

On a local disk the operating system holds the lock and drops it with the process, however that
ends. An object store has no such thing: there the working process keeps rewriting a small object,
and whoever finds one waits whether it changes. No result rests on it: a second process would write
equal bytes.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import filelock

from crackvae import storage
from crackvae.errors import RefusedError, UnavailableError
from crackvae.run.directory import LOCK
from crackvae.terminal import log

_BEAT_SECONDS = 3.0
_WATCH_SECONDS = 10.0
_SETTLE_SECONDS = 2.0  # longer than a small object takes to be written


@contextmanager
def holding(location: str) -> Iterator[None]:
    """Keeps others from working on a run directory, which need not exist yet.

    Raises:
        RefusedError: Another process works on it.
    """
    path = storage.local_path(location)
    if path is None:
        with _beating(location):
            yield
        return
    path.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise _refused(location) from None
    except NotImplementedError:  # a network file system without locks
        log.warning("%s: its file system has no locks; let one process work on it at a time", location)
    try:
        yield
    finally:
        lock.release()


def _refused(location: str) -> RefusedError:
    return RefusedError(f"{location}: another process works on this run; wait for it or stop it")


@contextmanager
def _beating(location: str) -> Iterator[None]:
    path = storage.join(location, LOCK)
    who = f"{socket.gethostname()} {os.getpid()} {secrets.token_hex(6)}"
    _wait_while_none_beats(location, path)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(_BEAT_SECONDS):
            with suppress(OSError, UnavailableError):  # a store that fails for a moment
                storage.write_bytes(path, f"{who} {time.time()}".encode())

    storage.write_bytes(path, who.encode())
    time.sleep(_SETTLE_SECONDS)  # of several that began at once, the one that wrote last stays
    if not _is_ours(path, who):
        raise _refused(location)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _is_ours(path, who):
            storage.remove(path)


def _is_ours(path: str, who: str) -> bool:
    return (_read(path) or b"").startswith(who.encode())


def _wait_while_none_beats(location: str, path: str) -> None:
    before = _read(path)
    if before is None:
        return
    log.info("%s: was left by a process that ended, or is in use: looking for %.0f s", location, _WATCH_SECONDS)
    end = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(1)
        if _read(path) not in (before, None):
            raise _refused(location)


def _read(path: str) -> bytes | None:
    return storage.read_bytes(path) if storage.exists(path) else None
