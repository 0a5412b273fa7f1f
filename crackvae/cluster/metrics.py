"""Prometheus metrics through Ray's own: at one port, that of the node that the job runs on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ray.util.metrics import Counter, Gauge

from crackvae.cluster.watch import Watch
from crackvae.run.directory import Run
from crackvae.terminal import Advance

_T = TypeVar("_T")


class ExportedWatch(Watch):
    """A watch whose counts are at the port, too. Needs a session.

    Args:
        run: The run.
        shards: How many of it are left to score.
        advance: Takes files that are done.
    """

    def __init__(self, run: Run, shards: int, advance: Advance) -> None:
        def metric(kind: type[_T], name: str, what: str, *labels: str) -> _T:
            return kind(f"crackvae_{name}", what, ("run", *labels)).set_default_tags({"run": run.short_identity})  # type: ignore

        super().__init__(shards, advance)
        self._photographs = metric(Counter, "photographs", "photographs done, by what became of them", "status")
        self._megapixels = metric(Counter, "megapixels", "size of the photographs that could be decoded")
        self._seconds = metric(Counter, "stage_seconds", "of workers: decode (with reading), score, commit", "stage")
        self._left = metric(Gauge, "shards_left", "shards that are not scored yet")
        self._share = metric(Gauge, "flagged_share", "of the photographs that this process judged, those flagged")
        self._judged = self._flagged = 0
        self.set_left(shards)

    def set_left(self, shards: int) -> None:
        """Takes how many shards are left to score."""
        super().set_left(shards)
        self._left.set(shards)

    def count(self, told: Mapping[str, Any]) -> None:
        """Takes what is told of a shard."""
        for status, files in told["status"].items():
            self._photographs.inc(files, {"status": status})
        for stage, seconds in told["seconds"].items():
            self._seconds.inc(max(seconds, 1e-9), {"stage": stage})
        if told["megapixels"]:
            self._megapixels.inc(told["megapixels"])
        self._judged += told.get("judged", 0)
        self._flagged += told.get("flagged", 0)
        if self._judged:
            self._share.set(self._flagged / self._judged)
        super().count(told)


def count_alarms(charts: Mapping[str, Any]) -> None:
    """Counts the drift alarms of a night; they stay at the port when the job has ended. Needs a session."""
    alarms = Counter("crackvae_drift_alarms", "nights on which a statistic has moved to another level", ("statistic",))
    for statistic, told in charts.items():
        if told["alarm"]:
            alarms.inc(1, {"statistic": statistic})
