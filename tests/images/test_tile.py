import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from crackvae.images.tile import darkness, to_tile


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
def test_darkness_is_between_observed_quantiles(gray_HW):
    percentile_1, median = np.percentile(gray_HW, [1, 50], method="inverted_cdf").astype(int)
    assert darkness(gray_HW) == median - percentile_1


def test_darkness_sees_one_percent_of_dark_pixels_and_no_less():
    gray_HW = np.full((10, 20), 180, np.uint8)
    gray_HW[0, 0] = 30
    assert darkness(gray_HW) == 0
    gray_HW[0, 1] = 40
    assert darkness(gray_HW) == 140


def test_a_tile_averages_the_pixels_that_it_replaces():
    gray_HW = np.indices((512, 256)).sum(axis=0) % 2 * 200  # a chessboard aliases if sampled
    tile_SS = to_tile(gray_HW.astype(np.uint8), 128)
    assert tile_SS.shape == (128, 128)
    assert np.all(tile_SS == 100)
