"""What an operator sees of a run that is under way: Prometheus metrics through Ray's own, a log line for each shard.

A worker tells what became of a shard along with the shard; the job's own process counts it. So a worker that dies
takes no counts along, and one port has them all: the metrics port of the node that the job runs on.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from ray.util.metrics import Counter, Gauge

from crackvae.dataset.table_files import counts
from crackvae.run.directory import Run
from crackvae.run.judge import Judge
from crackvae.schema import Label
from crackvae.terminal import Advance, log

_T = TypeVar("_T")


class Clock:
    """Seconds by stage of one shard."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """Books what has passed since the last lap."""
        now = time.monotonic()
        self.seconds[stage] += now - self._last
        self._last = now

    def split(self, items: Iterable[_T], make: str, use: str) -> Iterator[_T]:
        """Hands items on; books the making of each to one stage, what its user does with it to another."""
        for item in items:
            self.lap(make)
            yield item
            self.lap(use)


def tell(shard: int, part: pa.Table, again_N: NDArray[np.bool_], judge: Judge | None, clock: Clock) -> str:
    """What became of the files of a shard, as JSON, so that it is one column for Ray Data.

    Args:
        shard: Its number.
        part: Its rows, columns of `schema.PART`.
        again_N: Which of them were scored now; others are an earlier attempt's.
        judge: The run's; None where it is not judged.
        clock: Of the stages.
    """
    rows = part.filter(again_N)
    status = counts(rows["status"])
    pixels = pc.sum(pc.multiply(rows["width"].cast("int64"), rows["height"])).as_py() or 0
    told = {"shard": shard, "files": part.num_rows, "status": status, "megapixels": pixels / 1e6}
    if judge is not None:
        prediction = judge.judge(rows)["prediction"]
        told["judged"] = len(prediction) - prediction.null_count
        told["flagged"] = pc.sum(pc.equal(prediction, str(Label.CRACK))).as_py() or 0
    return json.dumps({**told, "seconds": clock.seconds})


class Watch:
    """Counts what is told of the shards of a run. Without a session there is no port to read the metrics from.

    Args:
        run: The run.
        shards: How many of it are left to score.
        advance: Takes files that are done.
    """

    def __init__(self, run: Run, shards: int, advance: Advance) -> None:
        def metric(kind: type[_T], name: str, what: str, *labels: str) -> _T:
            return kind(f"crackvae_{name}", what, ("run", *labels)).set_default_tags({"run": run.short_identity})  # type: ignore

        self._photographs = metric(Counter, "photographs", "photographs done, by what became of them", "status")
        self._megapixels = metric(Counter, "megapixels", "size of the photographs that could be decoded")
        self._seconds = metric(Counter, "stage_seconds", "of workers: decode (with reading), score, commit", "stage")
        self._left = metric(Gauge, "shards_left", "shards that are not scored yet")
        self._share = metric(Gauge, "flagged_share", "of the photographs that this process judged, those flagged")
        self._advance = advance
        self._judged = self._flagged = 0
        self.set_left(shards)

    def set_left(self, shards: int) -> None:
        """Takes how many shards are left to score."""
        self.left = shards
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
        self.set_left(self.left - 1)
        self._advance(told["files"])
        parts = [f"{files:,} {status}" for status, files in told["status"].items()]
        parts += [f"{told['flagged']:,} flagged"] if "flagged" in told else []
        parts += [f"{stage} {seconds:.1f} s" for stage, seconds in told["seconds"].items()]
        log.info(", ".join(parts), extra={"shard": told["shard"]})


def count_alarms(charts: Mapping[str, Any]) -> None:
    """Counts the drift alarms of a night; they stay at the port when the job has ended. Needs a session."""
    alarms = Counter("crackvae_drift_alarms", "nights on which a statistic has moved to another level", ("statistic",))
    for statistic, told in charts.items():
        if told["alarm"]:
            alarms.inc(1, {"statistic": statistic})
