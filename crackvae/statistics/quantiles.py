"""Quantiles of any number of scores in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

EXACT_SCORES = 1_000_000
"""Up to so many scores are kept; beyond, they are counted in bins."""

# The upper 20 of a float32's 32 bits: sign, exponent and 11 bits of its fraction.
_BIN_BITS = 20
RELATIVE_ERROR = 2.0**-12
"""Of a quantile of more than EXACT_SCORES scores: half a bin, for the middle of a bin is reported."""


class Quantiles:
    """Takes scores piece by piece; exact up to EXACT_SCORES, then to RELATIVE_ERROR."""

    def __init__(self) -> None:
        self._kept: list[npt.NDArray[np.float32]] = []
        self._held = 0
        self._count_K: npt.NDArray[np.int64] | None = None

    def add(self, score_N: npt.NDArray[np.float32]) -> None:
        """Takes more scores; none may be NaN."""
        self._kept.append(np.asarray(score_N, np.float32))
        self._held += len(score_N)
        if self._held > EXACT_SCORES:
            self._fold()

    def _fold(self) -> npt.NDArray[np.int64]:
        count_K = np.zeros(1 << _BIN_BITS, np.int64) if self._count_K is None else self._count_K
        for kept_N in self._kept:
            np.add.at(count_K, _bin(kept_N), 1)
        self._kept, self._held, self._count_K = [], 0, count_K
        return count_K

    def at(self, levels: Sequence[float]) -> list[float]:
        """The quantiles at levels in [0, 1]; NaN of no scores."""
        if self._count_K is None:
            exact_N = np.concatenate([*self._kept, np.empty(0, np.float32)]).astype(np.float64)
            return [float(value) for value in np.quantile(exact_N, levels)] if len(exact_N) else [np.nan] * len(levels)
        at_most_K = np.cumsum(self._fold())
        ranks = np.maximum(np.ceil(np.asarray(levels) * at_most_K[-1]), 1).astype(np.int64)
        return [float(value) for value in _middle(np.searchsorted(at_most_K, ranks))]


def _bin(score_N: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Bins that grow with the score: a positive float's bits do, a negative one's complement does."""
    bits_N = score_N.view(np.uint32)
    ordered_N = np.where(bits_N >> 31, ~bits_N, bits_N | np.uint32(1 << 31))
    return ordered_N >> np.uint32(32 - _BIN_BITS)


def _middle(bin_N: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    shift = 32 - _BIN_BITS
    ordered_N = (bin_N.astype(np.uint32) << np.uint32(shift)) | np.uint32(1 << (shift - 1))
    bits_N = np.where(ordered_N >> 31, ordered_N & np.uint32(2**31 - 1), ~ordered_N)
    return bits_N.astype(np.uint32).view(np.float32)
