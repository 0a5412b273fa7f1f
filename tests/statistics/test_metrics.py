import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    precision_score,
    roc_auc_score,
    roc_curve,
)

from crackvae.errors import InputError
from crackvae.statistics.metrics import METRICS, Ranking, confusion, curve


def evaluate(score_N, is_crack_N, threshold):
    """Every one of METRICS, each image once."""
    value_RM = Ranking(score_N, is_crack_N, threshold).evaluate(np.ones((1, len(score_N)), np.int64))
    return dict(zip(METRICS, value_RM[0].tolist(), strict=True))


def sklearn_metrics(score_N, is_crack_N, threshold, weight_N):
    """What METRICS mean, by scikit-learn, for weights that leave both classes present."""
    weights = {"sample_weight": weight_N}
    flagged_N = score_N > threshold
    fpr_V, tpr_V, _ = roc_curve(is_crack_N, score_N, drop_intermediate=False, **weights)
    precision, recall, f1, _ = precision_recall_fscore_support(
        is_crack_N, flagged_N, average="binary", zero_division=np.nan, **weights
    )
    return (
        roc_auc_score(is_crack_N, score_N, **weights),
        average_precision_score(is_crack_N, score_N, **weights),
        precision,
        recall,
        f1,
        accuracy_score(is_crack_N, flagged_N, **weights),
        fpr_V[tpr_V >= 0.95].min(),
        tpr_V[fpr_V <= 0.01].max(),
        tpr_V[fpr_V <= 0.05].max(),
        *(precision_of_weighted_classes(is_crack_N, flagged_N, weight_N, odds) for odds in (10, 100, 1000)),
    )


def precision_of_weighted_classes(is_crack_N, flagged_N, weight_N, odds):
    """Sound images weigh so much more that one in so many is cracked."""
    crack, normal = (weight_N[is_crack_N == label].sum() for label in (True, False))
    balanced_N = np.where(is_crack_N, weight_N / crack, (odds - 1) * weight_N / normal)
    return precision_score(is_crack_N, flagged_N, sample_weight=balanced_N, zero_division=np.nan)


@st.composite
def weighted_scores(draw):
    """Scores with many ties, and weights with many zeros that leave both classes present."""
    n = draw(st.integers(2, 50))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    score_N = generator.integers(0, draw(st.sampled_from([1, 3, 10, 1000])) + 1, n) / 3
    is_crack_N = generator.permutation(n) < draw(st.integers(1, n - 1))
    weight_RN = generator.poisson(draw(st.sampled_from([0.5, 2.0, 30.0])), (2, n))
    weight_RN[:, [np.argmax(is_crack_N), np.argmin(is_crack_N)]] += 1
    threshold = draw(st.one_of(st.sampled_from(score_N.tolist()), st.floats(-1, 5)))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return score_N.astype(dtype), is_crack_N, float(threshold), weight_RN


@settings(deadline=None, max_examples=40)
@given(weighted_scores())
def test_weighted_metrics_equal_scikit_learn(case):
    score_N, is_crack_N, threshold, weight_RN = case
    value_RM = Ranking(score_N, is_crack_N, threshold).evaluate(weight_RN)
    expected_RM = [sklearn_metrics(score_N.astype(float), is_crack_N, threshold, weight_N) for weight_N in weight_RN]
    np.testing.assert_allclose(value_RM, expected_RM, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(weighted_scores())
def test_weight_counts_copies(case):
    score_N, is_crack_N, threshold, weight_RN = case
    value_RM = Ranking(score_N, is_crack_N, threshold).evaluate(weight_RN)
    for weight_N, value_M in zip(weight_RN, value_RM, strict=True):
        copies = np.repeat(score_N, weight_N), np.repeat(is_crack_N, weight_N)
        np.testing.assert_allclose(list(evaluate(*copies, threshold).values()), value_M, rtol=1e-12)


@settings(max_examples=40)
@given(weighted_scores())
def test_ranking_metrics_depend_on_the_order_alone(case):
    score_N, is_crack_N, _, _ = case
    first = evaluate(score_N, is_crack_N, np.inf)
    second = evaluate(np.exp(score_N[::-1] / 400), is_crack_N[::-1], np.inf)
    np.testing.assert_equal(second, first)


def test_evaluate_by_hand():
    score_N = np.array([0.9, 0.8, 0.8, 0.4, 0.1])
    is_crack_N = np.array([True, True, False, False, False])
    metrics = evaluate(score_N, is_crack_N, 0.4)
    assert tuple(metrics) == METRICS
    assert metrics == pytest.approx(
        {
            "roc_auc": 5.5 / 6,  # five pairs won, one tied
            "average_precision": 0.5 * 1 + 0.5 * 2 / 3,
            "precision": 2 / 3,
            "recall": 1.0,
            "f1": 0.8,
            "accuracy": 0.8,
            "fpr_at_95_recall": 1 / 3,
            "recall_at_1pct_fpr": 0.5,
            "recall_at_5pct_fpr": 0.5,
            "precision_at_1_in_10": 0.1 / (0.1 + 0.9 / 3),
            "precision_at_1_in_100": 0.01 / (0.01 + 0.99 / 3),
            "precision_at_1_in_1000": 0.001 / (0.001 + 0.999 / 3),
        }
    )
    assert confusion(score_N, is_crack_N, 0.4) == {"tn": 2, "fp": 1, "fn": 0, "tp": 2}


@pytest.mark.parametrize("cracks", [20, 60, 100, 140, 1900])
def test_19_of_20_cracks_are_95_percent_recall(cracks):
    found = cracks * 19 // 20
    score_N = np.concatenate([np.full(found, 3.0), np.full(cracks - found, 1.0), [2.0, 2.0]])
    is_crack_N = np.arange(score_N.size) < cracks
    assert evaluate(score_N, is_crack_N, 0)["fpr_at_95_recall"] == 0
    # One found crack fewer, and the rest is only reached below all normals.
    assert evaluate(score_N[1:], is_crack_N[1:], 0)["fpr_at_95_recall"] == 1


@pytest.mark.parametrize("alarms", [1, 3, 7, 29])
def test_1_alarm_in_100_normals_is_1_percent(alarms):
    normals = 100 * alarms
    score_N = np.concatenate([[2.0], np.full(alarms, 3.0), np.full(normals - alarms, 1.0)])
    is_crack_N = np.arange(score_N.size) == 0
    assert evaluate(score_N, is_crack_N, 0)["recall_at_1pct_fpr"] == 1
    # One normal fewer, and the same alarms are too many.
    assert evaluate(score_N[:-1], is_crack_N[:-1], 0)["recall_at_1pct_fpr"] == 0


def undefined(score_N, is_crack_N, threshold):
    metrics = evaluate(np.array(score_N), np.array(is_crack_N, dtype=bool), threshold)
    return {name for name, value in metrics.items() if np.isnan(value)}


def test_undefined_metrics_are_nan_without_a_warning():
    at_prevalences = {"precision_at_1_in_10", "precision_at_1_in_100", "precision_at_1_in_1000"}
    operating = {"fpr_at_95_recall", "recall_at_1pct_fpr", "recall_at_5pct_fpr"} | at_prevalences
    no_cracks = {"roc_auc", "average_precision", "recall"} | operating
    assert undefined([1.0, 2.0], [0, 0], 1.5) == no_cracks
    assert undefined([1.0, 2.0], [1, 1], 1.5) == {"roc_auc"} | operating
    assert undefined([1.0, 2.0], [0, 1], 2.0) == {"precision"} | at_prevalences
    assert undefined([1.0, 2.0], [0, 0], 2.0) == no_cracks | {"precision", "f1"}
    assert undefined([], [], 0.0) == set(METRICS)


@pytest.mark.parametrize("function", [evaluate, lambda *case: curve(*case[:2])])
def test_what_cannot_be_ranked_is_refused(function):
    with pytest.raises(InputError, match="NaN"):
        function(np.array([1.0, np.nan]), np.array([True, False]), 0)
    with pytest.raises(InputError, match="do not match"):
        function(np.array([1.0, 2.0]), np.array([True]), 0)


@settings(deadline=None, max_examples=40)
@given(weighted_scores())
def test_confusion_and_evaluate_agree_with_scikit_learn(case):
    score_N, is_crack_N, threshold, _ = case
    cells = confusion(score_N, is_crack_N, threshold)
    (tn, fp), (fn, tp) = confusion_matrix(is_crack_N, score_N.astype(float) > threshold, labels=[0, 1])
    assert cells == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    assert evaluate(score_N, is_crack_N, threshold)["recall"] == cells["tp"] / (cells["tp"] + cells["fn"])


@settings(deadline=None, max_examples=40)
@given(weighted_scores())
def test_curve_equals_scikit_learn(case):
    score_N, is_crack_N, _, _ = case
    fpr_V, recall_V = curve(score_N, is_crack_N)
    expected_fpr_V, expected_recall_V, _ = roc_curve(is_crack_N, score_N, drop_intermediate=False)
    np.testing.assert_allclose(fpr_V, expected_fpr_V)
    np.testing.assert_allclose(recall_V, expected_recall_V)
