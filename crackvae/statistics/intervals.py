"""How far a metric could have come out otherwise, had other concrete been photographed.

Images of one group (twins, cells of one photograph) are no independent evidence, so whole groups
are drawn, not images: the cluster bootstrap (Field & Welsh 2007, "Bootstrapping clustered data",
JRSS B 69). Groups with and without cracks are drawn apart, for their numbers were chosen by who
collected the data. Intervals are the percentiles of the resampled metric (Efron & Tibshirani 1993,
"An Introduction to the Bootstrap", section 13.3).

With few groups (under some twenty of a kind) such intervals are too narrow; with a single one of
a kind it does not vary at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from crackvae.errors import InputError
from crackvae.statistics.calibration import Floats
from crackvae.statistics.metrics import METRICS, Bools, Float64s, Ranking, metrics_of_counts

EXACT_IMAGES = 100_000
"""Of more, groups are drawn a bucket at a time and rates resampled in steps of 1 / _COLUMNS."""

_EDGES = [(1 - 0.95) / 2, (1 + 0.95) / 2]  # 19 of 20 resamples lie in an interval
_COLUMNS = 4000
_BUCKETS = 1000  # of each kind of groups

_BLOCK_WEIGHTS = 2**19
"""Weights that are held at once: some 65 MB with all that `Ranking.evaluate` makes of them."""

Groups = npt.NDArray[Any]  # of integers or strings
Weights = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A metric with its interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """Every one of METRICS, of all images and of each resample.

    Two of the same images, groups, resamples and seed have drawn the same groups: their difference is
    that of the paired bootstrap.

    Attributes:
        value_M: Of all images, in the order of METRICS; NaN where undefined.
        resampled_RM: Of each resample.
    """

    value_M: Float64s
    resampled_RM: Float64s

    def __sub__(self, other: Resampled) -> Resampled:
        return Resampled(self.value_M - other.value_M, self.resampled_RM - other.resampled_RM)

    def intervals(self) -> dict[str, Interval]:
        """By metric; a resample in which it is undefined is left out."""
        intervals = {}
        for name, value, resampled_R in zip(METRICS, self.value_M, self.resampled_RM.T, strict=True):
            defined_D = resampled_R[~np.isnan(resampled_R)]
            low, high = np.nan, np.nan
            if defined_D.size and not np.isnan(value):
                low, high = np.quantile(defined_D, _EDGES)
            intervals[name] = Interval(float(value), float(low), float(high))
        return intervals


def bootstrap(
    score_N: Floats, is_crack_N: Bools, group_N: Groups, threshold: float, *, resamples: int = 1000, seed: int = 0
) -> Resampled:
    """Every one of METRICS, resampled by the stratified cluster bootstrap.

    Args:
        score_N: One real number per image.
        is_crack_N: Its label. A group that holds both labels counts among those with cracks.
        group_N: Integers or strings; equal ones are resampled together. None may be missing.
        threshold: A score above it is a crack. It is held fixed: its own error is not included.
        resamples: How often the groups are drawn.
        seed: Equal seeds draw equal groups.

    Raises:
        InputError: The lengths differ, or a score is NaN.
    """
    if np.shape(group_N) != np.shape(is_crack_N):
        raise InputError(
            f"groups {np.shape(group_N)} and labels {np.shape(is_crack_N)} do not match; give one of each per image"
        )
    ranking = Ranking(score_N, is_crack_N, threshold)
    value_M = ranking.evaluate(np.ones((1, len(is_crack_N)), np.int64))[0]
    blocks = [metrics_of_counts(*counts) for counts in _resampled(ranking, is_crack_N, group_N, resamples, seed)]
    return Resampled(value_M, np.concatenate(blocks))


class Bands(NamedTuple):
    """The ROC and the precision-recall curve with pointwise intervals, each a row value, low and high.

    Attributes:
        fpr_G: False-alarm rates at which recall is given: the most that one so low or lower allows.
        recall_3G: That recall.
        recall_G: Recalls at which precision is given: with the fewest flagged that reach it.
        precision_3G: That precision, of as many cracks among the images as there are.
    """

    fpr_G: Float64s
    recall_3G: Float64s
    recall_G: Float64s
    precision_3G: Float64s


def bands(score_N: Floats, is_crack_N: Bools, group_N: Groups, *, resamples: int = 400) -> Bands:
    """Both curves, resampled as by `bootstrap`; arguments as there, and both labels must be present.

    19 of 20 resamples lie inside the interval, at each point by itself. Of large sets, resamples that happen to
    hold no crack, or nothing else, are left out.
    """
    ranking = Ranking(score_N, is_crack_N, np.inf)
    fpr_G = np.geomspace(1 / np.count_nonzero(~is_crack_N), 1, 100)
    recall_G = np.linspace(0.01, 1, 100)
    whole = (*ranking.counts(np.ones((1, len(is_crack_N)), np.int64)), 0)
    curves = []
    for tp_RV, fp_RV, _ in chain([whole], _resampled(ranking, is_crack_N, group_N, resamples, 0)):
        for tp_V, fp_V in zip(tp_RV, fp_RV, strict=True):
            if not (tp_V[-1] and fp_V[-1]):
                continue
            # In whole numbers and rounded inwards, as in `metrics_of_counts`: 0.05 * 20 may be 1.0000000000000002.
            allowed_G = np.floor(fpr_G * fp_V[-1] + 1e-9)
            found_G = tp_V[np.searchsorted(fp_V, allowed_G, side="right") - 1]
            at_G = np.searchsorted(tp_V, np.ceil(recall_G * tp_V[-1] - 1e-9))
            curves.append((found_G / tp_V[-1], tp_V[at_G] / (tp_V[at_G] + fp_V[at_G])))
    recall_RG, precision_RG = (np.stack(each) for each in zip(*curves, strict=True))
    made = [np.vstack([curve[:1], np.quantile(curve[1:], _EDGES, axis=0)]) for curve in (recall_RG, precision_RG)]
    return Bands(fpr_G, made[0], recall_G, made[1])


def _resampled(
    ranking: Ranking, is_crack_N: Bools, group_N: Groups, resamples: int, seed: int
) -> Iterator[tuple[Weights, Weights, int]]:
    """tp_BV, fp_BV and at_threshold of each resample, block by block; see `metrics_of_counts`."""
    if len(is_crack_N) > EXACT_IMAGES:
        yield _count_coarsely(ranking, is_crack_N, group_N, resamples, seed)
        return
    for weight_BN in _draw(is_crack_N, group_N, resamples, seed):
        yield *ranking.counts(weight_BN), ranking.at_threshold


def _count_coarsely(
    ranking: Ranking, is_crack_N: Bools, group_N: Groups, resamples: int, seed: int
) -> tuple[Weights, Weights, int]:
    """Counts of every resample, at a cost that does not grow with the images.

    Whole groups are put into buckets at random, and buckets are drawn instead of groups (Chamandy,
    Muralidharan, Najmi & Naidu 2012, "Estimating uncertainty for massive data streams", Google).
    """
    column_N, at_threshold = ranking.coarse(_COLUMNS)
    _, index_N = np.unique(group_N, return_inverse=True)
    has_crack_G = np.bincount(index_N, weights=is_crack_N) > 0
    generator = np.random.default_rng(seed)
    bucket_G = generator.integers(_BUCKETS, size=has_crack_G.size) + _BUCKETS * has_crack_G
    columns = int(column_N.max()) + 1
    cell_N = bucket_G[index_N] * columns + column_N
    drawn_R2B = generator.multinomial(_BUCKETS, np.full(_BUCKETS, 1 / _BUCKETS), size=(resamples, 2))
    weight_RB = drawn_R2B.reshape(resamples, 2 * _BUCKETS).astype(np.float64)  # exact, and quick to multiply

    def counts(chosen_N: Bools) -> npt.NDArray[np.int64]:
        count_BV = np.bincount(cell_N[chosen_N], minlength=2 * _BUCKETS * columns).reshape(-1, columns)
        total_RV = np.cumsum(np.rint(weight_RB @ count_BV).astype(np.int64), axis=1)
        return np.pad(total_RV, ((0, 0), (1, 0)))

    return counts(is_crack_N), counts(~is_crack_N), at_threshold


def _draw(is_crack_N: Bools, group_N: Groups, resamples: int, seed: int) -> Iterator[Weights]:
    """How often each image is in each resample: weight_BN, block by block.

    As many groups are drawn, with replacement, as there are, from each kind by a generator of its
    own: neither the size of the blocks nor the other kind changes what is drawn.
    """
    _, index_N = np.unique(group_N, return_inverse=True)
    cracks_G = np.bincount(index_N, weights=is_crack_N)
    kinds = (np.flatnonzero(cracks_G == 0), np.flatnonzero(cracks_G > 0))
    generators = np.random.default_rng(seed).spawn(len(kinds))
    rows = max(1, _BLOCK_WEIGHTS // max(1, len(index_N)))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = [
            kind_K[generator.integers(kind_K.size, size=(count, kind_K.size))]
            for kind_K, generator in zip(kinds, generators, strict=True)
        ]
        # One bincount for the block: row b counts in its own range of G numbers.
        cell_BG = np.concatenate(drawn, axis=1) + cracks_G.size * np.arange(count)[:, None]
        multiplicity_BG = np.bincount(cell_BG.ravel(), minlength=cell_BG.size)
        yield multiplicity_BG.reshape(cell_BG.shape)[:, index_N]
