import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crackvae.statistics import quantiles
from crackvae.statistics.quantiles import RELATIVE_ERROR, Quantiles

LEVELS = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
floats = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


@given(st.lists(st.lists(floats, max_size=20), min_size=1, max_size=5).filter(any))
def test_few_scores_have_exact_quantiles(pieces):
    kept = Quantiles()
    for piece in pieces:
        kept.add(np.array(piece, np.float32))
    whole = np.concatenate([np.array(piece, np.float32) for piece in pieces]).astype(np.float64)
    assert kept.at(LEVELS) == np.quantile(whole, LEVELS).tolist()


def test_no_scores_have_no_quantiles():
    assert np.isnan(Quantiles().at(LEVELS)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_many_scores_have_quantiles_within_the_stated_error(monkeypatch, sign):
    monkeypatch.setattr(quantiles, "EXACT_SCORES", 1000)
    score_N = (sign * np.random.default_rng(0).lognormal(-4, 2, 50_000)).astype(np.float32)
    kept = Quantiles()
    for piece in np.array_split(score_N, 37):
        kept.add(piece)
    assert sum(map(len, kept._kept)) <= 1000
    exact = np.quantile(score_N.astype(np.float64), LEVELS, method="inverted_cdf")
    np.testing.assert_allclose(kept.at(LEVELS), exact, rtol=RELATIVE_ERROR)
