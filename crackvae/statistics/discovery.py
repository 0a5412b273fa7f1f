"""Which images to look at, and what to expect of them: precision, false discovery rate, what is missed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy

from crackvae.errors import InputError
from crackvae.statistics.calibration import Floats


def expected_precision(alpha: npt.ArrayLike, recall: npt.ArrayLike, prevalence: npt.ArrayLike) -> Floats:
    """The share of the flagged images that are cracked, by Bayes' rule.

    prevalence recall / (prevalence recall + (1 - prevalence) alpha). At a false-alarm rate of 5% and a
    recall of 100%, where one image in a hundred is cracked, it is 0.17: five in six alarms are false.

    Args:
        alpha: The rate of false alarms on sound concrete, in 0..1.
        recall: The share of cracked images that is flagged, in 0..1.
        prevalence: The share of all images that is cracked, in 0..1.

    Returns:
        In 0..1, broadcast over the arguments; NaN where nothing is flagged or an argument is NaN.

    Raises:
        InputError: An argument is outside 0..1.
    """
    alpha, recall, prevalence = (np.asarray(value, np.float64) for value in (alpha, recall, prevalence))
    for name, value in (("alpha", alpha), ("recall", recall), ("prevalence", prevalence)):
        if np.any((value < 0) | (value > 1)):
            raise InputError(f"{name} is {value}, it must lie between 0 and 1")
    true = prevalence * recall
    flagged = true + (1 - prevalence) * alpha
    return np.asarray(np.divide(true, flagged, out=np.full(flagged.shape, np.nan), where=flagged > 0))


def benjamini_hochberg(p_N: Floats, fdr: float) -> npt.NDArray[np.bool_]:
    """Which images to look at, so that of these a share of at most fdr is expected to be sound.

    The step-up procedure of Benjamini & Hochberg (1995, JRSS B 57). Conformal p-values share their
    calibration images, which makes them dependent, but positively (PRDS): it holds for them too, at
    fdr times the share of all images that are sound (Bates et al. 2023, theorem 2).

    Args:
        p_N: p-values in 0..1, as by `calibration.p_values`; NaN where an image was not judged.
        fdr: The false discovery rate, in (0, 1).

    Returns:
        chosen_N, False where the p-value is NaN.

    Raises:
        InputError: fdr or a p-value is out of its range.
    """
    if not 0 < fdr < 1:
        raise InputError(f"the false discovery rate is {fdr}, it must lie between 0 and 1")
    p_N = np.asarray(p_N, np.float64)
    judged_N = ~np.isnan(p_N)
    if np.any((p_N[judged_N] < 0) | (p_N[judged_N] > 1)):
        raise InputError("a p-value is outside 0..1")
    chosen_N = np.zeros(p_N.shape, np.bool_)
    if judged_N.any():
        chosen_N[judged_N] = scipy.stats.false_discovery_control(p_N[judged_N], method="bh") <= fdr
    return chosen_N


def least_real(p_N: Floats, chosen_N: npt.NDArray[np.bool_]) -> float:
    """The share of real findings to expect among the images of smallest p-value, at least.

    Let t be the largest p-value that was chosen. Were all m images sound, m t of them would be expected at or below
    it; k are. So 1 - m t / k of these are real: the estimate of Storey (2002, JRSS B 64) that takes no image for a
    crack beforehand. Of a choice by `benjamini_hochberg` it is at least 1 - fdr.

    Args:
        p_N: As there.
        chosen_N: The choice; none has a p-value that is larger than that of one left out.

    Returns:
        In 0..1; NaN where nothing is chosen.
    """
    if not np.any(chosen_N):
        return float("nan")
    largest = float(np.max(p_N[chosen_N]))
    return max(0.0, 1 - float(np.count_nonzero(~np.isnan(p_N)) * largest / np.count_nonzero(p_N <= largest)))


def exact_interval(found: int, of: int, *, upper: bool = False) -> tuple[float, float]:
    """Where a share lies, with a confidence of 95%, of which so many were found among so many drawn at random.

    Clopper & Pearson (1934, Biometrika 26). Drawn without replacement, as here, it covers more often than it says.

    Args:
        found: In 0..of.
        of: How many were drawn.
        upper: Whether only its upper end is wanted, which is then lower; the lower one is 0.
    """
    if not of:
        return 0.0, 1.0
    low, high = scipy.stats.binomtest(found, of, alternative="less" if upper else "two-sided").proportion_ci(0.95)
    return float(low), float(high)
