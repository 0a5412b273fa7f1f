"""Progress on a terminal and in a submitted job's log, silence elsewhere. Lines for people go through `logging`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("crackvae")

SENT_BY = "CRACKVAE_SENT_BY"
"""Environment variable of a submitted job: the versions that have sent it. Its progress goes to the log."""
_LOG_SECONDS = 10.0

Advance = Callable[[int], None]


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A progress bar with rate and time left on standard error, if that is a terminal.

    Args:
        label: What is under way.
        total: Units to do.
        unit: Their name.

    Yields:
        A function that takes how many units were done since the last call.
    """
    if not sys.stderr.isatty():
        yield _logged(label, total, unit) if os.environ.get(SENT_BY) else lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeftColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{unit}, {task.speed or 0:,.0f}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeLeftColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)


def printable(text: str) -> str:
    """Without control characters: a file's name may hold some, and move the cursor or begin a line of its own."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def show_cursor() -> None:
    """Of a terminal: a bar of a process that was cut off has hidden it."""
    if sys.stderr.isatty():
        sys.stderr.write("\x1b[?25h")
        sys.stderr.flush()


def _logged(label: str, total: int, unit: str) -> Advance:
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if done == total or time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            log.info("%s: %s of %s %s", label, f"{done:,}", f"{total:,}", unit)

    return advance
