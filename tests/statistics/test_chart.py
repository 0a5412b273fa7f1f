"""Simulated nights: how often a chart is wrong, and how soon it is right."""

import numpy as np
import pytest

from crackvae.statistics import chart

CHARTS = 4  # of a nightly survey: `run.charts`
YEAR = 365


def shares(generator, mean, between, nights, charts=400, photographs=(20, 5000)):
    """Beta-binomial nights: each night's structures have a share of their own. As arguments for `follow`."""
    low, high = np.log(photographs)
    count_NR = np.exp(generator.uniform(low, high, (nights, charts))).astype(int)
    size = mean * (1 - mean) / between**2 - 1 if between else None
    share_NR = generator.beta(mean * size, (1 - mean) * size, count_NR.shape) if size else np.full(count_NR.shape, mean)
    part_NR = generator.binomial(count_NR, share_NR)
    likely_NR = (part_NR + 0.5) / (count_NR + 1)
    return part_NR / count_NR, likely_NR * (1 - likely_NR), count_NR


def exact(value_NR):
    """Nights of so many photographs that chance within them does not matter."""
    return value_NR, np.zeros_like(value_NR), np.full_like(value_NR, 100)


def alarms(series):
    """alarm_NR."""
    return np.array([np.abs(point.level) > 1 for point in chart.follow(*series)])


def first_alarm(series):
    """Its night, from 1, or infinity."""
    alarm_NR = alarms(series)
    return np.where(alarm_NR.any(axis=0), alarm_NR.argmax(axis=0) + 1, np.inf)


def run_length(series):
    """Maximum likelihood estimate of the mean, where some charts end without an alarm."""
    first_R, nights = first_alarm(series), len(series[0])
    return np.minimum(first_R, nights).sum() / np.isfinite(first_R).sum()


NIGHTS = {
    "normal": lambda g: exact(g.normal(size=(1500, 400))),
    "skewed": lambda g: exact(np.exp(g.normal(size=(1500, 400)))),
    "heavy tails": lambda g: exact(g.standard_t(3, size=(1500, 400))),
    "6% +- 3% flagged": lambda g: shares(g, 0.06, 0.03, 1500),
    "6% +- 6% flagged": lambda g: shares(g, 0.06, 0.06, 1500),
    "1% +- 2% flagged": lambda g: shares(g, 0.01, 0.02, 1500, photographs=(100, 2000)),
    "half flagged": lambda g: shares(g, 0.5, 0.2, 1500),
    "binomial": lambda g: shares(g, 0.06, 0, 1500),
    "1 in 1,000 not judged": lambda g: shares(g, 0.001, 0, 1500),
}


@pytest.mark.parametrize("nights", NIGHTS)
def test_four_charts_together_give_a_false_alarm_in_a_year_at_most(nights):
    assert run_length(NIGHTS[nights](np.random.default_rng(0))) > CHARTS * YEAR


def test_a_plain_binomial_chart_would_not_do():
    """Why the spread between nights counts: three standard deviations of a binomial are exceeded every few nights."""
    value_NR, _, count_NR = shares(np.random.default_rng(0), 0.06, 0.03, 200)
    deviate_NR = (value_NR - 0.06) / np.sqrt(0.06 * 0.94 / count_NR)
    assert np.mean(np.abs(deviate_NR) > 3) > 0.2


@pytest.mark.parametrize(
    ("before", "shift", "median", "most"),
    [(14, 3, 6, 11), (30, 2, 7, 13), (30, 3, 5, 8), (90, 1, 14, 36), (90, 2, 6, 9)],
)
def test_a_lasting_change_is_found_within_days_or_weeks(before, shift, median, most):
    """shift: in standard deviations between nights; most: in nine of ten charts."""
    value_NR = np.random.default_rng(1).normal(size=(before + 90, 2000))
    value_NR[before:] += shift
    first_R = first_alarm(exact(value_NR))
    delay_R = first_R[first_R > before] - before
    assert np.quantile(delay_R, 0.5, method="inverted_cdf") <= median
    assert np.quantile(delay_R, 0.9, method="inverted_cdf") <= most


def test_the_share_flagged_doubles_and_is_found_in_both_directions():
    generator = np.random.default_rng(2)
    low, high = (shares(generator, mean, 0.02, 30, photographs=(200, 500)) for mean in (0.06, 0.12))
    for before, after, sign in ((low, high, 1), (high, low, -1)):
        series = [np.concatenate(pair) for pair in zip(before, after, strict=True)]
        *_, last = chart.follow(*series)
        assert np.mean(sign * last.level > 1) > 0.95


@pytest.mark.parametrize("before", [7, 14, 60])
@pytest.mark.parametrize("size", [5, 1e9, -1e9])
def test_one_odd_night_is_no_alarm_however_odd(before, size):
    """Neither that night nor for its sake later: charts with it alarm no more often than those without."""
    value_NR = np.random.default_rng(3).normal(size=(before + 60, 4000))
    odd_NR = value_NR.copy()
    odd_NR[before] = size
    quiet_R = ~alarms(exact(value_NR))[:before].any(axis=0)
    without, with_odd = (alarms(exact(v))[before:, quiet_R] for v in (value_NR, odd_NR))
    assert with_odd[0].mean() < 0.005
    assert with_odd.any(axis=0).mean() <= without.any(axis=0).mean() + 0.003


def test_an_odd_night_among_quiet_ones_cannot_raise_an_alarm_at_all():
    value_N = np.resize([1.0, -1.0], 60)
    for at in range(chart.LEAST_NIGHTS, 60):
        odd_N = value_N.copy()
        odd_N[at] = 1e9
        assert not alarms(exact(odd_N)).any()


def test_an_alarm_stays_until_the_level_is_back():
    generator = np.random.default_rng(4)
    value_N = generator.normal(size=260)
    value_N[60:160] += 4
    alarm_N = alarms(exact(value_N))
    assert not alarm_N[:62].any()
    assert alarm_N[70:160].all()
    assert not alarm_N[200:].any()


def test_a_chart_tells_its_newest_night_and_leaves_out_small_ones():
    value_N, within_N = np.array([0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.3]), np.full(7, 0.09)
    told = chart.chart(value_N, within_N, np.array([100, 19, 100, 100, 100, 100, 100]))
    assert (told.nights, told.value, told.alarm) == (6, 0.3, None)
    assert told.mean == pytest.approx(0.1)
    assert told.spread == pytest.approx(0.03)  # of 100 photographs: nights before did not differ at all
    assert chart.chart(value_N[:1], within_N[:1], np.array([5])) == chart.Chart(0, None, None, None, 0.0, None)
    assert chart.chart(value_N[:1], within_N[:1], np.array([50])).spread is None


def test_nights_that_are_all_the_same_are_no_alarm_and_a_change_is():
    value_N = np.zeros(40)
    assert not alarms(exact(value_N)).any()
    value_N[30:] = 1
    assert alarms(exact(value_N))[-1]
