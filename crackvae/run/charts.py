"""Control charts of a nightly survey: they follow from metrics.json of its nights, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from crackvae import storage
from crackvae.errors import InputError
from crackvae.run import directory, judge, summary
from crackvae.statistics.chart import chart
from crackvae.terminal import log

_READERS = 8  # files read at a time: an object store answers in tens of milliseconds
_QUARTILES = 1.349  # standard deviations of a normal distribution between its quartiles
# Variance of a quantile of n normal scores, times n, in their variance: q (1 - q) / density^2.
_QUANTILES = {"0.5": 1.571, "0.95": 4.466}


def follow(runs: Mapping[str, Mapping[str, int] | None]) -> dict[str, dict[str, Any]]:
    """Charts the share flagged, the share not judged, and two quantiles of the score.

    Args:
        runs: Of the nights, oldest first, with the files of each that were new or changed, and how many of these were
            decided: what could not be read the night before is not news. None takes all of its files. A night whose
            directory is gone does not count.

    Returns:
        By statistic the fields of `Chart`, and `calibration`: its value for the calibration's images.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = [(run, metrics) for run, metrics in zip(runs, pool.map(_read, runs), strict=True) if metrics]
    if not found:
        return {}
    newest, metrics = found[-1]
    score_n = judge.load(directory.read_header(newest)).normals.score_n
    calibration = {"flagged": metrics["threshold"]["false_alarm_rate"]["expected"], "not_judged": 0.0}
    calibration |= {_name(level): float(np.quantile(score_n, float(level))) for level in _QUANTILES}
    nights = [_values(metrics, runs[run]) for run, metrics in found]
    told = {}
    for name, expected in calibration.items():
        value_N, within_N, count_N = np.array([night[name] for night in nights]).T
        told[name] = {**chart(value_N, within_N, count_N)._asdict(), "calibration": expected}
    return told


def _read(run: str) -> dict[str, Any] | None:
    try:
        return summary.read(run)
    except InputError:
        log.warning("%s: is gone or damaged; the drift charts leave this night out", storage.name(run))
        return None


def _values(metrics: Mapping[str, Any], fresh: Mapping[str, int] | None) -> dict[str, tuple[float, float, int]]:
    """Of a night, by statistic: value, variance of one photograph, photographs."""
    counts, level = metrics["counts"], metrics["score_quantiles"]
    scored, decided = counts["scored"], sum(counts["predicted"].values())
    fresh = fresh or {"files": counts["files"], "decided": decided}
    values = {
        "flagged": _share(counts["predicted"]["crack"], decided),
        "not_judged": _share(fresh["files"] - fresh["decided"], fresh["files"]),
    }
    for name, factor in _QUANTILES.items():
        deviation = (level["0.75"] - level["0.25"]) / _QUARTILES if scored else 0.0
        values[_name(name)] = (level[name] if scored else 0.0, factor * deviation**2, scored)
    return values


def _share(part: int, whole: int) -> tuple[float, float, int]:
    likely = (part + 0.5) / (whole + 1)  # a night without any does not prove that there never is one
    return part / max(1, whole), likely * (1 - likely), whole


def _name(level: str) -> str:
    return f"score_quantile_{level}"
