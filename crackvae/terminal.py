"""Progress on a terminal, silence elsewhere. Lines for people go through `logging`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("crackvae")

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
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, {{task.speed:.0f}}/s" if total else unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        bar.update(task, completed=0)
        yield lambda count: bar.advance(task, count)
