import numpy as np
import pytest

from crackvae.errors import InputError
from crackvae.statistics.calibration import p_values
from crackvae.statistics.discovery import benjamini_hochberg, exact_interval, expected_precision, least_real


def test_expected_precision_is_that_of_a_simulated_survey():
    generator = np.random.default_rng(0)
    is_crack_N = generator.random(1_000_000) < 0.01
    flagged_N = generator.random(is_crack_N.size) < np.where(is_crack_N, 0.9, 0.05)
    assert expected_precision(0.05, 0.9, 0.01) == pytest.approx(np.mean(is_crack_N[flagged_N]), abs=0.005)


def test_expected_precision_at_its_limits():
    assert expected_precision(0.05, 1.0, 1.0) == 1
    assert expected_precision(0.05, 1.0, 0.0) == 0
    assert expected_precision(0.0, 0.5, 0.001) == 1
    assert np.isnan(expected_precision(0.0, 0.0, 0.1))
    np.testing.assert_allclose(expected_precision(0.05, [0.5, np.nan], 0.5), [10 / 11, np.nan])
    with pytest.raises(InputError, match="prevalence is 10"):
        expected_precision(0.05, 1.0, 10)


def test_benjamini_hochberg_is_its_definition():
    generator = np.random.default_rng(1)
    for _ in range(50):
        p_N = generator.integers(1, 40, 30) / 40  # with ties
        fdr = generator.choice([0.05, 0.1, 0.3])
        sorted_N = np.sort(p_N)
        within_N = np.flatnonzero(sorted_N <= fdr * np.arange(1, 31) / 30 + 1e-12)
        expected_N = p_N <= sorted_N[within_N[-1]] if within_N.size else np.zeros(30, bool)
        np.testing.assert_array_equal(benjamini_hochberg(p_N, fdr), expected_N)


def test_what_was_not_judged_is_not_chosen_and_does_not_count():
    p_N = np.array([0.001, np.nan, 0.9, 0.002])
    np.testing.assert_array_equal(benjamini_hochberg(p_N, 0.05), [True, False, False, True])
    assert not benjamini_hochberg(np.array([np.nan]), 0.1).any()
    assert benjamini_hochberg(np.array([]), 0.1).shape == (0,)
    with pytest.raises(InputError, match="rate is 1,"):
        benjamini_hochberg(p_N, 1)
    with pytest.raises(InputError, match="p-value"):
        benjamini_hochberg(np.array([1.2]), 0.1)


@pytest.mark.parametrize("fdr", [0.1, 0.3])
def test_the_false_discovery_rate_of_conformal_p_values_holds(fdr):
    """10,000 surveys of 200 images, 20 of them cracked, each with a calibration of its own."""
    generator = np.random.default_rng(2)
    shift_N = np.where(np.arange(200) < 20, 2.5, 0.0)
    false, found = [], []
    for _ in range(10_000):
        p_N = p_values(generator.normal(size=200) + shift_N, generator.normal(size=300))
        chosen_N = benjamini_hochberg(p_N, fdr)
        false.append(np.sum(chosen_N[20:]) / max(1, np.sum(chosen_N)))
        found.append(np.mean(chosen_N[:20]))
    error = np.std(false) / 100
    assert np.mean(false) <= 0.9 * fdr + 3 * error  # at fdr times the share of sound images
    assert np.mean(false) > 0.5 * fdr  # and not by choosing nothing
    assert np.mean(found) > 0.1


def test_at_least_the_share_that_is_promised_is_real_on_average():
    """Lists by rate and lists by budget, of surveys of 300 images of which 30 are cracked."""
    generator = np.random.default_rng(3)
    is_crack_N = np.arange(300) < 30
    promised, real = [], []
    for _ in range(2000):
        p_N = p_values(generator.normal(size=300) + 3.0 * is_crack_N, generator.normal(size=500))
        chosen_N = benjamini_hochberg(p_N, 0.1)
        assert not chosen_N.any() or least_real(p_N, chosen_N) >= 0.9 - 1e-9
        budget_N = np.isin(np.arange(300), np.argsort(p_N, kind="stable")[:20])
        promised.append(least_real(p_N, budget_N))
        real.append(is_crack_N[budget_N].mean())
    assert np.mean(promised) <= np.mean(real)
    assert np.mean(promised) > 0.5  # and not by promising nothing
    assert np.isnan(least_real(p_N, np.zeros(300, bool)))
    np.testing.assert_allclose(least_real(np.array([0.01, np.nan, 0.02, 0.5]), np.array([1, 0, 1, 0], bool)), 0.97)


def test_exact_intervals_are_the_textbooks():
    assert exact_interval(0, 59, upper=True) == pytest.approx((0, 1 - 0.05 ** (1 / 59)))  # "59 without one: under 5%"
    assert exact_interval(0, 299, upper=True)[1] < 0.01
    assert exact_interval(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert exact_interval(0, 0) == exact_interval(0, 0, upper=True) == (0, 1)


@pytest.mark.parametrize("cracked", [5, 20, 60])
def test_the_bound_covers_what_is_missed_at_least_as_often_as_it_says(cracked):
    found = np.random.default_rng(4).hypergeometric(cracked, 1000 - cracked, 100, size=5000)
    bounds = {count: exact_interval(int(count), 100, upper=True)[1] for count in np.unique(found)}
    assert np.mean([bounds[count] * 1000 >= cracked for count in found]) >= 0.95
