"""Scoring the shards of a run: on the Ray cluster that is named, or by processes of this machine.

The unit is a shard: handed to one worker, one file in the run directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing

from crackvae import logs
from crackvae.cluster import here
from crackvae.cluster.watch import Watch
from crackvae.cluster.workers import Job
from crackvae.errors import CrackvaeError, LostError
from crackvae.model import backend
from crackvae.model.backend import Backend
from crackvae.run import shards
from crackvae.run.directory import Run
from crackvae.run.shards import Work
from crackvae.terminal import log, progress

_Scored = Callable[[Sequence[Work]], Generator[str, None, None]]

_ROUND = 4096  # shards that are handed out at a time: a record is kept of each
_DEATHS = 3  # of workers, without a single new shard


def score(run: Run, work: Sequence[Work], model: str, computed_on: Backend) -> None:
    """Scores shards. Where a worker or its node is lost, what is still missing is tried again.

    Args:
        run: The run.
        work: What is missing of it.
        model: Location of the model artifact.
        computed_on: The run's backend.

    Raises:
        CrackvaeError: Workers die again and again.
    """
    job = Job(run.location, run.identity, model, computed_on)
    files = sum(run.plan.shard(item.shard).num_rows for item in work)
    with ExitStack() as stack:
        advance = stack.enter_context(progress("scoring", files, "images"))
        stack.enter_context(logs.about(run.short_identity))
        if here.is_local() and not here.ray_runs() and computed_on.device == "cpu":
            _score_all(run, work, lambda left: here.scored(job, left), Watch(len(work), advance))
            return
        from crackvae.cluster import metrics, pipeline, session

        stack.enter_context(session.session())
        seen = stack.enter_context(metrics.ExportedWatch(run, len(work), advance))
        _score_all(run, work, lambda left: pipeline.scored(job, left), seen)


def _score_all(run: Run, work: Sequence[Work], scored: _Scored, seen: Watch) -> None:
    for start in range(0, len(work), _ROUND):
        _score_round(run, work[start : start + _ROUND], scored, seen)


def _score_round(run: Run, work: Sequence[Work], scored: _Scored, seen: Watch) -> None:
    left, deaths, later = list(work), 0, seen.left - len(work)
    while left and deaths < _DEATHS:
        try:
            with closing(scored(left)) as shards_told:
                for told in shards_told:
                    seen.count(json.loads(told))
        except LostError as error:
            log.warning("a worker or its node was lost: %s", error)
        before = left
        left, _ = shards.missing(run, [item.shard for item in before])
        seen.left = later + len(left)
        deaths = deaths + 1 if set(before) <= set(left) else 0
    if left:
        raise CrackvaeError(
            f"{run.location}: workers died {_DEATHS} times in a row and {len(left)} shards are missing, "
            f"first number {left[0].shard}; the rest is kept, run the same command again"
        )


def resolve_backend(device: str, precision: str) -> Backend:
    """The backend of the workers: of this machine, or asked on one of a cluster's."""
    if here.is_local():
        return backend.resolve(device, precision)
    from crackvae.cluster import pipeline

    return pipeline.resolve_backend(device, precision)
