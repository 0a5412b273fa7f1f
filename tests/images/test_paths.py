import tracemalloc

import numpy as np
import pytest

from crackvae.images.paths import DIRECTIONS, best_paths


@pytest.mark.parametrize("shape", [(17, 23), (23, 17)])
def test_paths_are_the_best_of_all(shape):
    """Against the recursion written out place by place."""
    gain_hw = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    straight = {0: (0, 1), 3: (1, 1), 6: (1, 0), 9: (1, -1)}
    aslant = {0: [(-1, 1), (1, 1)], 3: [(1, 0), (0, 1)], 6: [(1, -1), (1, 1)], 9: [(1, 0), (0, -1)]}
    for orientation, (dy, dx) in straight.items():
        total_hw = -gain_hw
        for sign in (1, -1):
            come = {}

            def before(y, x, step, sign=sign, come=come):
                return come.get((y - sign * step[0], x - sign * step[1]), -np.inf)

            places = list(np.ndindex(gain_hw.shape))
            places.sort(key=lambda p, sign=sign, d=(dy, dx): sign * (p[0] * d[0] * 100 + p[1] * d[1] + p[0] * d[0]))
            for y, x in places:
                best = max(0.95 * before(y, x, step) - 0.1 for step in aslant[orientation])
                come[y, x] = gain_hw[y, x] + max(0, 0.95 * before(y, x, (dy, dx)), best)
            total_hw = total_hw + np.array([come[p] for p in np.ndindex(gain_hw.shape)]).reshape(gain_hw.shape)
        np.testing.assert_allclose(best_paths(gain_hw, orientation), total_hw, atol=1e-4)


@pytest.mark.parametrize("orientation", DIRECTIONS)
def test_a_tall_photograph_takes_no_more_memory_than_a_wide_one(orientation):
    gain_hw = np.zeros((2500, 50), np.float32)
    tracemalloc.start()
    best_paths(gain_hw, orientation)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * gain_hw.nbytes
