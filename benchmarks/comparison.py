"""What the benchmarks on real data share: commands, caches, scores in parallel, and tables of metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from crackvae.report.tables import interval, markdown
from crackvae.statistics import intervals
from crackvae.statistics.intervals import Interval, Resampled
from crackvae.statistics.metrics import METRICS

Image = NDArray[np.uint8]

RANKING = {
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "recall_at_1pct_fpr": "recall at 1% false alarms",
    "recall_at_5pct_fpr": "recall at 5%",
    "fpr_at_95_recall": "false alarms at 95% recall",
}
_CHUNK = 32


def crackvae(*arguments: object) -> None:
    """Runs a command as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "crackvae", *map(str, arguments)], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        sys.exit(f"crackvae {' '.join(map(str, arguments))} ended with exit code {done.returncode}")


def cached(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table that is made once."""
    if not path.exists():
        part = path.with_suffix(".part")
        make().to_parquet(part)
        part.rename(path)
    return pd.read_parquet(path)


def workers(**options: Any) -> ProcessPoolExecutor:
    """A process per core, started afresh: OpenCV's threads do not survive a fork."""
    return ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=get_context("spawn"), **options)


def scored(model: Path | str, images: Iterable[Image]) -> pd.DataFrame:
    """The rows of `AnomalyScorer` for arrays, on all cores."""
    with workers(initializer=_start, initargs=(str(model),)) as pool:
        return pd.concat(pool.map(_score, _chunks(images)), ignore_index=True)


def _chunks(images: Iterable[Image]) -> Iterator[list[Image]]:
    left = iter(images)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk


def _start(model: str) -> None:
    import cv2
    import torch

    from crackvae import AnomalyScorer

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    globals()["_scorer"] = AnomalyScorer.load(model, "cpu")


def _score(images: list[Image]) -> pd.DataFrame:
    columns = ["status", "score", "worst_tile_score", "p_value", "prediction", "darkness", "line_filter"]
    return globals()["_scorer"].score(images)[columns]


def resampled(frame: pd.DataFrame, score: str) -> Resampled:
    """By groups: twins, or blocks of cells.

    Args:
        frame: Columns is_crack, group, and the score.
        score: A column.
    """
    group_N = pd.factorize(frame["group"])[0]
    return intervals.bootstrap(frame[score].to_numpy(np.float64), frame["is_crack"].to_numpy(bool), group_N, np.inf)


def shown(metric: Interval, sign: str = "") -> str:
    """A metric with its interval."""
    return interval({"value": metric.value, "low": metric.low, "high": metric.high}, f"{sign}.4f")


def beside(frame: pd.DataFrame, first: str, others: Sequence[str]) -> str:
    """A score and others on the same images, with the paired differences."""
    of_first = resampled(frame, first)
    rows = [[first, *(shown(of_first.intervals()[metric]) for metric in RANKING)]]
    for other in others:
        of_other = resampled(frame, other)
        ahead = (of_first - of_other).intervals()
        rows.append([other, *(shown(of_other.intervals()[metric]) for metric in RANKING)])
        rows.append([f"{first} is ahead by", *(shown(ahead[metric], "+") for metric in RANKING)])
    cracks = int(frame["is_crack"].sum())
    return markdown([f"{len(frame) - cracks:,} normal, {cracks:,} cracked", *RANKING.values()], rows)


def values(frame: pd.DataFrame, score: str) -> dict[str, float]:
    """Every metric of a score, without intervals."""
    return dict(zip(METRICS, resampled(frame, score).value_M.tolist(), strict=True))
