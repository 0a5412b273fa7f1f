"""How well a score tells cracks from sound concrete, and the baseline it has to beat.

Crack is the positive class; a higher score is more anomalous. Equal scores share one place in the
ranking, as in scikit-learn. A metric that is undefined is NaN: without cracks roc_auc,
average_precision, recall and the operating points; without normals roc_auc and the operating points;
precision where nothing is flagged; f1 where there is neither a crack nor a flag.

precision depends on how many of the images are cracked, and a set for evaluation holds far more of them
than a survey: precision_at_1_in_10 and so on are what the same threshold would have where one image in
so many is cracked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crackvae.errors import InputError
from crackvae.statistics.calibration import Floats, is_anomalous
from crackvae.statistics.discovery import expected_precision

Float64s = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]

METRICS = (
    "roc_auc",
    "average_precision",
    "precision",
    "recall",
    "f1",
    "accuracy",
    "fpr_at_95_recall",
    "recall_at_1pct_fpr",
    "recall_at_5pct_fpr",
    "precision_at_1_in_10",
    "precision_at_1_in_100",
    "precision_at_1_in_1000",
)
"""The names in metrics.json, in the order of the columns of `metrics_of_counts`; in 0..1, or NaN where undefined.

precision, recall, f1 and accuracy are those of ``score > threshold``. fpr_at_95_recall is the smallest false alarm
rate among the thresholds with recall >= .95; recall_at_1pct_fpr the largest recall among those with a false alarm
rate <= .01, and so on.
"""

PREVALENCES = (0.1, 0.01, 0.001)
"""Of the last three."""


class Ranking:
    """Scores sorted once, to be evaluated under many weights (bootstrap multiplicities).

    Args:
        score_N: One real number per image.
        is_crack_N: Its label.
        threshold: A score above it is a crack; see `calibration.threshold`.

    Raises:
        InputError: The lengths differ, or a score is NaN and so has no place in a ranking.
    """

    def __init__(self, score_N: Floats, is_crack_N: Bools, threshold: float) -> None:
        if np.shape(score_N) != np.shape(is_crack_N) or np.ndim(score_N) != 1:
            raise InputError(
                f"scores {np.shape(score_N)} and labels {np.shape(is_crack_N)} do not match; give one of each per image"
            )
        if np.isnan(score_N).any():
            raise InputError("a score is NaN; evaluate only the images that were scored")
        self._order_N = np.argsort(score_N)[::-1]
        sorted_N = np.asarray(score_N)[self._order_N]
        self._is_crack_N = np.asarray(is_crack_N, dtype=bool)[self._order_N]
        # A tie is crossed as a whole: only its last image is a point of the curves.
        is_last_N = np.append(sorted_N[1:] != sorted_N[:-1], True)[: sorted_N.size]
        self._last_U = np.flatnonzero(is_last_N)
        flagged_U = is_anomalous(sorted_N[self._last_U], threshold)
        self.at_threshold = int(np.count_nonzero(flagged_U))
        """The column of `counts` that flags exactly the scores above the threshold."""

    def counts(self, weight_RN: Ints) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Weight of the cracks and of the normals that are flagged, as ever more is flagged.

        Args:
            weight_RN: Non-negative integers, in the order of the scores.

        Returns:
            tp_RV and fp_RV. Column 0 flags nothing; each further one flags down to and including
            the next distinct score, so that the last one flags everything.
        """
        weight_RN = weight_RN[:, self._order_N]
        shape = (len(weight_RN), self._last_U.size + 1)
        tp_RV, flagged_RV = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        tp_RV[:, 1:] = np.cumsum(weight_RN * self._is_crack_N, axis=1)[:, self._last_U]
        flagged_RV[:, 1:] = np.cumsum(weight_RN, axis=1)[:, self._last_U]
        return tp_RV, flagged_RV - tp_RV

    def evaluate(self, weight_RN: Ints) -> Float64s:
        """Every metric under each row of weights: value_RM, with a column for each of METRICS.

        A weight of k counts as k copies of the image, and equals scikit-learn's sample_weight.
        Memory is some ten times that of weight_RN.
        """
        return metrics_of_counts(*self.counts(weight_RN), self.at_threshold)

    def coarse(self, most: int) -> tuple[Ints, int]:
        """Neighbours in the ranking put together, for rankings too long to be resampled one by one.

        Args:
            most: Columns that are wanted; a few more are made, for the threshold keeps its own.

        Returns:
            column_N, the column of each image, and at_threshold among these columns as in `counts`:
            what is flagged there is exact, elsewhere a rate is known to 1 / most.
        """
        size = self._order_N.size
        wanted = np.searchsorted(self._last_U, np.linspace(0, size - 1, most + 1)[1:])
        kept_K = np.unique(np.append(wanted, self._last_U.size - 1))
        if self.at_threshold:
            kept_K = np.union1d(kept_K, self.at_threshold - 1)
        column_N = np.empty(size, np.int64)
        column_N[self._order_N] = np.searchsorted(self._last_U[kept_K], np.arange(size))
        return column_N, int(np.searchsorted(kept_K, self.at_threshold))


def metrics_of_counts(tp_RV: npt.NDArray[np.int64], fp_RV: npt.NDArray[np.int64], at_threshold: int) -> Float64s:
    """Every metric of each ranking: value_RM, with a column for each of METRICS.

    Args:
        tp_RV: Cracks that are flagged, as ever more is; column 0 flags nothing, the last everything.
        fp_RV: The same of the normals.
        at_threshold: The column of the scores above the threshold.
    """
    crack_R, normal_R = tp_RV[:, -1], fp_RV[:, -1]
    tp_R, fp_R = tp_RV[:, at_threshold], fp_RV[:, at_threshold]
    # In whole numbers, so that no rounding decides whether a count just reaches its rate.
    has_95_recall_RV = tp_RV >= -(-95 * crack_R // 100)[:, None]
    # Both counts grow along V: the first True is the fewest alarms, the last the most cracks.
    fp_at_95_R = _take(fp_RV, np.argmax(has_95_recall_RV, axis=1))
    tp_at_R = [
        _take(tp_RV, np.count_nonzero(fp_RV <= (percent * normal_R // 100)[:, None], axis=1) - 1) for percent in (1, 5)
    ]

    new_tp_RV, new_fp_RV = np.diff(tp_RV), np.diff(fp_RV)
    # Trapezoids: half a win for a tie (Hanley & McNeil 1982). Twice the area is a whole number.
    area2_R = np.einsum("rv,rv->r", new_fp_RV, tp_RV[:, 1:] + tp_RV[:, :-1])
    precision_RV = tp_RV[:, 1:] / np.maximum(tp_RV[:, 1:] + fp_RV[:, 1:], 1)
    # AP = sum of (recall_v - recall_v-1) precision_v, not interpolated, as in scikit-learn.
    precision_sum_R = np.einsum("rv,rv->r", new_tp_RV, precision_RV)

    has_both_R = (crack_R > 0) & (normal_R > 0)
    crack_of_both_R = np.where(has_both_R, crack_R, 0)
    recall_R, alarms_R = _ratio(tp_R, crack_of_both_R), _ratio(fp_R, normal_R)
    columns = (
        _ratio(area2_R, 2 * crack_R * normal_R),
        _ratio(precision_sum_R, crack_R),
        _ratio(tp_R, tp_R + fp_R),
        _ratio(tp_R, crack_R),
        _ratio(2 * tp_R, crack_R + tp_R + fp_R),
        _ratio(tp_R + normal_R - fp_R, crack_R + normal_R),
        _ratio(fp_at_95_R, np.where(has_both_R, normal_R, 0)),
        *(_ratio(tp_at_rate_R, crack_of_both_R) for tp_at_rate_R in tp_at_R),
        *(expected_precision(alarms_R, recall_R, prevalence) for prevalence in PREVALENCES),
    )
    return np.stack(columns, axis=1)


def confusion(score_N: Floats, is_crack_N: Bools, threshold: float) -> dict[str, int]:
    """Numbers of images by label and prediction: tn, fp, fn and tp. A score that is NaN flags nothing."""
    cell_N = 2 * np.asarray(is_crack_N, np.int64) + is_anomalous(score_N, threshold)
    return dict(zip(("tn", "fp", "fn", "tp"), np.bincount(cell_N, minlength=4).tolist(), strict=True))


def curve(score_N: Floats, is_crack_N: Bools) -> tuple[Float64s, Float64s]:
    """The points of the ROC curve.

    Returns:
        fpr_V and recall_V, growing from 0 to 1. Point 0 flags nothing; then one point per distinct score. A rate
        whose class is missing is NaN.

    Raises:
        InputError: As for `Ranking`.
    """
    ranking = Ranking(score_N, is_crack_N, threshold=np.inf)
    (tp_V,), (fp_V,) = ranking.counts(np.ones((1, np.size(score_N)), np.int64))
    return _ratio(fp_V, fp_V[-1]), _ratio(tp_V, tp_V[-1])


def _take(value_RV: npt.NDArray[np.int64], column_R: Ints) -> npt.NDArray[np.int64]:
    return value_RV[np.arange(len(value_RV)), column_R]


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Float64s:
    """Part / whole, NaN where the whole is zero."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio
