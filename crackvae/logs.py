"""How log lines look: text for people, JSON where CRACKVAE_LOG_FORMAT says so; run and shard in both."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from crackvae.terminal import log

FORMAT = "CRACKVAE_LOG_FORMAT"
_run: ContextVar[str | None] = ContextVar("run", default=None)


def start() -> None:
    """Sends crackvae's own lines to standard error."""
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Formatter())
        handler.addFilter(lambda record: not (_to_people() and hasattr(record, "shard")))  # a bar tells of shards
        log.addHandler(handler)


def check_format() -> None:
    """Warns of a format that there is not."""
    if os.environ.get(FORMAT, "json") != "json":
        log.warning("%s=%r: is not json; lines stay text", FORMAT, os.environ[FORMAT])


@contextmanager
def about(run: str) -> Iterator[None]:
    """Puts a run's id into the lines of a block; `extra={"shard": N}` puts a shard into one line."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def error_line(message: str) -> str:
    """The line that a command ends with where it failed."""
    return _Formatter().format(logging.makeLogRecord({"levelname": "ERROR", "msg": f"crackvae: {message}"}))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        about = {"run": _run.get(), "shard": getattr(record, "shard", None)}
        about = {name: value for name, value in about.items() if value is not None}
        if os.environ.get(FORMAT) == "json":
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            level = record.levelname.lower()
            return json.dumps({"time": time, "level": level, **about, "message": record.getMessage()})
        where = ", ".join(f"{name} {value}" for name, value in about.items())
        return f"{where}: {record.getMessage()}" if where and not _to_people() else record.getMessage()


def _to_people() -> bool:
    return sys.stderr.isatty() and os.environ.get(FORMAT) != "json"
