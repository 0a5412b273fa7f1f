import dataclasses
from math import erf

import numpy as np
import pytest

from crackvae.errors import InputError
from crackvae.statistics import intervals
from crackvae.statistics.intervals import Interval, bootstrap
from crackvae.statistics.metrics import METRICS, Ranking


def photographs(seed, groups=40, size=4, shift=1.0, group_sd=1.0):
    """Scores whose images share an effect of their photograph; half of the photographs crack."""
    generator = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(groups), size)
    is_crack_N = group_N % 2 == 1
    effect_N = generator.normal(scale=group_sd, size=groups)[group_N]
    score_N = shift * is_crack_N + effect_N + generator.normal(size=group_N.size)
    return score_N, is_crack_N, group_N


def evaluate(score_N, is_crack_N, threshold):
    value_RM = Ranking(score_N, is_crack_N, threshold).evaluate(np.ones((1, len(score_N)), np.int64))
    return dict(zip(METRICS, value_RM[0].tolist(), strict=True))


def draws(is_crack_N, group_N, resamples=200, seed=0):
    draw = intervals._draw(np.asarray(is_crack_N, dtype=bool), np.asarray(group_N), resamples, seed)
    return np.concatenate(list(draw))


def test_interval_surrounds_the_metric_itself():
    score_N, is_crack_N, group_N = photographs(0)
    result = bootstrap(score_N, is_crack_N, group_N, 0.5, resamples=100).intervals()
    assert tuple(result) == METRICS
    assert {name: interval.value for name, interval in result.items()} == pytest.approx(
        evaluate(score_N, is_crack_N, 0.5)
    )
    for interval in result.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.low < interval.high


def test_equal_seeds_give_equal_intervals_however_the_blocks_are_cut(monkeypatch):
    score_N, is_crack_N, group_N = photographs(1)
    first = bootstrap(score_N, is_crack_N, group_N, 0.5, resamples=50).intervals()
    monkeypatch.setattr(intervals, "_BLOCK_WEIGHTS", 7 * group_N.size)
    assert bootstrap(score_N, is_crack_N, group_N, 0.5, resamples=50).intervals() == first
    assert bootstrap(score_N, is_crack_N, group_N, 0.5, resamples=50, seed=1).intervals() != first


def test_blocks_bound_the_memory():
    is_crack_N = np.arange(200_000) % 2 == 1
    shapes = [block.shape for block in intervals._draw(is_crack_N, np.arange(200_000), 5, 0)]
    assert [rows for rows, _ in shapes] == [2, 2, 1]
    assert max(rows * n for rows, n in shapes) <= intervals._BLOCK_WEIGHTS


def test_groups_are_drawn_whole_and_each_kind_keeps_its_number():
    group_N = np.array(["b", "a", "b", "c", "a", "d", "e"])
    is_crack_N = np.array([1, 0, 0, 0, 0, 1, 0])  # b holds both labels, so it is drawn with d
    weight_RN = draws(is_crack_N, group_N)
    np.testing.assert_array_equal(weight_RN[:, 0], weight_RN[:, 2])
    np.testing.assert_array_equal(weight_RN[:, 1], weight_RN[:, 4])
    assert (weight_RN[:, [0, 5]].sum(axis=1) == 2).all()
    assert (weight_RN[:, [1, 3, 6]].sum(axis=1) == 3).all()
    assert set(np.unique(weight_RN)) == {0, 1, 2, 3}


def test_multiplicities_are_multinomial():
    weight_RN = draws(np.zeros(10), np.arange(10), resamples=4000)
    np.testing.assert_allclose(weight_RN.mean(axis=0), 1, atol=0.06)
    covariance = np.cov(weight_RN.T)  # .9 on the diagonal, -.1 off it
    np.testing.assert_allclose(covariance, np.eye(10) - 0.1, atol=0.1)


def test_bootstrap_is_the_quantile_of_resampled_data():
    score_N, is_crack_N, group_N = photographs(2, groups=10)
    resampled = [
        evaluate(np.repeat(score_N, weight_N), np.repeat(is_crack_N, weight_N), 0.5)["f1"]
        for weight_N in draws(is_crack_N, group_N, resamples=60, seed=3)
    ]
    f1 = bootstrap(score_N, is_crack_N, group_N, 0.5, resamples=60, seed=3).intervals()["f1"]
    assert (f1.low, f1.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])))


def test_coverage_holds_for_groups_and_fails_without_them():
    shift, group_sd = 1.5, 1.5
    # P(crack > normal) for two images, always of different photographs.
    true_auc = (1 + erf(shift / (2 * np.sqrt(1 + group_sd**2)))) / 2
    covered = np.zeros(2)
    simulations = 100
    for seed in range(simulations):
        score_N, is_crack_N, group_N = photographs(seed, 60, 4, shift, group_sd)
        for column, by in enumerate([group_N, np.arange(group_N.size)]):
            auc = bootstrap(score_N, is_crack_N, by, 0.5, resamples=150, seed=seed).intervals()["roc_auc"]
            covered[column] += auc.low <= true_auc <= auc.high
    clustered, naive = covered / simulations
    assert clustered >= 0.88  # nominal .95; .88 is three standard errors below
    assert naive < 0.82


def test_undefined_metrics_have_no_interval():
    score_N, group_N = np.arange(6.0), np.arange(6)
    result = bootstrap(score_N, np.zeros(6, bool), group_N, 2.5, resamples=20).intervals()
    assert np.isnan(dataclasses.astuple(result["roc_auc"])).all()
    assert result["accuracy"].low < result["accuracy"].value < result["accuracy"].high
    empty = bootstrap(np.array([]), np.array([], bool), np.array([]), 0.0, resamples=3).intervals()
    assert np.isnan([dataclasses.astuple(interval) for interval in empty.values()]).all()


def test_resamples_without_the_metric_are_left_out():
    """One flagged image of six: a third of the resamples miss it and have no precision."""
    result = bootstrap(np.arange(6.0), np.arange(6) == 0, np.arange(6), 4.5, resamples=50).intervals()
    assert result["precision"] == Interval(0.0, 0.0, 0.0)


def test_lengths_that_differ_are_refused():
    with pytest.raises(InputError, match="groups"):
        bootstrap(np.arange(3.0), np.array([True, False, True]), np.arange(2), 0.0)


@pytest.mark.parametrize("tied", [False, True])
def test_large_sets_have_the_intervals_of_drawing_every_group(monkeypatch, tied):
    rng = np.random.default_rng(0)
    is_crack_N = rng.random(20_000) < 0.3
    group_N = rng.integers(0, 6_000, 20_000)
    score_N = rng.normal(0, 1, 20_000) + 2 * is_crack_N + rng.normal(0, 0.5, 6_000)[group_N]
    score_N = np.round(score_N, 1) if tied else score_N
    exact = intervals.bootstrap(score_N, is_crack_N, group_N, 1.5).intervals()
    monkeypatch.setattr(intervals, "EXACT_IMAGES", 10_000)
    coarse = intervals.bootstrap(score_N, is_crack_N, group_N, 1.5).intervals()
    for name, interval in exact.items():
        assert coarse[name].value == interval.value
        width = interval.high - interval.low
        assert coarse[name].low == pytest.approx(interval.low, abs=0.15 * width)
        assert coarse[name].high == pytest.approx(interval.high, abs=0.15 * width)


def test_paired_differences_are_narrower_than_what_they_are_made_of():
    score_N, is_crack_N, group_N = photographs(5)
    other_N = score_N + np.random.default_rng(0).normal(scale=0.2, size=score_N.size)
    first, second = (bootstrap(s_N, is_crack_N, group_N, 0.5, resamples=200) for s_N in (score_N, other_N))
    paired = (first - second).intervals()
    for name, one in first.intervals().items():
        assert paired[name].value == pytest.approx(one.value - second.intervals()[name].value)
    assert paired["roc_auc"].high - paired["roc_auc"].low < 0.5 * (
        first.intervals()["roc_auc"].high - first.intervals()["roc_auc"].low
    )
    assert set((first - first).intervals().values()) == {Interval(0.0, 0.0, 0.0)}


def test_paired_differences_of_many_images_draw_the_same_buckets(monkeypatch):
    monkeypatch.setattr(intervals, "EXACT_IMAGES", 100)
    score_N, is_crack_N, group_N = photographs(6)
    first, second = (
        bootstrap(s_N, is_crack_N, group_N, s, resamples=50) for s_N, s in ((score_N, 0.5), (2 * score_N, 1))
    )
    assert set((first - second).intervals().values()) == {Interval(0.0, 0.0, 0.0)}


def test_the_bands_are_those_of_the_metrics_that_are_points_of_the_curves(monkeypatch):
    score_N, is_crack_N, group_N = photographs(4, groups=100, group_sd=0.5)
    found = intervals.bands(score_N, is_crack_N, group_N, resamples=300)
    resampled = bootstrap(score_N, is_crack_N, group_N, 0.5, resamples=300)
    at = np.searchsorted(found.fpr_G, 0.05)  # the grid's next rate
    expected = resampled.intervals()["recall_at_5pct_fpr"]
    assert found.recall_3G[0, at] >= expected.value >= found.recall_3G[0, at - 1]
    assert found.recall_3G[1, at] >= expected.low - 1e-9
    assert found.recall_3G[2, at - 1] <= expected.high + 1e-9
    assert found.recall_3G[:, -1] == pytest.approx(1)
    assert found.precision_3G[0, -1] == pytest.approx(
        is_crack_N.sum() / np.count_nonzero(score_N >= score_N[is_crack_N].min())
    )
    for curve_3G in (found.recall_3G, found.precision_3G):
        assert (curve_3G[1] <= curve_3G[2]).all()
        assert np.mean((curve_3G[1] <= curve_3G[0]) & (curve_3G[0] <= curve_3G[2])) > 0.95
    monkeypatch.setattr(intervals, "EXACT_IMAGES", 10)
    coarse = intervals.bands(score_N, is_crack_N, group_N, resamples=300)
    np.testing.assert_allclose(coarse.recall_3G[0], found.recall_3G[0])
    assert np.abs(coarse.recall_3G - found.recall_3G).mean() < 0.02


@pytest.mark.parametrize("cracks", [3, 397])
def test_bands_of_few_groups_of_a_kind_in_a_large_set_have_edges(monkeypatch, cracks):
    """Of large sets buckets are drawn, and a resample may hold no crack at all, or nothing else."""
    monkeypatch.setattr(intervals, "EXACT_IMAGES", 10)
    is_crack_N = np.arange(400) < cracks
    score_N = np.random.default_rng(0).normal(size=400)
    bands = intervals.bands(score_N, is_crack_N, np.arange(400), resamples=200)
    for curve_3G in (bands.recall_3G, bands.precision_3G):
        assert np.isfinite(curve_3G).all()
    assert bands.precision_3G[2, -1] < 1  # to find all cracks of noise: it would be 1 without anything else
