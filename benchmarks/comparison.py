"""What the benchmarks on real data share: commands, caches, scores in parallel, and tables of metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from crackvae.statistics.discovery import exact_interval
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
DECIDING = {
    "precision": "precision",
    "recall": "recall",
    "precision_at_1_in_10": "precision, 1 in 10 cracked",
    "precision_at_1_in_100": "1 in 100",
    "precision_at_1_in_1000": "1 in 1,000",
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


def resampled(frame: pd.DataFrame, score: str, threshold: float = np.inf) -> Resampled:
    """By groups: twins, or blocks of cells.

    Args:
        frame: Columns is_crack, group, and the score.
        score: A column.
        threshold: What is above it is called crack.
    """
    group_N, is_crack_N = pd.factorize(frame["group"])[0], frame["is_crack"].to_numpy(bool)
    return intervals.bootstrap(frame[score].to_numpy(np.float64), is_crack_N, group_N, threshold)


def shown(metric: Interval, sign: str = "") -> str:
    """A metric with its interval."""
    return interval({"value": metric.value, "low": metric.low, "high": metric.high}, f"{sign}.4f")


def share(found: pd.Series, digits: int = 1) -> str:
    """A share of images that are no twins of each other, with its exact 95% interval, in percent."""
    return percent(Interval(found.mean(), *exact_interval(int(found.sum()), len(found))), digits)


def flagged(frame: pd.DataFrame, is_crack: bool, alpha: float) -> str:
    """The share of one kind whose p-value is at most alpha, which is the recall of that kind, by groups."""
    frame = frame.assign(is_crack=frame["is_crack"] == is_crack, flagged=-frame["p_value"])
    return percent(resampled(frame, "flagged", -alpha * (1 + 1e-9)).intervals()["recall"])


def percent(share: Interval, digits: int = 1) -> str:
    """A share with its interval."""
    return f"{share.value:.{digits}%} [{100 * share.low:.{digits}f}, {100 * share.high:.{digits}f}]"


def beside(frame: pd.DataFrame, first: str, others: Sequence[str]) -> str:
    """A score and others on the same images, with the paired differences."""
    return _beside(frame, first, others, RANKING, np.inf)


def deciding(frame: pd.DataFrame, p_values: Mapping[str, str], alpha: float) -> str:
    """The same of what is called crack at alpha.

    Args:
        frame: Columns is_crack, group, and p-values.
        p_values: Columns by the name of the score, the first of which is compared with the others.
        alpha: The rate of false alarms that is accepted.
    """
    first, *others = p_values
    frame = frame.assign(**{name: -frame[column] for name, column in p_values.items()})
    return f"At alpha {alpha:.0%}:\n\n{_beside(frame, first, others, DECIDING, -alpha * (1 + 1e-9))}"


def _beside(
    frame: pd.DataFrame, first: str, others: Sequence[str], metrics: Mapping[str, str], threshold: float
) -> str:
    of_first = resampled(frame, first, threshold)
    rows = [[first, *(shown(of_first.intervals()[metric]) for metric in metrics)]]
    for other in others:
        of_other = resampled(frame, other, threshold)
        ahead = (of_first - of_other).intervals()
        rows.append([other, *(shown(of_other.intervals()[metric]) for metric in metrics)])
        rows.append([f"{first} is ahead by", *(shown(ahead[metric], "+") for metric in metrics)])
    cracks = int(frame["is_crack"].sum())
    return markdown([f"{len(frame) - cracks:,} normal, {cracks:,} cracked", *metrics.values()], rows)


def values(frame: pd.DataFrame, score: str) -> dict[str, float]:
    """Every metric of a score, without intervals."""
    return dict(zip(METRICS, resampled(frame, score).value_M.tolist(), strict=True))
