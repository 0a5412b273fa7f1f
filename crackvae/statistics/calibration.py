"""From scores to p-values and a threshold, by the scores of held-out sound images.

Split conformal testing: if an image is exchangeable with the n calibration images (sound, unseen
in training), then p <= alpha with probability at most alpha, whatever the model is worth. Vovk,
Gammerman & Shafer (2005), "Algorithmic Learning in a Random World"; Bates, Candès, Lei, Romano &
Sesia (2023), "Testing for outliers with conformal p-values", Annals of Statistics 51(1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from crackvae.errors import InputError

Floats = npt.NDArray[np.floating]
Counts = npt.NDArray[np.floating | np.integer]


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


class FalseAlarmRate(NamedTuple):
    """The share of sound images above a threshold, if they are exchangeable with the calibration images.

    Attributes:
        expected: On average over calibrations.
        low: In 19 of 20 calibrations it lies from here ...
        high: ... to here.
    """

    expected: float
    low: float
    high: float


def false_alarm_rate(above: int, n: int) -> FalseAlarmRate:
    """What a threshold promises that so many of the n calibration scores exceed.

    `threshold` leaves m - 1 above, m = floor(alpha (n + 1)). The rate of the threshold that came out is a
    draw from Beta(m, n + 1 - m), of mean m / (n + 1) <= alpha (Vovk 2012, "Conditional validity of
    inductive conformal predictors", proposition 2a; ties make it smaller).

    Args:
        above: In 0..n - 1.
        n: Calibration scores.
    """
    m = above + 1
    low, high = scipy.stats.beta(m, n + 1 - m).interval(0.95) if m <= n else (1.0, 1.0)
    return FalseAlarmRate(m / (n + 1), float(low), float(high))


def alarm_range(p_G: Floats, n: int, images: int) -> tuple[Floats, Floats]:
    """Between which shares of so many sound images have a p-value of at most p, if the calibration holds.

    The number of images whose p-value is at most m / (n + 1) is beta-binomial with images, m and n + 1 - m: the
    rate is a draw from Beta(m, n + 1 - m), see `false_alarm_rate`, and the images are independent given it.
    Twins among them make the range too narrow.

    Args:
        p_G: In 0..1; each stands for the largest m / (n + 1) that is not above it.
        n: Calibration scores.
        images: Sound images.

    Returns:
        low_G and high_G, between which the share lies with a probability of 95%, at each p by itself.
    """
    m_G = np.floor(np.asarray(p_G) * (n + 1) + 1e-9)
    inner_G = np.clip(m_G, 1, n)
    counts_G = scipy.stats.betabinom(images, inner_G, n + 1 - inner_G)
    low_G, high_G = (np.asarray(edge) / images for edge in counts_G.interval(0.95))
    ends_G = np.where(m_G < 1, 0.0, 1.0)  # p is never 0, and always at most 1
    is_inner_G = m_G == inner_G
    return np.where(is_inner_G, low_G, ends_G), np.where(is_inner_G, high_G, ends_G)


def bounds(
    worst_N: Floats, tiles_N: Counts, calibration_n: Floats, calibration_tiles_n: Counts
) -> tuple[Floats, Floats]:
    """Upper bounds on the p-values of photographs of other sizes than those of the calibration.

    Let m_0 be a number of tiles that nine in ten calibration images reach, and only these count. A
    photograph of m tiles is covered by k = ceil(m / m_0) pieces no larger than any of them. If its
    concrete is sound and its pieces are exchangeable with such images, each of them reaches its worst
    tile's score with a probability of at most the conformal p-value p of that score, and one of them
    with at most k p (Bonferroni).

    Args:
        worst_N: Largest score of a tile of each photograph; NaN where there is none.
        tiles_N: Tiles of each.
        calibration_n: Largest scores of a tile of the calibration images.
        calibration_tiles_n: Tiles of these.

    Returns:
        p_N in (0, 1], NaN where the score is NaN; and the smallest that each could have been.
    """
    size = np.sort(np.asarray(calibration_tiles_n))[len(calibration_tiles_n) // 10]
    counted_n = np.asarray(calibration_n)[np.asarray(calibration_tiles_n) >= size]
    pieces_N = np.ceil(np.asarray(tiles_N) / size)
    least_N = np.minimum(1.0, pieces_N / (counted_n.size + 1))
    return np.asarray(np.minimum(1.0, pieces_N * p_values(worst_N, counted_n))), np.asarray(least_N)


def comparable_sizes(calibration_tiles_n: Counts, alpha: float) -> tuple[float, float]:
    """The fewest and the most tiles of a photograph that is compared with the calibration images as they are.

    From half of what as many of them do not exceed as alpha needs to twice what as many reach: the
    size that the score takes into account is then interpolated, not extrapolated.
    """
    sorted_n = np.sort(np.asarray(calibration_tiles_n))
    place = min(_needed(alpha), sorted_n.size) - 1
    return float(sorted_n[place]) / 2, 2 * float(sorted_n[sorted_n.size - 1 - place])


class Verdict(NamedTuple):
    """What scores say.

    Attributes:
        p_N: p-values; NaN where there is no score.
        is_bound_N: Where that is an upper bound, see `bounds`.
        is_anomalous_N: Whether it is called a crack.
        is_decided_N: Where it could have been: a bound whose smallest value is above alpha says nothing.
    """

    p_N: npt.NDArray[np.float64]
    is_bound_N: npt.NDArray[np.bool_]
    is_anomalous_N: npt.NDArray[np.bool_]
    is_decided_N: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Normals:
    """What the n calibration normals scored.

    Attributes:
        score_n: Of each.
        worst_tile_n: The largest score of a tile of each; where an image is one tile, its score.
        tiles_n: How many tiles each has.
    """

    score_n: Floats
    worst_tile_n: Floats
    tiles_n: Counts

    def promise(self, threshold: float) -> FalseAlarmRate:
        """What a threshold promises of sound images, by `false_alarm_rate`."""
        above = int(np.count_nonzero(is_anomalous(self.score_n, threshold)))
        return false_alarm_rate(above, len(self.score_n))

    def judge(
        self, score_N: Floats, worst_tile_N: Floats, tiles_N: Counts, alpha: float, value: float | None = None
    ) -> Verdict:
        """Compares images with the calibration normals.

        Args:
            score_N: NaN where there is none.
            worst_tile_N: The largest score of a tile.
            tiles_N: How many there are.
            alpha: The rate of false alarms that is accepted.
            value: A threshold that takes the place of alpha's. Bounds are compared with what it promises.

        Raises:
            InputError: As by `p_values` and `threshold`.
        """
        p_N = p_values(score_N, self.score_n)
        fewest, most = comparable_sizes(self.tiles_n, alpha)
        is_bound_N = (tiles_N < fewest) | (tiles_N > most)
        bound_N, least_N = bounds(worst_tile_N, tiles_N, self.worst_tile_n, self.tiles_n)
        p_N = np.where(is_bound_N, bound_N, p_N)
        limit = threshold(self.score_n, alpha) if value is None else value
        level = alpha if value is None else self.promise(value).expected
        above_N = np.where(is_bound_N, p_N <= level, is_anomalous(score_N, limit))
        return Verdict(p_N, is_bound_N, above_N, ~np.isnan(p_N) & ~(is_bound_N & (least_N > level)))


def size_exponent(error_N: Floats) -> float:
    """How fast the largest of m errors grows with m: as m^xi, for an upper tail of index 1 / xi.

    Hill's estimator from the largest twentieth (Hill 1975, Annals of Statistics 3(5), 1163-1174).
    A p-value does not rest on it, as long as calibration photographs have the sizes of the survey's.

    Args:
        error_N: Errors of tiles of sound concrete, at least 40, that are not used to calibrate.

    Returns:
        xi in 0..1.
    """
    sorted_N = np.sort(np.asarray(error_N, np.float64))[::-1]
    top = max(1, sorted_N.size // 20)
    return float(np.clip(np.log(sorted_N[:top] / sorted_N[min(top, sorted_N.size - 1)]).mean(), 0.0, 1.0))


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
