"""The best path through each place of a map, along one of four directions.

With e what a path gains at each place p, the sum that has come there is F(p) = e(p) + max(0, 0.95 F(straight
before p), 0.95 F(aslant before p) - 0.1), and B(p) the same from the other side. F + B - e is the best path
through p that keeps to the direction.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Map = NDArray[np.float32]

DIRECTIONS = (0, 3, 6, 9)
"""In twelfths of a half turn: 0, 45, 90 and 135 degrees."""

_MEMORY, _BEND = 0.95, 0.1  # share of a path's sum that goes on; what a bend costs


def best_paths(gain_hw: Map, orientation: int) -> Map:
    """F + B - e along one of the directions.

    Args:
        gain_hw: What a path gains at each place.
        orientation: One of DIRECTIONS.
    """
    if orientation == 0:  # along rows
        return _down(np.ascontiguousarray(gain_hw.T)).T
    if orientation == 6:
        return _down(gain_hw)
    if orientation == 3:  # down to the right
        return _down_right(gain_hw)
    return _down_right(gain_hw[:, ::-1])[:, ::-1]


def _down(gain_hw: Map) -> Map:
    """Paths from row to row; aslant is one column to a side."""

    def come(gain_hw: Map) -> Map:
        sum_hw = np.empty_like(gain_hw)
        sum_hw[0] = gain_hw[0]
        before_w = np.full(gain_hw.shape[1] + 2, -np.inf, np.float32)  # the last row, with a column on both sides
        for row, gain_w in enumerate(gain_hw[1:], 1):
            before_w[1:-1] = sum_hw[row - 1]
            aslant_w = np.maximum(before_w[:-2], before_w[2:])
            sum_hw[row] = _step(gain_w, before_w[1:-1], aslant_w)
        return sum_hw

    return come(gain_hw) + come(gain_hw[::-1])[::-1] - gain_hw


def _down_right(gain_hw: Map) -> Map:
    """Paths from (y - 1, x - 1) to (y, x); aslant is from (y - 1, x) or (y, x - 1).

    Sheared, the anti-diagonals x + y become rows, and each follows from the two before it.
    """
    height, width = gain_hw.shape
    if height > width:  # the shorter side is squared
        return _down_right(gain_hw.T).T
    sheared_Th = np.full((height + width - 1, height), -np.inf, np.float32)
    for y, gain_w in enumerate(gain_hw):
        sheared_Th[y : y + width, y] = gain_w

    def come(gain_Th: Map) -> Map:
        sum_Th = np.empty_like(gain_Th)
        before_h, straight_h, aslant_h = (np.full(height, -np.inf, np.float32) for _ in range(3))
        for t, gain_h in enumerate(gain_Th):
            sum_Th[t] = _step(gain_h, straight_h, aslant_h)
            straight_h[1:] = before_h[:-1]
            before_h = sum_Th[t]
            aslant_h[:] = before_h
            np.maximum(aslant_h[1:], before_h[:-1], out=aslant_h[1:])
        return sum_Th

    total_Th = come(sheared_Th)
    total_Th += come(sheared_Th[::-1, ::-1])[::-1, ::-1]
    row, column = total_Th.strides
    total_hw = as_strided(total_Th, (height, width), (row + column, row))  # y + x counts the rows
    return total_hw - gain_hw


def _step(gain_W: Map, straight_W: Map, aslant_W: Map) -> Map:
    """What has come to each place of a row, from those before it."""
    best_W: Map = np.maximum(_MEMORY * straight_W, _MEMORY * aslant_W - _BEND)
    np.maximum(best_W, 0.0, out=best_W)
    best_W += gain_W
    return best_W
