"""What it costs that files are not in memory yet: on a disk, or in an object store that answers late.

    python benchmarks/performance/reading.py WORK      after `make bench`, in its WORK; prints a table

Whole processes are timed, in rounds in which each contender has its turn. The store is a process on the same machine.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bucket
from machine import described
from throughput import MANY, SOME, interleaved, run

from crackvae.report.tables import markdown

ROUNDS = 3
SECONDS = 0.02  # that the store waits before each answer; a read is two of them


def forget(folder: Path) -> None:
    """Has the kernel drop what it holds of files in memory."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())  # what is not on the disk yet cannot be dropped
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = bytes_from_disk()
    path.read_bytes()
    if bytes_from_disk() == before:
        sys.exit(f"{folder}: this file system does not drop files from memory; take another WORK")


def bytes_from_disk() -> str:
    """What this process has had read."""
    return next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))


def local(script: str, work: Path, *, is_held: bool) -> float:
    """Seconds over a folder that is in memory or is not."""
    folder = work / f"jpegs-{MANY}"
    forget(folder)
    if is_held:
        for path in folder.iterdir():
            path.read_bytes()
    return timed(script, work, folder)


def stored(script: str, work: Path) -> float:
    """Seconds over a bucket."""
    with bucket.served(work / f"jpegs-{SOME}", SECONDS) as place:
        return timed(script, work, place)


def timed(script: str, work: Path, source: object) -> float:
    """Seconds of a whole process."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    arguments = ("score", work / "model", source, "--out", out)
    return run(script, *(arguments if script == "crackvae" else (work / "model", source, out)))


def main() -> None:
    """Measures and prints."""
    work = Path(sys.argv[1])
    os.environ.setdefault("RAY_worker_niceness", "0")  # as in throughput.py
    contenders: dict[str, Callable[[], float]] = {
        f"crackvae, {MANY:,} files in memory": partial(local, "crackvae", work, is_held=True),
        "crackvae, on the disk": partial(local, "crackvae", work, is_held=False),
        "bare loop, in memory": partial(local, "bare_loop.py", work, is_held=True),
        "bare loop, on the disk": partial(local, "bare_loop.py", work, is_held=False),
        f"crackvae, {SOME:,} local files": partial(timed, "crackvae", work, work / f"jpegs-{SOME}"),
        "crackvae, in the store": partial(stored, "crackvae", work),
        "Ray Data, in the store": partial(stored, "ray_data.py", work),
    }
    times = interleaved(contenders, (), ROUNDS)
    rows = [[name, *(f"{pick(taken):.1f}" for pick in (min, statistics.median, max))] for name, taken in times.items()]
    print(described(), markdown(["seconds of a whole process", "min", "median", "max"], rows), sep="\n\n")


if __name__ == "__main__":
    main()
