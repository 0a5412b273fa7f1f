import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from crackvae.errors import InputError
from crackvae.statistics import calibration
from crackvae.statistics.calibration import false_alarm_rate, is_anomalous, p_values, threshold

# Few distinct values make many ties; .1 and 1/3 differ between float32 and float64.
TIED = st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 0.5, 1.0, 7.0])
DTYPES = st.sampled_from([np.float32, np.float64])
ALPHAS = st.one_of(
    st.floats(0.001, 0.999),
    st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.29, 0.5, 0.58]),
    st.builds(lambda j, n: j / (j + n), st.integers(1, 60), st.integers(1, 60)),
)


def scores(dtype, max_size=60, elements=None):
    elements = elements or st.one_of(TIED, st.floats(-10, 10, width=32))
    return arrays(np.float64, st.integers(1, max_size), elements=elements).map(lambda score_N: score_N.astype(dtype))


def test_p_value_counts_ties_as_at_least_as_anomalous():
    calibration_n = np.array([3.0, 1.0, 2.0, 2.0])
    score_N = np.array([0.0, 1.0, 2.0, 2.5, 3.0, 3.1, np.inf, np.nan])
    expected_N = np.array([5, 5, 4, 2, 2, 1, 1, np.nan]) / 5
    p_N = p_values(score_N, calibration_n)
    assert p_N.dtype == np.float64
    np.testing.assert_array_equal(p_N, expected_N)


@settings(max_examples=40)
@given(st.data(), DTYPES, DTYPES)
def test_p_value_is_its_formula(data, dtype, calibration_dtype):
    score_N, calibration_n = data.draw(scores(dtype)), data.draw(scores(calibration_dtype))
    at_least_N = [sum(float(c) >= float(score) for c in calibration_n) for score in score_N]
    expected_N = [(1 + k) / (len(calibration_n) + 1) for k in at_least_N]
    np.testing.assert_array_equal(p_values(score_N, calibration_n), expected_N)


@given(st.data(), DTYPES, DTYPES, ALPHAS)
def test_threshold_and_p_value_never_disagree(data, dtype, calibration_dtype, alpha):
    score_N, calibration_n = data.draw(scores(dtype)), data.draw(scores(calibration_dtype))
    # The calibration scores themselves are where a wrong strictness or order statistic shows.
    score_N = np.concatenate([score_N, calibration_n.astype(dtype), [np.nan]], dtype=dtype)
    p_N = p_values(score_N, calibration_n)
    try:
        t = threshold(calibration_n, alpha)
    except InputError:
        assert not (p_N <= alpha).any()
    else:
        np.testing.assert_array_equal(is_anomalous(score_N, t), p_N <= alpha)


@pytest.mark.parametrize("n", [19, 20, 99, 1000, 1999, 9999])
@pytest.mark.parametrize("alpha", [0.05, 0.07, 0.29, 0.57, 0.58])
def test_threshold_agrees_where_alpha_times_n_is_nearly_whole(n, alpha):
    calibration_n = np.arange(n, dtype=np.float64)
    score_N = np.arange(-1, n + 1) + 0.5
    flagged_N = is_anomalous(score_N, threshold(calibration_n, alpha))
    np.testing.assert_array_equal(flagged_N, p_values(score_N, calibration_n) <= alpha)


def test_threshold_is_the_hundredth_largest_of_1999():
    assert threshold(np.arange(1999), 0.05) == 1999 - 100


def test_float32_score_is_not_compared_with_a_rounded_threshold():
    t = float(np.float32(0.1)) + 1e-12  # rounds to the float32 below it
    assert not is_anomalous(np.array([0.1], np.float32), t)[0]
    assert is_anomalous(np.array([0.1], np.float32), float(np.float32(0.1)) - 1e-12)[0]


@given(st.floats(0.001, 0.999))
def test_message_names_the_least_number_that_works(alpha):
    with pytest.raises(InputError, match=f"^0 calibration scores .* alpha {alpha:g}") as caught:
        threshold(np.array([]), alpha)
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    assert threshold(np.arange(needed), alpha) == needed - 1
    with pytest.raises(InputError, match=f"{needed - 1} calibration scores are too few"):
        threshold(np.arange(needed - 1), alpha)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, np.nan])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(InputError, match="alpha"):
        threshold(np.arange(100), alpha)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_that_is_not_finite_is_refused(bad):
    calibration_n = np.append(np.arange(99.0), bad)
    with pytest.raises(InputError, match="1 of 100"):
        p_values(np.zeros(1), calibration_n)
    with pytest.raises(InputError, match="1 of 100"):
        threshold(calibration_n, 0.05)


def test_false_alarm_rate_is_alpha_on_average():
    """The promise itself: P(p <= alpha) = floor(alpha (n + 1)) / (n + 1) for continuous scores."""
    generator = np.random.default_rng(0)
    score_RN = generator.normal(size=(4000, 40))
    alarms = [is_anomalous(row[:1], threshold(row[1:], 0.1))[0] for row in score_RN]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.015)  # three standard errors


def photographs(generator, count, tiles):
    """The largest of as many heavy-tailed errors as each photograph has tiles."""
    return np.array([generator.pareto(4, size).max() + 1 for size in np.broadcast_to(tiles, count)])


def test_hill_finds_the_tail_of_errors():
    error_N = np.random.default_rng(0).pareto(4, 200_000) + 1
    assert calibration.size_exponent(error_N) == pytest.approx(0.25, abs=0.02)
    assert 0 <= calibration.size_exponent(np.ones(40)) <= 0.01


def test_scores_by_size_make_photographs_of_any_size_alike():
    generator = np.random.default_rng(1)
    score = {size: photographs(generator, 4000, size) / size**0.25 for size in (50, 400)}
    p_N = calibration.p_values(score[400], score[50])
    assert np.mean(p_N <= 0.05) == pytest.approx(0.05, abs=0.015)
    raw_N = calibration.p_values(photographs(generator, 4000, 400), photographs(generator, 4000, 50))
    assert np.mean(raw_N <= 0.05) > 0.2  # why the size has to be in the score


def test_a_bound_holds_for_photographs_larger_than_those_of_the_calibration():
    generator = np.random.default_rng(2)
    tiles_n, tiles_N = np.full(999, 4), np.full(4000, 60)
    worst_n, worst_N = photographs(generator, 999, tiles_n), photographs(generator, 4000, tiles_N)
    p_N, least_N = calibration.bounds(worst_N, tiles_N, worst_n, tiles_n)
    assert np.mean(p_N <= 0.05) <= 0.055
    assert np.mean(p_N <= 0.05) > 0.02  # and is worth something
    assert (least_N == 15 / 1000).all()
    one_N, _ = calibration.bounds(worst_N, np.full(4000, 4), worst_n, tiles_n)
    np.testing.assert_array_equal(one_N, calibration.p_values(worst_N, worst_n))
    assert np.isnan(calibration.bounds(np.array([np.nan]), np.array([60]), worst_n, tiles_n)[0]).all()


@pytest.mark.parametrize("tiles", [25, 100, 500, 1500, 3000, 5000])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_the_false_alarms_hold_whatever_the_size_even_where_the_exponent_is_wrong(tiles, level):
    """Tiles of one photograph hang together by a level of their own; their tail is no power law."""
    generator = np.random.default_rng(5)

    def worst(count, size):
        own_N = generator.normal(0, level, count)
        return np.exp(own_N + np.array([generator.normal(0, 0.5, size).max() for _ in range(count)]))

    xi = calibration.size_exponent(np.exp(generator.normal(0, 0.5, 4000)))
    rates = []
    for _ in range(8):
        tiles_n, tiles_N = np.full(199, 2000), np.full(400, tiles)
        worst_n, worst_N = worst(199, 2000), worst(400, tiles)
        verdict = calibration.Normals(worst_n / tiles_n**xi, worst_n, tiles_n).judge(
            worst_N / tiles_N**xi, worst_N, tiles_N, 0.05
        )
        rates.append(np.mean(verdict.is_anomalous_N & verdict.is_decided_N))
    assert np.mean(rates) < 0.08


def test_photographs_are_compared_with_calibration_ones_of_their_size_and_bounded_beyond():
    generator = np.random.default_rng(3)
    tiles_n = np.full(99, 100)
    worst_n = photographs(generator, 99, tiles_n)
    normals = calibration.Normals(worst_n / tiles_n**0.25, worst_n, tiles_n)
    tiles_N = np.array([49, 50, 200, 201, 4000])
    worst_N = photographs(generator, 5, tiles_N) * 1e6
    verdict = normals.judge(worst_N / tiles_N**0.25, worst_N, tiles_N, 0.05)
    assert verdict.is_bound_N.tolist() == [True, False, False, True, True]
    np.testing.assert_allclose(verdict.p_N, [0.01, 0.01, 0.01, 0.03, 0.4])
    assert verdict.is_anomalous_N.tolist() == [True, True, True, True, False]
    assert verdict.is_decided_N.tolist() == [True, True, True, True, False]  # nothing could be a crack in the last
    limit = calibration.threshold(normals.score_n, 0.05)
    by_value = normals.judge(worst_N / tiles_N**0.25, worst_N, tiles_N, 0.05, value=limit)
    for of_value, of_alpha in zip(by_value, verdict, strict=True):
        np.testing.assert_array_equal(of_value, of_alpha)  # the same threshold, the same verdicts
    lowest = normals.judge(worst_N / tiles_N**0.25, worst_N, tiles_N, 0.05, value=0.0)
    assert (lowest.is_anomalous_N & lowest.is_decided_N).all()


def test_a_few_small_calibration_photographs_do_not_spoil_the_bound_of_large_ones():
    tiles_n = np.array([300] + 98 * [2200])
    worst_n = np.linspace(1, 2, 99)
    _, least_N = calibration.bounds(np.array([3.0]), np.array([4500]), worst_n, tiles_n)
    assert least_N[0] == 3 / 99


def test_p_values_of_exchangeable_images_are_valid():
    """10,000 calibrations, each with a new image: P(p <= alpha) <= alpha (Bates et al. 2023, eq. 3)."""
    generator = np.random.default_rng(0)
    draws, n = 10_000, 99
    score_DN = generator.gamma(2.0, size=(draws, n + 1)) ** 3  # skewed, as scores are
    p_D = np.array([p_values(score_N[:1], score_N[1:])[0] for score_N in score_DN])
    for alpha in (0.01, 0.05, 0.1, 0.5):
        error = np.sqrt(alpha * (1 - alpha) / draws)
        assert abs(np.mean(p_D <= alpha) - alpha) < 4 * error  # equal to it, for alpha (n + 1) is whole
    assert np.mean(p_D <= 0.055) < 0.055 + 4 * np.sqrt(0.05 / draws)


def test_ties_make_p_values_larger_only():
    generator = np.random.default_rng(1)
    score_DN = generator.integers(0, 5, (10_000, 100))
    p_D = np.array([p_values(score_N[:1], score_N[1:])[0] for score_N in score_DN])
    for alpha in (0.05, 0.1, 0.3):
        assert np.mean(p_D <= alpha) <= alpha + 4 * np.sqrt(alpha / len(p_D))


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (200, 0.05), (1124, 0.01)])
def test_the_promised_false_alarm_rate_is_that_of_simulated_calibrations(n, alpha):
    generator = np.random.default_rng(2)
    score_Dn = generator.random((10_000, n))  # uniform: the rate of a threshold t is 1 - t
    rate_D = np.array([1 - threshold(score_n, alpha) for score_n in score_Dn])
    promised = false_alarm_rate(int(np.sum(score_Dn[0] > threshold(score_Dn[0], alpha))), n)
    assert promised.expected <= alpha
    assert rate_D.mean() == pytest.approx(promised.expected, rel=0.05)
    assert np.mean((rate_D >= promised.low) & (rate_D <= promised.high)) == pytest.approx(0.95, abs=0.01)


def test_nothing_is_promised_where_every_calibration_image_is_flagged():
    assert false_alarm_rate(19, 19) == (1.0, 1.0, 1.0)


def test_the_range_of_alarms_is_that_of_simulated_runs():
    generator = np.random.default_rng(3)
    n, images, p_G = 99, 200, np.array([0.01, 0.05, 0.3, 0.97])
    low_G, high_G = calibration.alarm_range(p_G, n, images)
    shares = [
        np.mean(p_values(generator.normal(size=images), generator.normal(size=n))[:, None] <= p_G, axis=0)
        for _ in range(2000)
    ]
    inside_G = np.mean((low_G <= shares) & (shares <= high_G), axis=0)
    assert (inside_G > 0.94).all()
    assert (inside_G[1:3] < 0.965).all()  # at the ends counts are few, and the range reaches to 0 or 1
    assert calibration.alarm_range(np.array([0.0, 0.005, 1.0]), n, images)[0].tolist() == [0, 0, 1]
