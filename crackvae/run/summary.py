"""What metrics.json says, added up piece by piece: only labelled rows take memory, some 100 bytes each."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from crackvae import storage
from crackvae.dataset.table_files import counts
from crackvae.errors import InputError
from crackvae.run.directory import REPAIR
from crackvae.run.judge import Judge
from crackvae.schema import BASELINES, LOOKS, EvaluationSet, Label, Status
from crackvae.statistics import drift, intervals, metrics, quantiles
from crackvae.statistics.intervals import Resampled

METRICS = "metrics.json"

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_REASONS = 20  # that are reported
_KEPT_REASONS = 1000  # that are told apart, in bounded memory
_EXAMPLES = 3  # image_ids of each
_VARIABLE = re.compile(r"\d[\d,.]*")  # sizes and offsets would make one reason look like many

_MEASURED = ["score", *BASELINES, "label", "set", "group", "image_id"]  # what the metrics of a row need


class Summary:
    """Takes result tables in manifest order."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self._predicted: Counter[str] = Counter()
        self._scores = quantiles.Quantiles()
        self._failures: dict[tuple[str, str], dict[str, Any]] = {}
        self._labelled: list[pa.Table] = []
        self._rows = self._bounds = 0
        self._looks = drift.Spread(len(LOOKS))

    def add(self, results: pa.Table) -> None:
        """Takes more rows of `schema.RESULTS`."""
        self._rows += results.num_rows
        self.status.update(counts(results["status"]))
        scored = results.filter(pc.is_valid(results["score"]))
        self._predicted.update(counts(scored["prediction"]))
        self._scores.add(scored["score"].to_numpy())
        # The calibration has sound images only: an evaluation set is half of cracked ones.
        sound = scored.filter(pc.not_equal(scored["label"], str(Label.CRACK)).fill_null(True))
        self._looks.add(np.stack([sound[name].to_numpy() for name in LOOKS], axis=1))
        self._bounds += pc.sum(scored["p_value_is_bound"]).as_py() or 0
        for row in results.filter(pc.is_null(results["score"])).select(["status", "message", "image_id"]).to_pylist():
            self._add_failure(**row)
        # A score whose p-value is a bound is not compared with the threshold.
        labelled = scored.filter(pc.is_valid(scored["label"]))
        self._labelled.append(labelled.filter(pc.invert(labelled["p_value_is_bound"])).select(_MEASURED))

    def _add_failure(self, status: str, message: str | None, image_id: str) -> None:
        message = message or ""
        key = (status, _VARIABLE.sub("N", message))
        if key not in self._failures and len(self._failures) >= _KEPT_REASONS:
            key, message = (status, "other"), "other"
        first = {"status": status, "message": message, "numbers_differ": False, "count": 0, "examples": []}
        failure = self._failures.setdefault(key, first)
        failure["numbers_differ"] |= failure["message"] != message
        failure["count"] += 1
        if len(failure["examples"]) < _EXAMPLES:
            failure["examples"].append(image_id)

    def as_dict(self, judge: Judge) -> dict[str, Any]:
        """The content of metrics.json."""
        scored = sum(self._predicted.values())
        predicted = {str(label): self._predicted[label] for label in Label}
        exact = scored <= quantiles.EXACT_SCORES
        values = self._scores.at(_QUANTILES)
        compared = drift.compare(self._looks.rows(), judge.looks_nF, LOOKS)
        # The most frequent reasons first; of those that differ in numbers only, what the first example's says.
        ranked = sorted(self._failures.items(), key=lambda item: (-item[1]["count"], item[0]))
        return {
            "warnings": warnings(compared),
            "counts": {
                "files": self._rows,
                "scored": scored,
                "status": dict(sorted(self.status.items())),
                "predicted": predicted,
            },
            "failures": [failure for _, failure in ranked[:_REASONS]],
            "threshold": judge.as_dict(),
            "drift": compared,
            "p_values_that_are_bounds": self._bounds,
            "flagged_fraction": _number(self._predicted[Label.CRACK] / max(1, sum(predicted.values()))),
            "score_quantiles": {f"{level:g}": _number(value) for level, value in zip(_QUANTILES, values, strict=True)},
            "score_quantiles_relative_error": 0.0 if exact else quantiles.RELATIVE_ERROR,
            "sets": self._sets(judge),
        }

    def _sets(self, judge: Judge) -> dict[str, Any]:
        """Metrics of each evaluation set, and of all that is labelled; without those whose p-value is a bound."""
        labelled = pa.concat_tables(self._labelled).to_pandas()
        if labelled.empty:
            return {}
        labelled["group"] = labelled["group"].fillna("\0" + labelled["image_id"])  # a group of its own
        sets = {str(name): labelled[labelled["set"] == str(name)] for name in EvaluationSet}
        sets = {name: rows for name, rows in sets.items() if len(rows)} | {str(EvaluationSet.ALL): labelled}
        return {name: _set_metrics(rows, judge) for name, rows in sets.items()}


def read(location: str) -> dict[str, Any]:
    """What metrics.json of a finished run holds.

    Raises:
        InputError: It is damaged or gone.
    """
    path = storage.join(location, METRICS)
    content: dict[str, Any] | None = storage.read_json(path, dict, REPAIR)
    if content is None:
        raise InputError(f"{path}: is gone; {REPAIR}")
    return content


def warnings(drifted: Mapping[str, Any]) -> list[str]:
    """Why a run may not be believed, by `drift.compare`, with the cure: its images are unlike the calibration's."""
    if not drifted["drifted"]:
        return []
    features = drifted["features"]
    worst = sorted((f["p_value"], -f["statistic"], f"{f['direction']} {name}") for name, f in features.items())
    told = ", ".join(name for p_value, _, name in worst if p_value < drifted["size"] / len(features))
    return [
        f"the images are unlike those of the calibration: {told}. The p-values may not hold; calibrate with sound "
        "images of this survey: crackvae calibrate MODEL NORMALS --out NEW_MODEL"
    ]


def failed_fraction(summary: Mapping[str, Any]) -> float:
    """Share of the files that could not be read; those that one cannot judge were."""
    files, status = summary["counts"]["files"], summary["counts"]["status"]
    read = sum(status.get(str(name), 0) for name in (Status.OK, Status.CANNOT_JUDGE))
    return float(files - read) / float(files)


def _set_metrics(rows: pd.DataFrame, judge: Judge) -> dict[str, Any]:
    is_crack_N, group_N = (rows["label"] == str(Label.CRACK)).to_numpy(), pd.factorize(rows["group"])[0]
    thresholds = {"score": judge.threshold} | {name: judge.baseline_threshold(name) for name in BASELINES}
    cards: dict[str, dict[str, Any]] = {}
    for name, threshold in thresholds.items():
        score_N = rows[name].to_numpy()
        resampled = intervals.bootstrap(score_N, is_crack_N, group_N, threshold)
        confusion = metrics.confusion(score_N, is_crack_N, threshold)
        cards[name] = {**_as_dict(resampled), "confusion": confusion, "threshold": threshold}
        if name == "score":
            of_model = resampled
        else:
            cards[name]["model_is_ahead_by"] = _as_dict(of_model - resampled)
    return {**cards.pop("score"), "baselines": cards}


def _as_dict(resampled: Resampled) -> dict[str, Any]:
    return {
        name: {key: _number(value) for key, value in asdict(interval).items()}
        for name, interval in resampled.intervals().items()
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
