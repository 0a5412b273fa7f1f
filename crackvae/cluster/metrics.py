"""Prometheus metrics through Ray's own: at one port, that of the node that the job runs on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from ray.util.metrics import Counter, Gauge

from crackvae.cluster.watch import Watch
from crackvae.run.directory import Run
from crackvae.terminal import Advance

_T = TypeVar("_T")

_REFRESH_S = 1.0  # shorter than Ray hands on: every ten seconds, every second in tests


class ExportedWatch(Watch):
    """A watch whose counts are at the port, too: a context, for as long as the job lasts. Needs a session.

    A gauge that is not set again leaves the port after two of Ray's reports, counters stay. So a thread sets the
    gauges again and again: those of a job that is stuck stay, those of one that has ended go.
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
        self._ended = threading.Event()
        self._refreshing = threading.Thread(target=self._refresh, name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._refreshing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._refreshing.join()

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
        super().count(told)

    def _refresh(self) -> None:
        while True:
            self._left.set(self.left)
            if self._judged:
                self._share.set(self._flagged / self._judged)
            if self._ended.wait(_REFRESH_S):
                return


def count_alarms(charts: Mapping[str, Any]) -> None:
    """Counts the drift alarms of a night; they stay at the port when the job has ended. Needs a session."""
    alarms = Counter("crackvae_drift_alarms", "nights on which a statistic has moved to another level", ("statistic",))
    for statistic, told in charts.items():
        if told["alarm"]:
            alarms.inc(1, {"statistic": statistic})
