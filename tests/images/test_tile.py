import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays

from crackvae.images.tile import blending, cut, darkness, line_filter, starts, to_tile


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


@pytest.mark.parametrize("angle", [0, 30, 45, 90, 105, 170])
def test_the_line_filter_sees_a_dark_line_of_any_direction_and_no_spot(angle):
    line_HW, spots_HW = np.full((128, 128), 180, np.uint8), np.full((128, 128), 180, np.uint8)
    end = 50 * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    cv2.line(
        line_HW, tuple(np.rint(64 - end).astype(int).tolist()), tuple(np.rint(64 + end).astype(int).tolist()), 120, 3
    )
    dark = np.count_nonzero(line_HW == 120)
    spots_HW[8::16, 8::16] = 120  # as dark, and spread
    spots_HW[9::16, 8::16] = 120
    assert dark > np.count_nonzero(spots_HW == 120)
    assert line_filter(line_HW) > 25 > 4 * line_filter(spots_HW)
    assert line_filter(255 - line_HW) < line_filter(line_HW) / 2  # a bright one is none


def test_the_line_filter_of_the_smallest_images_is_a_number():
    assert line_filter(np.full((4, 4), 7, np.uint8)) == pytest.approx(0, abs=1e-4)
    assert np.isfinite(line_filter(np.arange(16 * 300, dtype=np.uint8).reshape(16, 300)))


def test_a_tile_averages_the_pixels_that_it_replaces():
    gray_HW = np.indices((512, 256)).sum(axis=0) % 2 * 200  # a chessboard aliases if sampled
    tile_SS = to_tile(gray_HW.astype(np.uint8), 128)
    assert tile_SS.shape == (128, 128)
    assert np.all(tile_SS == 100)


@pytest.mark.parametrize(("length", "overlap"), [(128, 32), (129, 0), (1000, 32), (700, 64), (224, 32)])
def test_tiles_cover_every_pixel_and_blend_to_one(length, overlap):
    places = starts(length, 128, overlap)
    weight_KS = blending(places, 128, overlap)
    total_L = np.zeros(length)
    for start, weight_S in zip(places, weight_KS, strict=True):
        total_L[start : start + 128] += weight_S
    np.testing.assert_allclose(total_L, 1, rtol=1e-5)
    assert (weight_KS > 0).all()
    assert all(after - before <= 128 - overlap for before, after in itertools.pairwise(places))


def test_the_weight_of_a_tile_rises_smoothly_over_the_overlap():
    middle_S = blending(starts(1000, 128, 32), 128, 32)[1]
    assert np.abs(np.diff(middle_S)).max() < 0.05
    np.testing.assert_allclose(middle_S[32:-32], 1, rtol=1e-5)


def test_cut_tiles_are_those_pixels():
    image_HW = np.arange(300 * 200).reshape(300, 200).astype(np.uint8)
    tile_NSS = cut(image_HW, 128, 0)
    assert len(tile_NSS) == 3 * 2
    np.testing.assert_array_equal(tile_NSS[3], image_HW[128:256, 72:200])
