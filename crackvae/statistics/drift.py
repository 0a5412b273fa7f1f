"""Whether a survey's images look like those that its p-values are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Features = npt.NDArray[np.floating]

SIZE = 0.01
"""Share of surveys like the calibration images that are said to have drifted, at most."""

LEAST_IMAGES, MOST_IMAGES = 20, 1000
"""Of fewer nothing is said. Of more, so many are compared, spread evenly: of 10^6 every trifle is significant."""


def compare(survey_NF: Features, calibration_nF: Features, names: Sequence[str]) -> dict[str, Any]:
    """The two-sample test of Kolmogorov and Smirnov feature by feature, Bonferroni over the features.

    It takes images as independent: where many show one surface, it warns more often than SIZE says.

    Args:
        survey_NF: Of the survey's images, at most MOST_IMAGES.
        calibration_nF: Of the calibration images.
        names: Of the F features.

    Returns:
        For metrics.json: tested, drifted (some p-value is below SIZE / F), size, images, and features by name: the
        largest difference of the two cumulative distributions, its p-value, and whether the survey's median is
        higher or lower. These are empty where there are too few images.
    """
    images = len(survey_NF)
    features: dict[str, dict[str, Any]] = {}
    if min(images, len(calibration_nF)) >= LEAST_IMAGES:
        for name, survey_N, calibration_n in zip(names, survey_NF.T, calibration_nF.T, strict=True):
            test = scipy.stats.ks_2samp(survey_N, calibration_n, method="asymp")
            direction = "higher" if np.median(survey_N) > np.median(calibration_n) else "lower"
            p_value = float(test.pvalue)
            features[name] = {"statistic": float(test.statistic), "p_value": p_value, "direction": direction}
    drifted = any(feature["p_value"] < SIZE / len(names) for feature in features.values())
    return {"tested": bool(features), "drifted": drifted, "size": SIZE, "images": images, "features": features}


class Spread:
    """Keeps MOST_IMAGES to twice as many rows of F features, spread evenly over all that come."""

    def __init__(self, features: int) -> None:
        self._kept_NF = np.empty((0, features), np.float32)
        self._seen, self._every = 0, 1

    def add(self, value_NF: Features) -> None:
        """Takes more rows; those that are not complete do not count."""
        value_NF = value_NF[~np.isnan(value_NF).any(axis=1)]
        first = -self._seen % self._every
        self._kept_NF = np.concatenate([self._kept_NF, value_NF[first :: self._every]])
        self._seen += len(value_NF)
        while len(self._kept_NF) > 2 * MOST_IMAGES:
            self._kept_NF, self._every = self._kept_NF[::2], 2 * self._every

    def rows(self) -> npt.NDArray[np.float32]:
        """value_NF, at most MOST_IMAGES of them."""
        chosen = np.linspace(0, len(self._kept_NF) - 1, min(MOST_IMAGES, len(self._kept_NF))).astype(np.int64)
        return self._kept_NF[chosen]
