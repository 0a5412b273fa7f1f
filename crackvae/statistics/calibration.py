"""From scores to p-values and a threshold, by the scores of held-out sound images.

Split conformal testing: if an image is exchangeable with the n calibration images (sound, unseen
in training), then p <= alpha with probability at most alpha, whatever the model is worth. Vovk,
Gammerman & Shafer (2005), "Algorithmic Learning in a Random World"; Bates, Candès, Lei, Romano &
Sesia (2023), "Testing for outliers with conformal p-values", Annals of Statistics 51(1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from crackvae.errors import InputError

Floats = npt.NDArray[np.floating]


def p_values(score_N: Floats, calibration_n: Floats) -> npt.NDArray[np.float64]:
    """How often would sound concrete look at least as anomalous as this?

    The marginal conformal p-value of Bates et al. (2023), for scores that grow with anomaly:
    p = (1 + #{calibration scores >= score}) / (n + 1).

    Args:
        score_N: Scores, any real numbers; NaN where there is none.
        calibration_n: Scores of n sound images that the model was not trained on.

    Returns:
        p_N in [1 / (n + 1), 1], NaN where the score is NaN.

    Raises:
        InputError: A calibration score is not finite.
    """
    sorted_n = _sorted_calibration(calibration_n)
    score_N = np.asarray(score_N, dtype=np.float64)
    at_least_N = sorted_n.size - np.searchsorted(sorted_n, score_N, side="left")
    # searchsorted puts NaN above everything, which would make it the most significant score.
    return np.where(np.isnan(score_N), np.nan, (1 + at_least_N) / (sorted_n.size + 1))


def threshold(calibration_n: Floats, alpha: float) -> float:
    """The calibration score t for which ``score > t`` is the same decision as ``p <= alpha``.

    Let m be the number of j in 1..n with j / (n + 1) <= alpha, which is floor(alpha (n + 1)). Then
    p <= alpha  <=>  1 + #{calibration >= score} <= m  <=>  fewer than m calibration scores reach
    the score  <=>  the m-th largest calibration score is below it. So t is the m-th largest, and
    an image is a crack where its score is *above* t; a score equal to t is normal.

    Args:
        calibration_n: As for `p_values`.
        alpha: The rate of false alarms that is accepted on sound concrete, in (0, 1).

    Raises:
        InputError: alpha is outside (0, 1); a calibration score is not finite; or there are fewer
            than 1 / alpha - 1 of them, so that no score could ever be a crack.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha is {alpha}, it must lie between 0 and 1")
    sorted_n = _sorted_calibration(calibration_n)
    n = sorted_n.size
    # The quotients of p_values, not alpha * (n + 1): .29 * 100 is 28.999999999999996, which would
    # lose an m that p_values allows.
    m = int(np.searchsorted(np.arange(1, n + 1) / (n + 1), alpha, side="right"))
    if m == 0:
        raise InputError(
            f"{n} calibration scores are too few for alpha {alpha:g}: no p-value can be below "
            f"1/{n + 1}; give at least {_needed(alpha)} normal images to calibrate with"
        )
    return float(sorted_n[n - m])


def is_anomalous(score_N: Floats, threshold: float) -> npt.NDArray[np.bool_]:
    """Where the score is above the threshold; False where it is NaN."""
    # Compared as float32, a threshold that is no float32 would be rounded up or down to one.
    return np.asarray(score_N, dtype=np.float64) > threshold


def _sorted_calibration(calibration_n: Floats) -> npt.NDArray[np.float64]:
    sorted_n = np.sort(np.asarray(calibration_n, dtype=np.float64))
    bad = np.count_nonzero(~np.isfinite(sorted_n))
    if bad:
        raise InputError(
            f"{bad} of {sorted_n.size} calibration scores are not finite; calibrate with normal "
            "images that the model can score"
        )
    return sorted_n


def _needed(alpha: float) -> int:
    """The smallest n whose smallest p-value, 1 / (n + 1), is at most alpha."""
    n = max(int(1 / alpha) - 1, 0)
    return n if 1 / (n + 1) <= alpha else n + 1
