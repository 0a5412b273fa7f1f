"""This machine, where no cluster is named: a worker process for each core, and no Ray.

Ray takes 12 of the 33 seconds that 20,000 small images take on two cores, to come and to go.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import as_completed
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from crackvae import processes

if TYPE_CHECKING:
    from crackvae.cluster.workers import ImageWorker, Job, PhotographWorker
    from crackvae.run.shards import Work


# What workers need, and what draws the run at its end.
_IMPORTED = ("crackvae.cluster.workers", "crackvae.report.galleries", "crackvae.report.page")
_LATER = ("scipy.stats", "crackvae.report.page")  # what this process ends a run with: 0.7 s, in which it would wait


def prepare() -> None:
    """Begins to import what workers need, where any will be started here."""
    if is_local() and processes.cores() > 1:
        processes.prepare(_IMPORTED)


def is_local() -> bool:
    """Whether no cluster is named: what Ray there is runs on this machine alone, for this process."""
    return not os.environ.get("RAY_ADDRESS")


def ray_runs() -> bool:
    """Whether this process is connected to Ray, which takes 0.7 s to import."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def scored(job: Job, work: Sequence[Work]) -> Generator[str, None, None]:
    """Scores shards, a worker process on each core; on a single core, or a single shard, this process does.

    Args:
        job: What every worker is told.
        work: The shards.

    Yields:
        What `watch.tell` tells of each, as it is done.

    Raises:
        LostError: A worker is gone.
    """
    from crackvae.cluster.workers import whole

    size = min(processes.cores(), len(work))
    if size == 1:
        worker = whole(job)
        yield from (worker.score(item) for item in work)
        return
    prepare()
    with processes.pool(size) as pool:
        scoring = [pool.submit(_score, job, item) for item in work]
        for name in _LATER:
            import_module(name)
        for done in as_completed(scoring):
            yield done.result()


def _score(job: Job, work: Work) -> str:
    return _worker(job).score(work)


@cache
def _worker(job: Job) -> ImageWorker | PhotographWorker:
    from crackvae.cluster.workers import whole

    return whole(job)
