"""What an operator sees of a run that is under way: progress, and a log line for each shard.

A worker tells what became of a shard along with the shard; the job's own process counts it. So a worker that dies
takes no counts along.
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

from crackvae.dataset.table_files import counts
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
    """Counts what is told of the shards of a run.

    Args:
        shards: How many of it are left to score.
        advance: Takes files that are done.
    """

    def __init__(self, shards: int, advance: Advance) -> None:
        self.left = shards
        self._advance = advance

    def count(self, told: Mapping[str, Any]) -> None:
        """Takes what is told of a shard."""
        self.left -= 1
        self._advance(told["files"])
        parts = [f"{files:,} {status}" for status, files in told["status"].items()]
        parts += [f"{told['flagged']:,} flagged"] if "flagged" in told else []
        parts += [f"{stage} {seconds:.1f} s" for stage, seconds in told["seconds"].items()]
        log.info(", ".join(parts), extra={"shard": told["shard"]})
