import numpy as np
import pytest

from crackvae.statistics import drift

NAMES = ("brightness", "contrast", "sharpness", "texture", "latent")


@pytest.mark.parametrize(("survey", "calibration"), [(100, 300), (1000, 1000)])
def test_surveys_like_the_calibration_are_rarely_said_to_have_drifted(survey, calibration):
    generator = np.random.default_rng(0)
    draws = 1000
    drifted = [
        drift.compare(generator.gamma(2, size=(survey, 5)), generator.gamma(2, size=(calibration, 5)), NAMES)["drifted"]
        for _ in range(draws)
    ]
    assert np.mean(drifted) <= drift.SIZE + 3 * np.sqrt(drift.SIZE / draws)
    assert np.mean(drifted) > drift.SIZE / 5  # the test is not asleep


def test_a_shift_of_half_a_standard_deviation_in_one_feature_is_found_and_named():
    generator = np.random.default_rng(1)
    survey_NF = generator.normal(size=(300, 5))
    survey_NF[:, 3] -= 0.5
    told = drift.compare(survey_NF, generator.normal(size=(500, 5)), NAMES)
    assert told["tested"]
    assert told["drifted"]
    assert told["images"] == 300
    worst = min(told["features"], key=lambda name: told["features"][name]["p_value"])
    assert worst == "texture"
    assert told["features"]["texture"]["direction"] == "lower"


def test_of_few_images_nothing_is_said():
    told = drift.compare(np.full((19, 5), 9.0), np.zeros((500, 5)), NAMES)
    assert not told["tested"]
    assert not told["drifted"]
    assert told["features"] == {}


@pytest.mark.parametrize("rows", [1, 999, 1000, 2001, 123_457])
def test_rows_are_kept_evenly_and_in_bounded_memory_however_they_come(rows):
    value_NF = np.arange(rows, dtype=np.float32)[:, None]
    pieces, whole = drift.Spread(1), drift.Spread(1)
    whole.add(value_NF)
    for start in range(0, rows, 777):
        pieces.add(value_NF[start : start + 777])
        assert len(pieces._kept_NF) <= 2 * drift.MOST_IMAGES
    np.testing.assert_array_equal(pieces.rows(), whole.rows())
    kept_N = whole.rows()[:, 0]
    assert len(kept_N) == min(rows, drift.MOST_IMAGES)
    if rows > 1:
        assert np.diff(kept_N).max() <= 3 * max(1, rows / drift.MOST_IMAGES)
        assert kept_N[-1] > 0.99 * (rows - 1) - 1
